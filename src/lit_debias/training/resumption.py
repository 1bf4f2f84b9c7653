"""Whether a checkpoint fits the configuration that resumes it; what does not is refused before a model loads."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning import Trainer

from lit_debias.errors import UserError
from lit_debias.support import distributed
from lit_debias.support.text import counted
from lit_debias.training.averaging import AdapterAveraging
from lit_debias.training.checkpoints import RECORD
from lit_debias.training.machines import launch
from lit_debias.training.rehearsal import Recipe
from lit_debias.types import Experience

START_ANEW = "start a new run from its adapter (model.init_args.policy.init_args.adapter)"


def record(module: str, recipe: Recipe | None) -> dict[str, Any]:
    """Return what a run says of itself: class of the module, and how it is optimised."""
    return {"module": module, "launch": launch()} | (asdict(recipe) if recipe else {})


def check_checkpoint(checkpoint: Mapping[str, Any], module: str, recipe: Recipe, trainer: Trainer) -> None:
    """Refuse to go on training from a checkpoint of another kind of run.

    Args:
        checkpoint: What Lightning saved.
        module: Class path of the module that resumes it.
        recipe: How it optimises.
        trainer: The trainer, with its callbacks.

    Raises:
        UserError: another module, optimiser or schedule saved it, or averages that nobody goes on with; or it holds
            nothing to train on from.
    """
    was: Mapping[str, Any] = checkpoint.get(RECORD, {})
    for what, now in {"module": module, "optimizer": recipe.optimizer, "schedule": recipe.schedule}.items():
        check_same(what, was.get(what, now), now)
    if "optimizer_states" not in checkpoint:
        raise UserError(
            "the checkpoint holds weights alone (save_weights_only), so no run can go on from it; resume from a whole "
            f"one, or {START_ANEW}"
        )
    saved = {name for state in checkpoint["optimizer_states"] for name in state["param_groups"][0]}
    odd = (saved ^ {*recipe.options}) - {"params", "initial_lr"}
    if RECORD not in checkpoint and saved and odd:  # from before checkpoints said which optimiser they have
        raise UserError(
            f"the checkpoint is not of {recipe.optimizer} (see '{min(odd)}'); write its own, or {START_ANEW}"
        )
    done = int(checkpoint["global_step"])
    if 0 <= trainer.max_steps < done:
        raise UserError(
            f"the checkpoint has {counted(done, 'optimiser step')} behind it, and trainer.max_steps is "
            f"{trainer.max_steps}, over the whole run; write more"
        )
    averaged = any(isinstance(callback, AdapterAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if "averaging_state" in checkpoint and not averaged:
        raise UserError(
            "the checkpoint's weights are an average over steps; resume with the callback that averaged them, such as "
            f"EMAWeightAveraging, or {START_ANEW}"
        )


def check_same(what: str, was: str | None, now: str | None) -> None:
    """Raise :class:`UserError` where a checkpoint's class is another one than the configuration's."""
    if was != now:
        raise UserError(
            f"the checkpoint is of another {what}: {was or 'none'}, and the configuration says {now or 'none'}; resume "
            f"with the same, or {START_ANEW}"
        )


def say_differences(checkpoint: Mapping[str, Any], recipe: Recipe, trainer: Trainer) -> None:
    """Say on stderr which options of optimiser and schedule a resumed run keeps, where the configuration has others."""
    was: Mapping[str, Any] = checkpoint.get(RECORD, {})
    found = differences(was.get("options", {}), recipe.options)
    found += differences(was.get("schedule_options", {}), recipe.schedule_options)
    if found and trainer.is_global_zero:
        print(
            f"lit-debias: resuming with the checkpoint's {', '.join(found)}; for other values, {START_ANEW}",
            file=sys.stderr,
        )


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return ``name value (not value)`` for options that are in both and differ."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return [f"{k} {was[k]} (not {now[k]})" for k in now if k in was and plain(was[k]) != plain(now[k])]


def gathered(experience: Experience | None) -> list[dict[str, Any] | None]:
    """Return what a checkpoint keeps of the rollouts of all ranks (collective)."""
    return distributed.gather_objects(None if experience is None else experience.state_dict())


def own_experience(experiences: list[dict[str, Any] | None], device: torch.device) -> Experience | None:
    """Return what this rank had of what :func:`gathered` returned.

    Raises:
        UserError: other ranks have saved it than there are now.
    """
    if not any(experiences):
        return None
    if len(experiences) != distributed.world_size():
        raise UserError(
            f"the checkpoint holds a rollout that {counted(len(experiences), 'process has', 'processes have')} yet "
            f"to train on, and {distributed.world_size()} resume it; use as many, or a checkpoint from the end of "
            "an on-policy step"
        )
    mine = experiences[distributed.rank()]
    return Experience.from_state_dict(mine, device) if mine else None
