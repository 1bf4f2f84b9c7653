"""Seconds and packed tokens a second of the update: forward, backward, optimiser step, and peak memory.

Checks first that the packed gradient is that of every sequence alone; exits with 1, and times nothing, where it is not.

    python -m benchmarks.update
    python -m benchmarks.update --unpacked --prompts 8 --prompt-tokens 512      # the plain way beside it

docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks import report
from benchmarks.clock import Clock, Parts
from benchmarks.gates import gradient_gate, unpacked_gradient
from benchmarks.measurement import TEMPERATURES, MeasuredGRPO, measured
from benchmarks.options import add_step, model_at_hand, program, settings_of
from benchmarks.settings import Settings
from lit_debias.types import Experience, PromptBatch


class MeasuredUpdate(MeasuredGRPO):
    """Gradient gate, then updates on one experience of random tokens."""

    parts: Parts | None = None

    def __init__(self, settings: Settings, unpacked: bool) -> None:
        super().__init__(settings)
        self.unpacked = unpacked

    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Check, warm up, time, and split one more update into its parts."""
        experience = self._random_experience(prompts)
        gates = {"packed_gradient": gradient_gate(self, experience)}
        if not report.passed(gates):
            return {"gates": gates, "phases": {}}
        clock = self.repeated(lambda _, clock: self._timed(experience, clock))
        return {"gates": gates, "phases": clock.figures(), "parts": self._split(experience)}

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Time it where the update is split."""
        with self.parts.part("backward") if self.parts else nullcontext():
            super().manual_backward(loss, *args, **kwargs)

    def _optimizer_step(self, optimizer: Optimizer, name: str, prompts: PromptBatch) -> float:
        with self.parts.part("optimiser") if self.parts else nullcontext():
            return super()._optimizer_step(optimizer, name, prompts)

    def _timed(self, experience: Experience, clock: Clock) -> None:
        rollout = experience.rollout
        tokens = int(rollout.completion_mask.sum() + rollout.prompt_mask.sum())
        with clock.phase("packed"):
            self._packed(experience)
        clock.count("packed", tokens, "packed tokens/s")
        if self.unpacked:
            with clock.phase("unpacked"):
                unpacked_gradient(self, experience)
                self._optimizer_step(self.optimizers(), "the unpacked update", rollout.prompts)
            clock.count("unpacked", tokens, "packed tokens/s")  # the same work, so that rates compare

    def _packed(self, experience: Experience) -> None:
        experience.old_logprobs = None  # on-policy, as the first inner epoch is
        self.update(experience)

    def _split(self, experience: Experience) -> dict[str, float]:
        self.parts = parts = Parts(self.settings.device)
        with parts.part("update"):
            self._packed(experience)
        self.parts = None
        return parts.rest("forward", whole="update")

    def _random_experience(self, prompts: PromptBatch) -> Experience:
        settings = self.settings
        shape = (settings.completions, settings.completion_tokens)
        vocabulary = self.policy.causal_lm.config.vocab_size
        rows = torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(0)).tolist()
        texts = [[""] * settings.group_size] * settings.prompts
        rollout = self.policy.rollout_of(prompts, self.policy.encode_prompts(prompts.texts), rows, texts)
        rollout = replace(rollout, logprobs=self.policy.logprobs(rollout))
        return self.experience_of(rollout, self.policy.logprobs_at(rollout, TEMPERATURES, reference=True))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the gate, and seconds and rates where it passed; see docs/benchmarks.md for the fields."""
    settings = settings_of(options)
    with model_at_hand(settings, options.shape_folder) as at_hand:
        found = measured(MeasuredUpdate(at_hand, options.unpacked))
    return {"benchmark": "update", "name": settings.name, "settings": asdict(settings), **found}


def parser() -> argparse.ArgumentParser:
    result = program("update", __doc__)
    add_step(result)
    result.add_argument("--unpacked", action="store_true", help="also time one backward pass per completion")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where the gate failed, or 2 for a user's mistake."""
    return report.run(measure, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
