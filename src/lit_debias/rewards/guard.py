"""A guard around a reward: timeout, retries and circuit breaker; a failure is a missing score, never a 0."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass

import torch

from lit_debias.errors import ResumableError, UserError
from lit_debias.rewards.asking import Answer, RewardError
from lit_debias.rewards.calls import InProcess, Isolated, RewardTimeoutError, resident_gib
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.support import distributed
from lit_debias.support.text import counted

log = logging.getLogger(__name__)


class UnreliableRewardError(RewardError, ResumableError):
    """A guarded reward has lost more of its scores than its guard allows; raised on every rank."""

    checkpoint = "unreliable_reward.ckpt"


@dataclass(frozen=True)
class Guard:
    """How long a reward may take, how often it may fail, and what happens then.

    A call that raises, hangs, ends its process, or returns the wrong type or length leaves all completions of that
    rank without this score; an entry that is no finite number, its own completion only. Either is what None would be
    to the aggregator. Counts are summed over ranks, so that all of them stop asking, and stop, at the same rollout.

    Raises:
        UserError: a number is out of range, or ``max_memory_gib`` cannot be measured.
    """

    timeout: float = 60.0
    """Seconds that one call may take. Other ranks wait as long, for each attempt: stay below the process group's."""
    retries: int = 1
    """Further attempts at a batch. A call that hangs is tried again only if ``isolate``."""
    open_after: int = 3
    """Rollouts in a row with a failed call on some rank, after which the reward is not asked for a while (the circuit
    breaker opens); at once where a call hangs in this process, whose thread cannot be ended."""
    open_for: int = 5
    """Rollouts without the reward. Then it is asked once, and the breaker opens again if that fails."""
    max_error_rate: float = 0.5
    """The run stops where a larger share of the scores of the last ``window`` rollouts is lost to failures and to
    the open breaker; in [0, 1], 1 never stops it."""
    window: int = 20
    """Rollouts over which ``max_error_rate`` counts; those before the first one count as free of errors."""
    isolate: bool = False
    """Run the reward in a process of its own: it can be ended when it hangs, and its end is not the end of the run.
    It is sent there by pickle before ``setup``, computes with one thread, and shares no model with other rewards."""
    max_memory_gib: float | None = None
    """Resident memory in GiB above which that process starts afresh after a call; needs ``isolate``, and Linux."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise UserError(f"guard: timeout is {self.timeout}; write seconds above 0")
        if self.retries < 0 or min(self.open_after, self.open_for, self.window) < 1:
            raise UserError(
                f"guard: retries={self.retries}, open_after={self.open_after}, open_for={self.open_for}, "
                f"window={self.window}; write at least 0 for retries and at least 1 for the others"
            )
        if not 0 <= self.max_error_rate <= 1:
            raise UserError(f"guard: max_error_rate is {self.max_error_rate}; write a share from 0 to 1")
        if self.max_memory_gib is not None:
            self._check_memory(self.max_memory_gib)

    def _check_memory(self, limit: float) -> None:
        if not limit > 0:
            raise UserError(f"guard: max_memory_gib is {limit}; write GiB above 0, or null for no limit")
        if not self.isolate:
            raise UserError("guard: max_memory_gib watches a reward's own process; write isolate: true with it")
        try:
            resident_gib()
        except OSError as error:
            raise UserError("guard: max_memory_gib needs Linux's /proc; write null") from error

    def around(self, name: str, reward: Reward) -> GuardedReward:
        """Return the reward with this guard around it.

        Raises:
            UserError: it is to be isolated and cannot be pickled.
        """
        return GuardedReward(name, reward, self)


class GuardedReward:
    """One reward, and what is known of its failures: the same on every rank but for :attr:`failed` and :attr:`hangs`.

    Args:
        name: The user's name of the reward.
        reward: The reward.
        guard: How it is guarded.
    """

    def __init__(self, name: str, reward: Reward, guard: Guard) -> None:
        self.name, self.guard = name, guard
        self.calls = Isolated(name, reward, guard.max_memory_gib) if guard.isolate else InProcess(name, reward)
        self.failed = False
        """Whether a call for this rollout failed on this rank."""
        self.hangs = False
        """Whether it hangs in a thread of this process."""
        self.last = "on another process, whose messages name it"
        """The latest failure on this rank."""
        self.failures = 0
        """Rollouts in a row with a failed call on some rank."""
        self.open_steps = 0
        """Rollouts for which the breaker stays open."""
        self.error_rates = deque([0.0] * guard.window, maxlen=guard.window)
        """Share of scores lost in the latest rollouts, over all ranks."""

    def setup(self, device: torch.device) -> None:
        """Let the reward load what it needs, in its own process if it has one.

        Raises:
            RewardError: its process does not start.
        """
        self.calls.setup(device)

    def score(self, batch: RewardBatch) -> Answer:
        """Return what can be used of the reward's scores; never raises for a failure of the reward."""
        if self.open_steps:
            return self._nothing(batch)
        for _ in range(1 + self.guard.retries):
            try:
                answer = self.calls.score(batch, self.guard.timeout)
            except RewardError as error:
                self.last = str(error)
                self.hangs = isinstance(error, RewardTimeoutError) and not self.guard.isolate
                if self.hangs:
                    break
            else:
                if answer.problems:
                    self.last = next(iter(answer.problems.values()))
                    log.warning("%s (%d of %d scores are missing)", self.last, len(answer.problems), len(batch))
                return answer
        self.failed = True
        log.warning("%s (all %d scores are missing)", self.last, len(batch))
        return self._nothing(batch)

    def _nothing(self, batch: RewardBatch) -> Answer:
        return Answer([None] * len(batch), dict.fromkeys(range(len(batch)), self.last))

    def settle(self, error_rate: float, failed: bool, hangs: bool) -> None:
        """Decide whether the reward is asked for the next rollout, from what happened on all ranks.

        Args:
            error_rate: Share of the rollout's scores that were lost, in [0, 1].
            failed: A call failed on some rank.
            hangs: And hangs in a thread there.

        Raises:
            UnreliableRewardError: too many scores are lost.
        """
        self.failed = self.hangs = False
        self.error_rates.append(error_rate)
        if self.open_steps:
            self.open_steps -= 1
        elif failed:
            self.failures = max(self.failures + 1, self.guard.open_after if hangs else 0)
            if self.failures >= self.guard.open_after:
                self.open_steps = self.guard.open_for
                self._say(f"is not asked for the next {counted(self.open_steps, 'rollout')}")
        else:
            if self.failures >= self.guard.open_after:
                self._say("answers again")
            self.failures = 0
        rate = sum(self.error_rates) / self.guard.window
        if rate > self.guard.max_error_rate:
            raise UnreliableRewardError(
                f"reward '{self.name}' lost {rate:.0%} of its scores over {counted(self.guard.window, 'rollout')}, "
                f"more than max_error_rate {self.guard.max_error_rate:g}; mend it, or raise its guard's "
                f"max_error_rate; last failure: {self.last}"
            )

    def _say(self, what: str) -> None:
        if distributed.rank() == 0:
            log.warning("reward '%s' %s", self.name, what)
