"""Which of the trainer's options suit a module that trains the policy's adapter; the others are refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.plugins.precision import Precision as PrecisionPlugin
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.training.sharding import ShardedBase

CALLBACKS = {
    StochasticWeightAveraging: "it moves the learning rate by epochs, which manual optimisation does not step; write "
    "EMAWeightAveraging with a decay, or WeightAveraging for the plain mean over all steps",
    GradientAccumulationScheduler: "a step takes data.init_args.batch_size prompts at once; write that, and "
    "model.init_args.micro_batch_tokens for what is in memory together",
    LearningRateFinder: "a loss over changing completions finds none; write model.init_args.optimizer.init_args.lr",
    BatchSizeFinder: "the batch size is part of the algorithm; write data.init_args.batch_size, and "
    "model.init_args.micro_batch_tokens for what is in memory together",
    ModelPruning: "it prunes the weights of whole layers, and the adapter alone trains; leave it out",
    BaseFinetuning: "it chooses what trains, and that is the adapter; write model.init_args.policy.init_args.targets",
    SpikeDetection: "it leaves out batches by a loss, and a step has none to return; write max_grad_norm",
}
"""Callbacks of Lightning that need its automatic optimisation, and what to write instead."""


def check_pictures(recipe: QLoRAPolicy, data: Any, engine: RolloutEngine | None) -> None:
    """Refuse pictures that nobody would see, before a model is loaded.

    Args:
        recipe: Of the policy.
        data: The trainer's data module, if there is one.
        engine: What samples, if something does.

    Raises:
        UserError: says who does not go with whom, and what to write instead.
    """
    reads, shown = recipe.reads_pictures, getattr(data, "images", None) is not None
    if shown and not reads:
        raise UserError(
            f"policy: {type(recipe).__name__} reads no pictures, and data.init_args.images names some; write "
            "class_path: VLMPolicy with a model that reads them, or leave images out"
        )
    if reads and isinstance(data, PromptDataModule) and not shown:
        raise UserError(
            f"policy: {type(recipe).__name__} reads pictures, and the data names none; write data.init_args.images: "
            "{column: images, root: FOLDER}, or class_path: QLoRAPolicy with a model of texts"
        )
    if reads and engine is not None and not engine.reads_pictures:
        raise UserError(
            f"engine: {type(engine).__name__} samples without the pictures of {type(recipe).__name__}; write "
            "class_path: LocalEngine"
        )


def check_options(trainer: Trainer) -> None:
    """Refuse what Lightning's automatic optimisation does, and what shards a model; before anything is set up.

    Raises:
        UserError: says the option, and what to write instead.
    """
    check_strategy(trainer)
    for problem in _problems(trainer):
        raise UserError(problem)


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that split the model in other ways, or start processes from this one; before any starts.

    Raises:
        UserError: says which to write.
    """
    strategy = trainer.strategy
    name = getattr(strategy, "strategy_name", None) or type(strategy).__name__
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ShardedBase):
        raise UserError(
            f"trainer.strategy: {name} splits the model over devices, and only the adapter trains here; write auto or "
            "ddp, or ModelParallelStrategy for a model larger than one device"
        )
    if getattr(strategy, "_start_method", "popen") not in (None, "popen"):  # spawn, fork
        raise UserError(
            "trainer.strategy: processes that are started from a running one would hand whole models back to it; write "
            "ddp, which runs the command once for each device"
        )


def _problems(trainer: Trainer) -> Iterator[str]:
    if trainer.state.fn != "fit":
        return
    if trainer.gradient_clip_val:
        yield (
            f"trainer.gradient_clip_val is for automatic optimisation; write model.init_args.max_grad_norm: "
            f"{trainer.gradient_clip_val} instead"
        )
    if trainer.gradient_clip_algorithm not in (None, "norm"):
        yield "trainer.gradient_clip_algorithm: gradients are clipped by norm; leave it out, and write max_grad_norm"
    if trainer.accumulate_grad_batches != 1:
        yield f"trainer.accumulate_grad_batches: {CALLBACKS[GradientAccumulationScheduler]}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, reason in CALLBACKS.items():
            if isinstance(callback, kind):
                yield f"trainer.callbacks: {type(callback).__name__} does not work here: {reason}"


def check_precision(trainer: Trainer, dtype: torch.dtype) -> None:
    """Refuse a precision of the trainer that is not the policy's own ``dtype``.

    What counts is what the plugin does, not its name: whether it converts weights, or puts steps under an autocast.

    Raises:
        UserError: says how to write that type as the policy's.
    """
    plugin = trainer.precision_plugin
    if type(plugin).convert_module is PrecisionPlugin.convert_module:
        with plugin.forward_context():
            default, computes_in = torch.get_default_dtype(), autocast_dtype(trainer.strategy.root_device)
        if default == torch.float32 and computes_in in (None, dtype):
            return
    raise UserError(
        f"trainer.precision: '{plugin.precision}' is not how the policy computes, whose type is "
        f"{str(dtype).removeprefix('torch.')}; write trainer.precision: 32-true, and "
        "model.init_args.policy.init_args.dtype: bfloat16 or float32 (LoRA weights are float32 in either)"
    )


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type of the autocast that is on for a device, None where there is none."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
