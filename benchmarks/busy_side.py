"""One run beside others: rollouts and steps when it is asked for them; called by ``benchmarks.busy``.

It imports what every checkout has, so that the code of an earlier commit can be measured by this file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.clock import Clock
from benchmarks.measurement import MeasuredGRPO, measured
from benchmarks.settings import Settings

if TYPE_CHECKING:  # where it stands is not the same in every checkout
    from lit_debias.types import PromptBatch

ANSWER = "seconds: "


class Side(MeasuredGRPO):
    """Reads ``rollout N`` or ``step N`` line by line, and answers with the seconds of each."""

    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Warm up, and answer until the input ends."""
        kinds: dict[str, Callable[[int], None]] = {
            "rollout": lambda seed: self._rollout(prompts, seed),
            "step": lambda seed: self.timed_step(prompts, seed, Clock(self.settings.device)),
        }
        for kind in kinds.values():
            kind(0)
        self._answer([])
        for line in sys.stdin:
            name, count = line.split()
            self._answer([self._timed(kinds[name], seed) for seed in range(int(count))])
        return {}

    def _rollout(self, prompts: PromptBatch, seed: int) -> None:
        forget: Callable[[], None] = getattr(self.policy, "weights_changed", None) or self.policy.forms.forget_merged
        forget()  # as after an update
        self.sample(prompts, seed)

    def _timed(self, kind: Callable[[int], None], seed: int) -> float:
        start = time.perf_counter()
        kind(seed)
        return time.perf_counter() - start

    def _answer(self, seconds: list[float]) -> None:
        print(ANSWER + json.dumps(seconds), flush=True)


if __name__ == "__main__":
    measured(Side(Settings(**json.loads(sys.argv[1]))))
