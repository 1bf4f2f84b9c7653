"""One GRPO step, phase by phase, inside a real Lightning Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.optim import AdamW

from benchmarks.clock import Clock, phases
from benchmarks.gates import gradient_gate, logprob_gate, move_adapter
from benchmarks.settings import Settings
from lit_debias.errors import UserError
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.module import GRPO
from lit_debias.policy import QLoRAPolicy
from lit_debias.rewards.base import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import Experience, PromptBatch, Rollout, Scores

TEMPERATURES = (1.0, 1.0)  # of the loss and of the rewards, as GRPO asks the reference
LEARNING_RATE = 1e-6
BETA = 0.04


def measure(settings: Settings, rewards: dict[str, Reward]) -> dict[str, Any]:
    """Return gates, and phases where all gates passed; see docs/benchmarks.md for the fields."""
    module = MeasuredGRPO(settings, rewards)
    trainer = Trainer(
        accelerator="gpu" if settings.device == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    return module.outcome


class MeasuredGRPO(GRPO):
    """GRPO whose one training step checks the gates and then times the phases of steps like it."""

    def __init__(self, settings: Settings, rewards: dict[str, Reward]) -> None:
        torch.manual_seed(0)  # LoRA's A
        policy = QLoRAPolicy(
            settings.model,
            settings.quantization,
            settings.dtype,
            max_prompt_tokens=settings.prompt_tokens + 1024,  # room for the template in front of a short limit
        )
        super().__init__(
            policy,
            rewards,
            engine=LocalEngine(settings.completion_tokens),
            loss=DAPOLoss(beta=BETA),
            group_size=settings.group_size,
            optimizer=lambda parameters: AdamW(parameters, lr=LEARNING_RATE),
        )
        self.settings = settings
        self.outcome: dict[str, Any] = {}

    def configure_model(self) -> None:
        """Load as GRPO does, then let no token end a completion and move the adapter off zero."""
        super().configure_model()
        self.policy.eos_token_ids = ()
        move_adapter(self.policy)

    def train_dataloader(self) -> Iterator[PromptBatch]:
        """Return one batch of P prompts of exactly S tokens."""
        starts = [f"w{index + 2}" for index in range(self.settings.prompts)]
        return iter([PromptBatch([sized_text(self.policy, start, self.settings.prompt_tokens) for start in starts])])

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Check, warm up, and time."""
        gates = self._gates(prompts)
        parameters = sum(parameter.numel() for parameter in self.policy.trainable_parameters().values())
        self.outcome = {"trained_parameters": parameters, "gates": gates, "phases": {}}
        if all(gate["passed"] for gate in gates.values()):
            for seed in range(self.settings.warmup):
                self._timed_step(prompts, seed, Clock(self.settings.device))
            clock = Clock(self.settings.device)
            for seed in range(self.settings.repeats):
                self._timed_step(prompts, seed, clock)
            self.outcome["phases"] = phases(clock, self.settings)

    def _gates(self, prompts: PromptBatch) -> dict[str, dict[str, Any]]:
        rollout = self._sample(prompts, seed=0)
        reference = self.policy.logprobs_at(rollout, TEMPERATURES, reference=True)
        return {
            "sampled_logprobs": logprob_gate(self, rollout),
            "packed_gradient": gradient_gate(self, self._experience(rollout, reference)),
        }

    def _timed_step(self, prompts: PromptBatch, seed: int, clock: Clock) -> None:
        """Do what ``GRPO.training_step`` does, a phase at a time; the rollout refreshes its copy of the weights."""
        with clock.phase("rollout"):
            rollout = self._sample(prompts, seed)
        with clock.phase("reference"):
            reference = self.policy.logprobs_at(rollout, TEMPERATURES, reference=True)
        rollout = replace(rollout, reference_logprobs=reference[1])
        for name, reward in self.rewards.rewards.items():
            with clock.phase(f"reward {name}"):
                RewardSuite({name: reward}).score(rollout)
        experience = self._experience(rollout, reference)
        with clock.phase("update"):
            self.update(experience)

    def _sample(self, prompts: PromptBatch, seed: int) -> Rollout:
        rollout = self.engine.generate(self.policy, prompts, self.group_size, seed)
        found = int(rollout.completion_mask.sum()), int(rollout.prompt_mask.sum())
        expected = self.settings.sampled_tokens, self.settings.prompts * self.settings.prompt_tokens
        if found != expected:
            raise RuntimeError(f"completion and prompt tokens are {found}, and must be {expected} to be comparable")
        return rollout

    def _experience(self, rollout: Rollout, reference: Tensor) -> Experience:
        # Given advantages, so that no group of equal scores turns the gradient off.
        advantages = torch.randn(rollout.truncated.shape, generator=torch.Generator().manual_seed(0))
        self.experience = Experience(
            rollout=rollout,
            scores=Scores({}, {}),
            advantages=advantages.to(self.device),
            loss_mask=rollout.completion_mask,
            reference_logprobs=reference[0],
        )
        return self.experience


def sized_text(policy: QLoRAPolicy, start: str, tokens: int) -> str:
    """Return ``start`` and filler words, exactly ``tokens`` tokens with the chat template.

    Raises:
        UserError: the chat template and ``start`` alone are longer.
    """

    def length(text: str) -> int:
        return policy.encode_prompts([text])[0].shape[1]

    text = start
    for filler in (" and", "1"):
        while length(text) < tokens and length(text + filler) <= tokens:
            text += filler
    if length(text) != tokens:
        raise UserError(f"--prompt-tokens {tokens}: the chat template takes {length(start)}; write more than that")
    return text
