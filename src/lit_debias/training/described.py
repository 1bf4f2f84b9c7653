"""How an adapter was trained, in plain values, for its model card; no path and no secret is among them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lit_debias.aggregators.weighted import Weighing
from lit_debias.export.record import data_record
from lit_debias.support.text import counted

if TYPE_CHECKING:
    from lit_debias.training.adapter_module import AdapterModule
    from lit_debias.training.grpo import GRPO


def of_module(module: AdapterModule) -> dict[str, Any]:
    """Return what is true of every module: algorithm, steps, data, ``settings``."""
    trainer = module._trainer  # None where nothing has trained it yet
    return {
        "algorithm": type(module).__name__,
        "steps": trainer.global_step if trainer else 0,
        "data": data_record(getattr(trainer, "datamodule", None), getattr(module, "columns", ())),
        "settings": _optimiser(module) | _seeds(module) | _anchor(module),
    }


def _optimiser(module: AdapterModule) -> dict[str, str]:
    if module.recipe is None:
        return {}
    name, rate = module.recipe.optimizer.rpartition(".")[2], module.recipe.options.get("lr")
    return {"optimiser": f"{name}, learning rate {rate}"}


def _anchor(module: AdapterModule) -> dict[str, str]:
    if module.anchor is None:
        return {}
    return {"anchor": f"{counted(module.anchor.passages, 'passage')} of prose a step, weight {module.anchor.weight:g}"}


def _seeds(module: AdapterModule) -> dict[str, str]:
    """Return every seed that a run has, beside the option that sets it; the first one draws the adapter's weights."""
    data = getattr(module._trainer, "datamodule", None)
    seeds = {
        "seed_everything": os.environ.get("PL_GLOBAL_SEED"),
        "model": getattr(module, "seed", None),
        "data": getattr(data, "seed", None),
    }
    said = ", ".join(f"{seed} ({option})" for option, seed in seeds.items() if seed is not None)
    return {"seed": said} if said else {}


def of_grpo(module: GRPO) -> dict[str, Any]:
    """Return ``settings`` and ``rewards`` of GRPO; weights are those at the end."""
    settings = {
        "aggregator": type(module.aggregator).__name__,
        "loss": f"{type(module.loss).__name__} with KL penalty {module.loss.beta:g}",
        "group size": module.group_size,
        "temperature": f"{module.engine.temperature:g}",
        "longest completion": counted(module.engine.max_new_tokens, "token"),
    }
    if module.correction is not None:
        settings["importance correction"] = f"{module.correction.level}, {module.correction.beyond}"
    if module.dynamic_sampling is not None:
        settings["dynamic sampling"] = f"up to {counted(module.dynamic_sampling.max_resamples, 'resample')}"
    aggregator = module.aggregator
    weights = aggregator.weights(module.rollout_step) if isinstance(aggregator, Weighing) else {}
    rewards = [
        {"name": name, "class": type(reward).__name__, "weight": f"{weights[name]:g}" if name in weights else "-"}
        for name, reward in module.rewards.rewards.items()
    ]
    return {"settings": _optimiser(module) | settings | _seeds(module), "rewards": rewards}
