"""``lit-debias ray``: fit on the workers of a Ray cluster, which are started again where one fails."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from lit_debias.cli.parser import config_files
from lit_debias.cli.ray_servers import SERVERS, Servers, serving
from lit_debias.errors import LostProcessError, UserError
from lit_debias.support.files import read_yaml
from lit_debias.support.text import counted
from lit_debias.training.machines import LAUNCH

OPTIONS = (
    '--trainer.strategy={"class_path": "ray.train.lightning.RayDDPStrategy"}',
    '--trainer.plugins+={"class_path": "ray.train.lightning.RayLightningEnvironment"}',
    "--trainer.devices=auto",
    "--trainer.num_nodes=1",
)
"""What a run on Ray's workers says of them; how many there are, and where, it learns from Ray."""
NAMED = "ray://servers"
"""What an engine calls the servers that this command has started."""


def fit_on_ray(
    run: str,
    workers: int = 1,
    resources: dict[str, float] | None = None,
    restarts: int = 3,
    address: str | None = None,
    storage: str | None = None,
    timeout: int = 1800,
    options: list[str] | None = None,
    servers: Servers | None = None,
) -> int:
    """Fit a configuration on workers of Ray Train, and start them again from the newest checkpoint where one fails.

    Args:
        run: Configuration of ``lit-debias fit``; it, and the paths in it, count from this folder on every machine.
        workers: Processes that train together, one a device.
        resources: What each of them takes, such as ``{GPU: 1, CPU: 8}``; by default one CPU.
        restarts: How often all workers are started again after one has failed; -1 is without end.
        address: Of the cluster, or ``auto`` for the one that this machine belongs to; by default one is started here.
        storage: Folder for Ray's own records, which all machines share; by default Ray's ``~/ray_results``.
        timeout: Seconds that a worker waits for the others: more than their longest step differs by.
        options: Further options of ``fit``, such as ``[--ckpt_path, last]``.
        servers: Servers that the run samples with, started before it and ended after it.

    Returns:
        The exit code of ``fit``.

    Raises:
        UserError: Ray is not installed or cannot be reached, a number makes no sense, or workers failed more often than
            ``restarts``; or the run shares its base out.
    """
    if find_spec("ray") is None:
        raise UserError("Ray is not installed; pip install 'lit-debias[ray]'")
    if workers < 1 or restarts < -1 or timeout < 1:
        raise UserError(f"ray: workers={workers}, restarts={restarts}, timeout={timeout}; write at least 1, -1 and 1")
    if not Path(run).is_file():
        raise UserError(f"there is no configuration {run}; write a file for `lit-debias fit`")
    arguments = ["fit", "-c", run, *OPTIONS, *(options or [])]
    _check_use(arguments, servers)
    _check_strategy(run, options or [])
    _connect(address)
    taken = resources or {"CPU": 1}
    local = _is_local(address)
    if local:
        _check_room([taken] * workers + ([servers.taken] * servers.number if servers else []))
    with serving(servers, os.getcwd(), local) as names:
        work = {"folder": os.getcwd(), "arguments": arguments, "launch": f"Ray {uuid4().hex}", "servers": names}
        return _train(work, workers, taken, restarts, storage, timeout)


def _check_use(arguments: list[str], servers: Servers | None) -> None:
    """Check that servers are used where there are some: nobody would see that they idle."""
    texts = [*arguments, *(file.read_text(errors="replace") for file in config_files(arguments))]
    if servers is not None and not any(NAMED in text for text in texts):
        raise UserError(f'ray: no engine samples with the servers; write urls: ["{NAMED}"] under VLLMEngine')


def _check_room(wanted: list[dict[str, float]]) -> None:
    import ray

    there = ray.cluster_resources()
    for what in sorted({name for one in wanted for name in one}):
        much = sum(one.get(what, 0) for one in wanted)
        if much > there.get(what, 0):
            raise UserError(
                f"ray: workers and servers take {much:g} {what}, and this machine has {there.get(what, 0):g}; write "
                "fewer, or less under resources"
            )


def _is_local(address: str | None) -> bool:
    """Return whether Ray is started here, for this run alone; jobs of a cluster find its address in a variable."""
    return address == "local" or (address is None and not os.environ.get("RAY_ADDRESS"))


def _check_strategy(run: str, options: list[str]) -> None:
    """Refuse a run that shares its base out, as :data:`OPTIONS` would quietly give each worker all of it."""
    config = read_yaml(Path(run), "configuration")
    trainer = config.get("trainer") if isinstance(config, dict) else None
    if "ModelParallelStrategy" in f"{trainer} {options}":
        raise UserError(
            f"{run}: ModelParallelStrategy shares the base out, and Ray's workers train under DDP, each with all of "
            "it; start lit-debias fit with torchrun instead (docs/machines.md)"
        )


def _connect(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray tells its makers of the cluster that is started here
    try:
        ray.init(address=address, include_dashboard=False if _is_local(address) else None)
    except Exception as error:  # Ray's own are of all kinds, where a machine is too busy to start it too
        raise UserError(f"ray: address '{address}': {' '.join(str(error).split())[:200]}") from error


def _train(
    work: dict[str, Any], workers: int, resources: dict[str, float], restarts: int, storage: str | None, timeout: int
) -> int:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        fit_here,
        train_loop_config=work,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu="GPU" in resources, resources_per_worker=resources),
        torch_config=TorchConfig(timeout_s=timeout),
        run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=restarts)),
    )
    try:
        found = trainer.fit()
    except TrainingFailedError as error:
        raise UserError(
            f"ray: the workers failed after {counted(restarts, 'restart')}: {_first_line(error)}"
        ) from error
    return int(found.return_value)


def fit_here(work: dict[str, Any]) -> int:
    """Run ``fit`` on one worker, and return its exit code; after an exception Ray starts all workers again."""
    from lit_debias.cli.main import main

    os.environ[LAUNCH], os.environ[SERVERS] = work["launch"], " ".join(work["servers"])
    code = _in_folder(Path(work["folder"])) or main(work["arguments"])
    if code == LostProcessError.code:
        raise RuntimeError("a worker has lost the others")
    return code


def _in_folder(folder: Path) -> int:
    if not folder.is_dir():
        print(f"lit-debias: error: this machine has no folder {folder}; share it, or copy it to here", file=sys.stderr)
        return UserError.code
    os.chdir(folder)
    return 0


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
