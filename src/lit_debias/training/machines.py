"""Processes that a launcher has started on one machine or several: they meet early, and are given the same."""

from __future__ import annotations

import inspect
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from lit_debias.data.module import TableDataModule
from lit_debias.data.sources import ORIGIN
from lit_debias.errors import UserError
from lit_debias.models.layers import weights_digest
from lit_debias.policy.policy import Policy
from lit_debias.rewards.identity import UnknownIdentityError
from lit_debias.rewards.reward import Reward
from lit_debias.support import distributed
from lit_debias.support.hashing import sha256
from lit_debias.support.precision import dtype_of
from lit_debias.support.threads import place

if TYPE_CHECKING:
    from lit_debias.training.adapter_module import AdapterModule

LAUNCH = "LIT_DEBIAS_LAUNCH"
"""Environment variable of a launcher that restarts what fails: a name of its own for each run."""


def meet(trainer: Trainer) -> None:
    """Let the processes of torchrun, SLURM or Ray find each other now: they agree on the checkpoint to resume from.

    Lightning does it once a fit has begun. Processes that Lightning itself starts are not there before.

    Raises:
        UserError: the trainer and the launcher count machines or devices differently.
    """
    strategy = trainer.strategy
    environment = getattr(strategy, "cluster_environment", None)
    if not isinstance(strategy, DDPStrategy | ModelParallelStrategy):
        return
    if environment is None or isinstance(environment, LightningEnvironment):
        return
    try:
        environment.validate_settings(num_devices=strategy.num_processes, num_nodes=strategy.num_nodes)
    except ValueError as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    strategy.setup_environment()


def launch() -> str | None:
    """Return a name that a launcher's restarts of a run share, and no other run; None where nobody restarts it."""
    if LAUNCH in os.environ:
        return os.environ[LAUNCH]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun {place().machine} {os.getppid()}"
    job = os.environ.get("SLURM_JOB_ID")
    return job and f"SLURM {job}"


def restarted() -> bool:
    """Return whether a launcher may have started this run before: only SLURM lets one job hold several runs."""
    given = {LAUNCH, "TORCHELASTIC_RUN_ID"} & {*os.environ}
    return bool(given) or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def check_machines(module: AdapterModule, rewards: Mapping[str, Reward]) -> None:
    """Refuse to start where configuration, data or rewards differ between ranks. Every rank must call it.

    Raises:
        UserError: says what differs, and between which machines.
    """
    if distributed.is_distributed():
        distributed.check_alike(dict(_given(module, rewards)))


def _given(module: AdapterModule, rewards: Mapping[str, Reward]) -> Iterator[tuple[str, Any]]:
    trained, recipe = module.training_record(), module.policy_recipe
    yield from trained["settings"].items()
    yield from _engine(getattr(module, "engine", None))
    yield from ((f"the policy's {name}", getattr(recipe, name)) for name in ("rank", "alpha", "dropout", "targets"))
    yield "the policy's quantization", recipe.quantization
    yield "the policy's dtype", str(dtype_of(recipe.precision, module.trainer.strategy.root_device))
    data = getattr(module.trainer, "datamodule", None)
    if isinstance(data, TableDataModule):
        for role, rows in data.rows.items():
            content = None if rows is None else json.dumps(rows.remove_columns(ORIGIN).to_dict(), default=str)
            yield f"the content of the {role} data", content and sha256([content])[:12]
    for name, reward in rewards.items():
        try:
            yield f"the content of reward '{name}'", sha256([json.dumps(reward.identity(), sort_keys=True)])[:12]
        except UnknownIdentityError:
            yield f"reward '{name}'", type(reward).__name__


def _engine(engine: Any) -> Iterator[tuple[str, Any]]:
    """Yield the class of a rollout engine and the options that it keeps under their own names."""
    if engine is None:
        return
    yield "the engine", type(engine).__name__
    for name in inspect.signature(type(engine)).parameters:
        value = getattr(engine, name, None)
        if _plain(value):
            yield f"the engine's {name}", value


def _plain(value: Any) -> bool:
    """Return whether a value is the same text on each machine: numbers, texts, and lists and mappings of them."""
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def check_base(policy: Policy) -> None:
    """Refuse to start where the frozen weights differ between ranks. Every rank must call it.

    Weights that ranks share out were compared when they were loaded.

    Raises:
        UserError: says between which machines.
    """
    if distributed.is_distributed() and not policy.is_sharded:
        distributed.check_alike({f"the weights of model '{policy.source}'": weights_digest(policy)})


def lost(error: BaseException) -> str | None:
    """Return in words that another process is gone or late, None where the error is something else."""
    text = " ".join(str(error).split())
    of_network = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
    if not of_network:
        return None
    who = f"process {getattr(rank_zero_only, 'rank', 0)} (on {socket.gethostname()})"
    return (
        f"{who} has lost the others, or waited too long for them ({text:.160}); see what they say. Start all of them "
        "again with --ckpt_path last; where a step takes longer than 30 minutes, write a longer timeout in "
        "trainer.strategy"
    )
