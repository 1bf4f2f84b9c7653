"""Sampling and scoring in turn, and overlapped (``overlap_scoring``), with a reward that answers over a network.

The reward does no work here: it waits, as one does for a judge on another machine. Checks first that both ways give the
same scores; exits with 1, and times nothing, where they do not.

    python -m benchmarks.overlap --prompts 4 --group-size 4 --completion-tokens 96 --wait 0.1

docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks import report
from benchmarks.clock import Clock
from benchmarks.measurement import MeasuredGRPO, measured
from benchmarks.options import add_sampling, add_step, model_at_hand, program, settings_of
from benchmarks.settings import Settings
from benchmarks.workload import EvenShare
from lit_debias.rewards.reward import RewardBatch
from lit_debias.types import Experience, PromptBatch

IN_TURN, OVERLAPPED = "in turn", "overlapped"


class Waiting(EvenShare):
    """Answers after a while for each completion.

    Args:
        seconds: For one completion.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, batch: RewardBatch) -> list[float]:
        """Return N shares in [0, 1]."""
        time.sleep(self.seconds * len(batch))
        return super().score(batch)


class MeasuredOverlap(MeasuredGRPO):
    """Gate, then the same rollouts sampled and scored in both ways."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        super().__init__(settings, {"waiting": Waiting(seconds)})

    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Check, warm up, and time."""
        values = [self._collected(prompts, overlap).scores.values["waiting"] for overlap in (False, True)]
        gates = {"same_scores": {"max_difference": float((values[0] - values[1]).abs().max()), "passed": False}}
        gates["same_scores"]["passed"] = gates["same_scores"]["max_difference"] == 0
        if not report.passed(gates):
            return {"gates": gates, "phases": {}}
        clock = self.repeated(lambda seed, clock: self._timed(prompts, seed, clock))
        return {"gates": gates, "phases": clock.figures()}

    def _timed(self, prompts: PromptBatch, seed: int, clock: Clock) -> None:
        self.rollout_step = seed  # seeds sampling
        for name, overlap in ((IN_TURN, False), (OVERLAPPED, True)):
            with clock.phase(name):
                experience = self._collected(prompts, overlap)
            clock.count(name, int(experience.rollout.completion_mask.sum()), "tokens/s")

    def _collected(self, prompts: PromptBatch, overlap: bool) -> Experience:
        self.overlap_scoring = overlap
        return self.collect(prompts)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the gate, and seconds and rate where it passed; see docs/benchmarks.md for the fields."""
    settings = settings_of(options)
    with model_at_hand(settings, options.shape_folder) as at_hand:
        found = measured(MeasuredOverlap(at_hand, options.wait))
    return {
        "benchmark": "overlap",
        "name": settings.name,
        "settings": asdict(settings) | {"wait": options.wait},
        **found,
    }


def parser() -> argparse.ArgumentParser:
    result = program("overlap", __doc__)
    add_step(result)
    add_sampling(result)
    result.set_defaults(lengths="natural")
    result.add_argument("--wait", type=float, default=0.1, help="seconds that the reward takes for a completion")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where the gate failed, or 2 for a user's mistake."""
    return report.run(measure, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
