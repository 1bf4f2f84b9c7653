"""TRL's side of the comparison: its own ``GRPOTrainer``, with the seconds of each phase.

Prompts come as token ids; nothing else of the trainer is replaced while it is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

from benchmarks.adapters import adapters, flat_gradient, set_adapters
from benchmarks.clock import Parts, peak_memory
from benchmarks.settings import Settings
from benchmarks.vllm_arms import grpo_config, vllm_version
from benchmarks.workload import BETA, LEARNING_RATE, ending_ids, even_share, fixed_completions, prompt_ids
from lit_debias.models.loading import load_causal_lm, load_tokenizer, nf4_config

NOBODY = -1  # an id that no token has


class TimedTrainer(GRPOTrainer):  # type: ignore[misc]
    """``GRPOTrainer`` with prompts given as ids, and a stopwatch."""

    rows: list[list[int]]
    parts: Parts
    sampled: int

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.rows[int(prompt)] for prompt in prompts], None, {}

    def _generate(self, prompts: list[str]) -> Any:
        with self.parts.part("rollout"):
            found = super()._generate(prompts)
        self.sampled = sum(len(row) for row in found[1])
        return found

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.parts.part("reference"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.parts.part("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def end_with(self, ids: Sequence[int]) -> None:
        """Let these ids, and no others, end a completion."""
        self.eos_token_ids = list(ids) or [NOBODY]
        if self.use_vllm:
            self.vllm_generation.generation_kwargs = {"ignore_eos": True, "stop_token_ids": list(ids)}
            return
        # Not None, for which generate would take the model's own
        self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids


class Stopwatch(TrainerCallback):
    """Splits each optimiser step into phases; what no other phase holds is the update."""

    def __init__(self, trainer: TimedTrainer, device: str) -> None:
        self.trainer, self.device = trainer, device
        self.steps: list[dict[str, float]] = []
        self.tokens: list[int] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.trainer.parts = Parts(self.device)
        self.whole = self.trainer.parts.part("step")
        self.whole.__enter__()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop, after the optimiser step."""
        self.whole.__exit__(None, None, None)
        parts = self.trainer.parts
        self.steps.append({**parts.rest("update", whole="step"), "step": parts.seconds["step"]})
        self.tokens.append(self.trainer.sampled)


def trainer_of(settings: Settings, micro_batch: int, checkpointing: bool, folder: str) -> TimedTrainer:
    """Return the trainer of one arm; ``micro_batch`` completions share a forward and backward pass."""
    bf16 = settings.dtype == "bfloat16"
    config = GRPOConfig(
        folder,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.completions // micro_batch,
        num_generations=settings.group_size,
        max_completion_length=settings.completion_tokens,
        max_steps=settings.warmup + settings.repeats,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=checkpointing,
        bf16=bf16,
        use_cpu=settings.device == "cpu",
        dataloader_pin_memory=settings.device != "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **grpo_config(settings),
    )
    # accelerate takes a 4-bit model only where its map names the GPU by number
    options: dict[str, Any] = {"device_map": {"": 0 if settings.device == "cuda" else "cpu"}}
    if settings.quantization == "nf4":
        options["quantization_config"] = nf4_config(getattr(torch, settings.dtype))
    model = load_causal_lm(settings.model, dtype=getattr(torch, settings.dtype), **options)
    trainer = TimedTrainer(
        model,
        reward,
        config,
        train_dataset=Dataset.from_dict({"prompt": [str(index) for index in range(settings.prompts)]}),
        processing_class=load_tokenizer(settings.model),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.rows = prompt_ids(settings)
    trainer.parts = Parts(settings.device)
    trainer.end_with(ending_ids(settings, trainer.eos_token_ids, model.config.vocab_size))
    return trainer


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Score as our side does."""
    return even_share(completion_ids)


def steps(settings: Settings, micro_batch: int, checkpointing: bool) -> dict[str, Any]:
    """Return seconds of each phase, sampled tokens and peak memory of training steps, without the warm-up.

    Raises:
        RuntimeError: lengths are fixed, and a step sampled another number of tokens.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(settings, micro_batch, checkpointing, folder)
        watch = Stopwatch(trainer, settings.device)
        trainer.add_callback(watch)
        trainer.train()
    if settings.lengths == "fixed" and set(watch.tokens) != {settings.most_tokens}:
        raise RuntimeError(f"TRL sampled {watch.tokens} tokens, and must sample {settings.most_tokens}")
    kept = watch.steps[settings.warmup :]
    return {
        "seconds": {name: [step[name] for step in kept] for name in kept[0]},
        "tokens": watch.tokens[settings.warmup :],
        "peak_bytes": peak_memory(settings.device),
        "versions": {name: version(name) for name in ("trl", "torch", "transformers", "peft")} | vllm_version(settings),
    }


def parity(settings: Settings) -> dict[str, Tensor]:
    """Return what the gates compare: the tensors of ``our_side.Parity``."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(settings, settings.completions, False, folder)
        model = trainer.model
        for weight in adapters(model).values():  # TRL rounds the adapters of a 4-bit base to bf16
            weight.data = weight.data.float()
        set_adapters(model)
        completions = fixed_completions(settings, model.config.vocab_size)
        flat = [row for group in completions for row in group]
        prompts = [row for row in trainer.rows for _ in range(settings.group_size)]
        trainer._generate = lambda _: (prompts, flat, None, [""] * len(flat), None, {}, None, None)
        trainer.current_gradient_accumulation_steps = 1
        model.train()
        inputs = trainer._generate_and_score_completions([{"prompt": "0"}] * len(flat))
        ids, mask = (
            torch.cat([inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]], dim=1) for kind in ("ids", "mask")
        )
        width = inputs["completion_ids"].shape[1]
        with torch.no_grad():
            logprobs, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, mask, width)
        trainer._compute_loss(model, inputs).backward()
    shape = (settings.prompts, settings.group_size)
    found = {
        "logprobs": (logprobs * inputs["completion_mask"]).view(*shape, -1),
        "reference_logprobs": (inputs["ref_per_token_logps"] * inputs["completion_mask"]).view(*shape, -1),
        "advantages": inputs["advantages"].view(shape),
        "gradient": flat_gradient(model),
    }
    return {name: value.detach().float().cpu().contiguous() for name, value in found.items()}
