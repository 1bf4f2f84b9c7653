"""One step of optimiser and schedule on two small matrices, so that what cannot work fails before a model loads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from lightning import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_debias.errors import UserError

Options: TypeAlias = dict[str, Any]
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Recipe:
    """How a run is optimised, in plain values, to be kept in checkpoints."""

    optimizer: str
    """Class with its module."""
    options: Options
    """What its parameter group says: learning rate, weight decay, and so on."""
    schedule: str | None
    """Class of the schedule, None where there is none."""
    schedule_options: Options
    """What the schedule's state says before the first step."""


def rehearse(make_optimizer: OptimizerCallable, make_scheduler: LRSchedulerCallable | None, trainer: Trainer) -> Recipe:
    """Build optimiser and schedule, and step both once.

    Raises:
        UserError: one cannot be built or stepped, or does not suit the trainer; says why.
    """
    device = trainer.strategy.root_device
    # The shapes of a layer's LoRA weights: some optimisers take matrices alone.
    parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in ((4, 32), (32, 4))]
    with _reasons("optimizer"):
        optimizer = make_optimizer(parameters)
    options = _plain({name: value for name, value in optimizer.param_groups[0].items() if name != "params"})
    schedule: LRScheduler | ReduceLROnPlateau | None = None
    if make_scheduler is not None:
        with _reasons("lr_scheduler"):
            schedule = make_scheduler(optimizer)
    recipe = Recipe(
        optimizer=class_path(optimizer),
        options=options,
        schedule=None if schedule is None else class_path(schedule),
        schedule_options=_plain(schedule.state_dict()) if schedule else {},
    )
    _check_optimizer(optimizer, trainer)
    _step(optimizer, parameters)
    if schedule is not None:
        _check_schedule(schedule, trainer)
    return recipe


def class_path(thing: object) -> str:
    """Return an object's class with its module."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _check_optimizer(optimizer: Optimizer, trainer: Trainer) -> None:
    name = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:  # LBFGS
        raise UserError(_again(name))
    # Fused optimisers divide by the loss's scale themselves, after the gradient has been clipped.
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(f"optimizer: {name} undoes the loss scale after clipping; write fused: false")


def _step(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    before = [parameter.detach().clone() for parameter in parameters]
    moved = False

    def closure() -> None:  # Lightning passes one that does nothing
        nonlocal moved
        moved |= not all(torch.equal(*pair) for pair in zip(parameters, before, strict=True))

    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    with _reasons("optimizer"):
        optimizer.step(closure)  # type: ignore[arg-type]
    if moved:
        raise UserError(_again(type(optimizer).__name__))


def _again(name: str) -> str:
    return (
        f"optimizer: {name} asks for the loss again within a step, and a step's completions are sampled once; write an "
        "optimiser of one gradient a step, such as torch.optim.AdamW"
    )


def _check_schedule(schedule: LRScheduler | ReduceLROnPlateau, trainer: Trainer) -> None:
    name = type(schedule).__name__
    if isinstance(schedule, ReduceLROnPlateau):
        if not hasattr(schedule, "monitor"):
            raise UserError(
                f"lr_scheduler: {name} needs a metric to watch; write lightning.pytorch.cli.ReduceLROnPlateau with "
                "monitor: reward (and mode: max)"
            )
        return
    total = getattr(schedule, "total_steps", None)
    if total is not None and trainer.max_steps > total:
        raise UserError(
            f"lr_scheduler: {name} ends after total_steps={total}, and trainer.max_steps is {trainer.max_steps}; "
            "write at least as many"
        )
    with _reasons("lr_scheduler"):
        schedule.step()


@contextmanager
def _reasons(option: str) -> Iterator[None]:
    """Raise :class:`UserError` with the option and the library's reason, whatever the library raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise UserError(f"model.init_args.{option}: {type(error).__name__}: {reason}; change its init_args") from error


def _plain(values: Options) -> Options:
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN) and not isinstance(value, Tensor)
