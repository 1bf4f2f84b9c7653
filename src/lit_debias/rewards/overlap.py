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


@contextmanager
def scoring(suite: RewardSuite, overlap: bool) -> Iterator[tuple[Callable[[Rollout], Scores], dict[str, Any]]]:
    """Yield what scores a rollout, and what the engine that samples it within the context gets for that.

    Args:
        suite: The rewards.
        overlap: Score each group as soon as it is finished.
    """
    if not overlap:
        yield suite.score, {}
        return
    with OverlappedScoring(suite) as overlapped:
        yield overlapped.score, {"on_group": overlapped.add}


class OverlappedScoring:
    """Scores groups one by one in a thread, as a context around the sampling of a rollout.

    A reward that depends on the whole batch, or on the reference's log-probs, is asked at the end. What each call holds
    follows from the rollout alone, not from what was done first, so equal rollouts get equal scores.

    Args:
        suite: The rewards.
    """

    def __init__(self, suite: RewardSuite) -> None:
        self.suite = suite
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

    def add(self, number: int, group: Rollout) -> None:
        """Take the completions of one prompt, which are all finished; returns at once.

        Args:
            number: Which of the P prompts.
            group: A rollout of that prompt alone.
        """
        self._given.add(number)
        self._waiting.put((number, group))

    def score(self, rollout: Rollout) -> Scores:
        """Wait, score what is left, and return what :meth:`RewardSuite.score` returns of the whole rollout.

        Raises:
            RewardError: as there.
        """
        for number in range(len(rollout.prompts)):
            if number not in self._given:
                self.add(number, rollout.group(number))
        self._waiting.put(None)
        self._call.thread.join()
        self._call.future.result()  # raises what the thread raised
        parts = [self._found[number] for number in range(len(rollout.prompts))]
        late = self.suite.score(rollout, self._late)  # not beside the others: rewards may share an encoder
        return Scores(
            {name: torch.cat([part.values[name] for part in parts]) for name in self._early} | late.values,
            {name: torch.cat([part.valid[name] for part in parts]) for name in self._early} | late.valid,
            {name: sum(part.seconds[name] for part in parts) for name in self._early} | late.seconds,
            {name: torch.cat([part.failed[name] for part in parts]) for name in parts[0].failed} | late.failed,
            columns=rollout.prompts.columns,
        )

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None and not self._stopped:
            number, group = item
            use_in_this_thread(group.completion_ids.device)
            self._found[number] = self.suite.score(group, self._early)
