"""Speed and memory of one GRPO step by phase: rollout, reference, rewards, update.

Checks first that the fast step computes what the plain one does; exits with 1, and times nothing, where it does not.

    python -m benchmarks.step
    python -m benchmarks.step --shape 0.5b --quantization none --out step.json

docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks import report
from benchmarks.gates import gradient_gate, logprob_gate
from benchmarks.measurement import TEMPERATURES, MeasuredGRPO, measured
from benchmarks.options import add_rewards, add_sampling, add_step, build_reward, model_at_hand, program, settings_of
from lit_debias.types import PromptBatch


class MeasuredStep(MeasuredGRPO):
    """Gates, then phases of whole steps."""

    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Check, warm up, and time."""
        rollout = self.sample(prompts, seed=0)
        gates = {"sampled_logprobs": logprob_gate(self, rollout)}
        reference = self.policy.logprobs_at(rollout, TEMPERATURES, reference=True)
        gates["packed_gradient"] = gradient_gate(self, self.experience_of(rollout, reference))
        if not report.passed(gates):
            return {"gates": gates, "phases": {}}
        clock = self.repeated(lambda seed, clock: self.timed_step(prompts, seed, clock))
        clock.total("step", list(clock.seconds), like="rollout")
        return {"gates": gates, "phases": clock.figures()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return gates, and phases where all gates passed; see docs/benchmarks.md for the fields."""
    settings = settings_of(options)
    rewards = options.reward or ["Fluency"]
    named = dict(build_reward(text) for text in rewards)
    with model_at_hand(settings, options.shape_folder) as at_hand:
        found = measured(MeasuredStep(at_hand, named))
    return {"benchmark": "step", "name": settings.name, "settings": asdict(settings), "rewards": rewards, **found}


def parser() -> argparse.ArgumentParser:
    result = program("step", __doc__)
    add_step(result)
    add_rewards(result, "Fluency")
    add_sampling(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where a gate failed, or 2 for a user's mistake."""
    return report.run(measure, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
