"""Rewards at work on the groups that are finished while others are still sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch

from lit_debias.rewards.calls import Call
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.devices import use_in_this_thread
from lit_debias.types import Rollout, Scores

IsEnough = Callable[[int, Rollout, Scores], bool]
"""Takes the number of a prompt, the rollout of it alone and its scores; returns whether no other group is needed."""


@contextmanager
def scoring(
    suite: RewardSuite, overlap: bool, is_enough: IsEnough | None = None
) -> Iterator[tuple[Callable[[Rollout], Scores], dict[str, Any]]]:
    """Yield what scores a rollout, and what the engine that samples it within the context gets for that.

    Args:
        suite: The rewards.
        overlap: Score each group as soon as it is finished.
        is_enough: Ends sampling and scoring, where they overlap; see :class:`OverlappedScoring`.
    """
    if not overlap:
        yield suite.score, {}
        return
    with OverlappedScoring(suite, is_enough) as overlapped:
        yield overlapped.score, {"on_group": overlapped}


class OverlappedScoring:
    """Scores groups one by one in a thread, as a context around the sampling of a rollout.

    A reward that depends on the whole batch, or on the reference's log-probs, is asked at the end. What each call holds
    follows from the rollout alone, not from what was done first, so equal rollouts get equal scores.

    Args:
        suite: The rewards.
        is_enough: Called with each group that has been scored; once it returns True, no other one is. Not called where
            a reward is asked at the end.
    """

    def __init__(self, suite: RewardSuite, is_enough: IsEnough | None = None) -> None:
        self.suite, self._is_enough = suite, is_enough
        self.enough = False
        """Whether no other group is needed, which engines look at."""
        rewards = suite.rewards.items()
        self._late = [name for name, each in rewards if each.depends_on_batch or each.needs_reference_logprobs]
        self._early = [name for name in suite.rewards if name not in self._late]
        self._given: set[int] = set()
        self._found: dict[int, Scores] = {}
        self._waiting: SimpleQueue[tuple[int, Rollout] | None] = SimpleQueue()
        self._stopped = False

    def __enter__(self) -> OverlappedScoring:
        self._call = Call(self._work)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stopped = True  # where sampling failed, what is waiting need not be scored
        self._waiting.put(None)

    def __call__(self, number: int, group: Rollout) -> None:
        """Take the completions of one prompt, which are all finished; returns at once.

        Args:
            number: Which of the P prompts.
            group: A rollout of that prompt alone.
        """
        self._given.add(number)
        self._waiting.put((number, group))

    def score(self, rollout: Rollout) -> Scores:
        """Wait, score what is left, and return what :meth:`RewardSuite.score` returns of the whole rollout.

        Groups that were not scored, because others were enough, have no score.

        Raises:
            RewardError: as there.
        """
        for number in range(len(rollout.prompts)):
            if number not in self._given:
                self(number, rollout.group(number))
        self._waiting.put(None)
        self._call.thread.join()
        self._call.future.result()  # raises what the thread raised
        without = _unscored(next(iter(self._found.values())))
        parts = [self._found.get(number, without) for number in range(len(rollout.prompts))]
        late = self.suite.score(rollout, self._late)  # not beside the others: rewards may share an encoder
        return Scores(
            {name: torch.cat([part.values[name] for part in parts]) for name in self._early} | late.values,
            {name: torch.cat([part.valid[name] for part in parts]) for name in self._early} | late.valid,
            {name: sum(part.seconds[name] for part in parts) for name in self._early} | late.seconds,
            {name: torch.cat([part.failed[name] for part in parts]) for name in parts[0].failed} | late.failed,
            columns=rollout.prompts.columns,
        )

    def _work(self) -> None:
        while not self.enough and (item := self._waiting.get()) is not None and not self._stopped:
            number, group = item
            use_in_this_thread(group.completion_ids.device)
            self._found[number] = found = self.suite.score(group, self._early)
            if self._is_enough is not None and not self._late:
                self.enough = self._is_enough(number, group, found)


def _unscored(scores: Scores) -> Scores:
    """Return scores of the same shape that say nothing."""
    nothing = {name: torch.zeros_like(value) for name, value in scores.values.items()}
    silent = {name: torch.zeros_like(valid) for name, valid in scores.valid.items()}
    failed = {name: torch.zeros_like(failed) for name, failed in scores.failed.items()}
    return Scores(nothing, silent, dict.fromkeys(scores.seconds, 0.0), failed)
