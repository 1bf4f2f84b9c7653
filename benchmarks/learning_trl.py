"""TRL's side of ``benchmarks.learning``: its own ``GRPOTrainer``, with the prompts as token ids."""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

from benchmarks.adapters import adapters
from benchmarks.learning_plan import REWARDS, Plan
from lit_debias.models.loading import load_causal_lm, load_tokenizer
from lit_debias.models.prompt_encoder import PromptEncoder

Completions = list[list[int]]


class Learner(GRPOTrainer):  # type: ignore[misc]
    """``GRPOTrainer`` that keeps what it sampled, or is given what another sampled."""

    rows: list[list[int]]
    given: list[Completions] | None
    sampled: list[Completions]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.rows[int(prompt)] for prompt in prompts], None, {}

    def _generate(self, prompts: list[str]) -> Any:
        if self.given is None:
            found = super()._generate(prompts)
            self.sampled.append(found[1])
            return found
        completions = self.given[len(self.sampled)]
        self.sampled.append(completions)
        texts = self._tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [self.rows[int(prompt)] for prompt in prompts], completions, None, texts, None, {}, None, None


class Curve(TrainerCallback):
    """The mean reward of each step, and when it ended."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.reward, self.seconds = plan, list[float](), list[float]()

    def score(self, completions: list[str], **_: Any) -> list[float]:
        """Score as our side does."""
        scores = [REWARDS[self.plan.reward](text) for text in completions]
        self.reward.append(sum(scores) / len(scores))
        return scores

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock: models are loaded on both sides by now."""
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep when the optimiser's step ended."""
        self.seconds.append(time.perf_counter() - self.start)


def configuration(plan: Plan, folder: str) -> GRPOConfig:
    """Return the plan in TRL's words; all completions of a step share a pass, which is TRL's fastest."""
    return GRPOConfig(
        folder,
        per_device_train_batch_size=plan.prompts * plan.group_size,
        num_generations=plan.group_size,
        max_completion_length=plan.completion_tokens,
        max_steps=plan.steps,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        shuffle_dataset=False,
        seed=plan.seed,
        gradient_checkpointing=False,
        bf16=plan.dtype == "bfloat16",
        use_cpu=plan.device == "cpu",
        dataloader_pin_memory=plan.device != "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def learn(plan: Plan, given: list[Completions] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the curve, and the adapter at the end by name; ``given`` completions take the place of sampled ones."""
    curve, texts, tokenizer = Curve(plan), plan.prompt_texts(), load_tokenizer(plan.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Learner(
            load_causal_lm(plan.model, dtype=getattr(torch, plan.dtype), device_map={"": plan.device}),
            curve.score,
            configuration(plan, folder),
            train_dataset=Dataset.from_dict({"prompt": [str(index) for index in range(len(texts))]}),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
            callbacks=[curve],
        )
        encoder = PromptEncoder(tokenizer, plan.model, {})
        trainer.rows, trainer.given, trainer.sampled = [encoder.prompt(text) for text in texts], given, []
        plan.set_first_adapter(trainer.model)
        trainer.train()
    found = {"reward": curve.reward, "seconds": curve.seconds, "completions": trainer.sampled}
    versions = {name: version(name) for name in ("trl", "torch", "transformers", "peft")}
    return {**found, "versions": versions}, {name: weight.detach() for name, weight in adapters(trainer.model).items()}
