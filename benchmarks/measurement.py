"""GRPO whose one training step measures, inside a real Lightning Trainer."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.optim import AdamW

from benchmarks.clock import Clock
from benchmarks.gates import move_adapter
from benchmarks.settings import Settings
from benchmarks.vllm_arms import engine_of
from benchmarks.workload import BETA, LEARNING_RATE, EvenShare, ending_ids, prompt_texts
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.training.grpo import GRPO
from lit_debias.types import Experience, PromptBatch, Rollout, Scores

TEMPERATURES = (1.0, 1.0)  # of the loss and of the rewards, as GRPO asks the reference


def engine_options(settings: Settings) -> dict[str, Any]:
    """Return the arguments of the engine."""
    return {
        "max_new_tokens": settings.completion_tokens,
        "decoder": settings.decoder,
        "torch_compile": settings.torch_compile,
        "cuda_graph": settings.cuda_graph,
    }


class MeasuredGRPO(GRPO):
    """The project's own policy, engine and update, at the size of ``settings``; subclasses say what is measured."""

    moves_adapter = True
    """Whether a fresh adapter is moved off zero first; never where a real model must find an end by itself."""

    def __init__(
        self, settings: Settings, rewards: Mapping[str, Reward] | None = None, engine: LocalEngine | None = None
    ) -> None:
        torch.manual_seed(0)  # LoRA's A
        local = settings.engine == "local"
        policy = QLoRAPolicy(
            settings.model,
            settings.quantization,
            settings.dtype,
            gradient_checkpointing=settings.gradient_checkpointing,
            attention=settings.attention,
            max_prompt_tokens=settings.prompt_tokens + 1024,  # room for the template in front of a short limit
        )
        super().__init__(
            policy,
            dict(rewards or {"EvenShare": EvenShare()}),
            engine=engine or (LocalEngine(**engine_options(settings)) if local else engine_of(settings)),
            correction=None if local else ImportanceCorrection(),
            loss=DAPOLoss(beta=BETA),
            group_size=settings.group_size,
            optimizer=lambda parameters: AdamW(parameters, lr=LEARNING_RATE, fused=True),
        )
        self.settings = settings
        self.found: dict[str, Any] = {}

    @abstractmethod
    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Return what is found."""

    def configure_model(self) -> None:
        """Load as GRPO does, then settle what ends a completion."""
        super().configure_model()
        vocabulary = self.policy.causal_lm.config.vocab_size
        self.policy.eos_token_ids = ending_ids(self.settings, self.policy.eos_token_ids, vocabulary)
        if self.moves_adapter and self.settings.lengths == "fixed":
            move_adapter(self.policy)

    def train_dataloader(self) -> Iterator[PromptBatch]:
        """Return one batch of P prompts."""
        return iter([PromptBatch(prompt_texts(self.settings, self.policy.prompt_ids))])

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Measure."""
        parameters = sum(parameter.numel() for parameter in self.policy.trainable_parameters().values())
        self.found = {"trained_parameters": parameters, **self.measure(prompts)}

    # ---------------------------------------------------------------- what subclasses measure

    def repeated(self, work: Callable[[int, Clock], None]) -> Clock:
        """Call ``work(seed, clock)`` for the warm-up and for each repeat; return the clock of the repeats."""
        for seed in range(self.settings.warmup):
            work(seed, Clock(self.settings.device))
        clock = Clock(self.settings.device)
        for seed in range(self.settings.repeats):
            work(self.settings.warmup + seed, clock)
        return clock

    def timed_step(self, prompts: PromptBatch, seed: int, clock: Clock) -> None:
        """Do what ``GRPO.training_step`` does, a phase at a time; the rollout refreshes its copy of the weights."""
        with clock.phase("rollout"):
            rollout = self.sample(prompts, seed)
        sampled = int(rollout.completion_mask.sum())
        packed = sampled + int(rollout.prompt_mask.sum())
        with clock.phase("reference"):
            reference = self.policy.logprobs_at(rollout, TEMPERATURES, reference=True)
        rollout = replace(rollout, reference_logprobs=reference[1])
        scores = Scores({}, {})
        for name, reward in self.rewards.rewards.items():
            with clock.phase(f"reward {name}"):
                found = RewardSuite({name: reward}).score(rollout)
            scores = replace(scores, values=scores.values | found.values, valid=scores.valid | found.valid)
            clock.count(f"reward {name}", self.settings.completions, "completions/s")
        experience = self.experience_of(rollout, reference, self.aggregator(scores, 0))
        with clock.phase("update"):
            self.update(experience)
        clock.count("rollout", sampled, "tokens/s")
        for name in ("reference", "update"):
            clock.count(name, packed, "packed tokens/s")

    def sample(self, prompts: PromptBatch, seed: int) -> Rollout:
        """Sample, and insist on the numbers of tokens where they are fixed.

        Raises:
            RuntimeError: they are others.
        """
        rollout = self.engine.generate(self.policy, prompts, self.group_size, seed)
        if self.settings.lengths == "fixed":
            found = int(rollout.completion_mask.sum()), int(rollout.prompt_mask.sum())
            expected = self.settings.most_tokens, self.settings.prompts * self.settings.prompt_tokens
            if found != expected:
                raise RuntimeError(f"completion and prompt tokens are {found}, and must be {expected}")
        return rollout

    def experience_of(self, rollout: Rollout, reference: Tensor, advantages: Tensor | None = None) -> Experience:
        """Return what the update takes; without advantages random ones, which no group of equal scores turns off."""
        if advantages is None:
            advantages = torch.randn(rollout.truncated.shape, generator=torch.Generator().manual_seed(0))
        self.experience = Experience(
            rollout=rollout,
            scores=Scores({}, {}),
            advantages=advantages.to(self.device),
            loss_mask=rollout.completion_mask,
            reference_logprobs=reference[0],
        )
        return self.experience


def measured(module: MeasuredGRPO) -> dict[str, Any]:
    """Run the module's one step in a Trainer and return what it found."""
    fit(module, module.settings.device)
    return module.found


def fit(module: GRPO, device: str) -> None:
    """Run an epoch of the module in a Trainer that says and leaves nothing."""
    with tempfile.TemporaryDirectory() as folder:  # for the adapter that every fit leaves
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
