"""lit-debias's side of ``benchmarks.learning``: its own GRPO in a Lightning Trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks.adapters import adapters
from benchmarks.learning_plan import REWARDS, Plan, TextReward
from benchmarks.measurement import fit
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.rollout.local import LocalEngine
from lit_debias.training.grpo import GRPO
from lit_debias.types import Experience, PromptBatch


class OfText(Reward):
    """A function of one completion's text."""

    def __init__(self, function: TextReward) -> None:
        self.function = function

    def score(self, batch: RewardBatch) -> list[float]:
        """Return N shares in [0, 1]."""
        return [self.function(text) for text in batch.completions]


class Learner(GRPO):
    """GRPO that keeps its curve, and what it sampled."""

    def __init__(self, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        super().__init__(
            QLoRAPolicy(plan.model, quantization="none", dtype=plan.dtype),
            {plan.reward: OfText(REWARDS[plan.reward])},
            engine=LocalEngine(max_new_tokens=plan.completion_tokens, temperature=1.0),
            loss=DAPOLoss(beta=0.0),
            group_size=plan.group_size,
            optimizer=lambda parameters: AdamW(parameters, lr=plan.learning_rate, weight_decay=0.0),
            seed=plan.seed,
        )
        self.plan = plan
        self.rewarded: list[float] = []
        self.tokens: list[int] = []
        self.ended: list[float] = []
        self.sampled: list[list[list[int]]] = []

    def configure_model(self) -> None:
        """Load, and begin with the adapter that both sides begin with."""
        super().configure_model()
        self.plan.set_first_adapter(self.policy.lm)
        self.policy.forms.forget_merged()

    def train_dataloader(self) -> Iterator[PromptBatch]:
        """Return the plan's prompts, a step's at a time."""
        texts, size = self.plan.prompt_texts(), self.plan.prompts
        return iter([PromptBatch(texts[start : start + size]) for start in range(0, len(texts), size)])

    def on_train_start(self) -> None:
        """Start the clock: models are loaded on both sides by now."""
        self.start = time.perf_counter()

    def collect(self, prompts: PromptBatch) -> Experience:
        """Collect as GRPO does, and keep it."""
        experience = super().collect(prompts)
        rollout = experience.rollout
        self.rewarded.append(float(experience.scores.values[self.plan.reward].mean()))
        rows = zip(rollout.completion_ids.flatten(0, 1), rollout.completion_mask.flatten(0, 1), strict=True)
        self.sampled.append([ids[mask].tolist() for ids, mask in rows])
        return experience

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Make one step, and keep when it ended."""
        super().training_step(prompts, batch_idx)
        self.ended.append(time.perf_counter() - self.start)


def learn(plan: Plan, given: list[list[list[int]]] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the curve, and the adapter at the end by name."""
    assert given is None, "lit-debias is the one that samples for others"
    module = Learner(plan)
    fit(module, plan.device)
    curve = {"reward": module.rewarded, "seconds": module.ended, "completions": module.sampled}
    return curve, {name: weight.detach().cpu() for name, weight in adapters(module.policy.lm).items()}
