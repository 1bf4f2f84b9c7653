"""The arms of the comparison with TRL, and what runs each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.processes import ArmError, check_trl, run_arm
from benchmarks.provenance import environment_of_others
from benchmarks.settings import Settings
from benchmarks.vllm_arms import GPUs, Pythons, Servers, why_not
from lit_debias.errors import UserError

OURS, LEAN, COMPILED, GRAPHED, RECOMPUTING, SERVED, COLOCATED = (
    "lit-debias",
    "lit-debias_lean",
    "lit-debias_compiled",
    "lit-debias_graphed",
    "lit-debias_recomputing",
    "lit-debias_vllm_server",
    "lit-debias_vllm_colocated",
)
TUNED, DEFAULT, TRL_SERVED, TRL_COLOCATED = "trl_tuned", "trl_default", "trl_vllm_server", "trl_vllm_colocated"
OUR_ARMS: dict[str, dict[str, Any]] = {
    OURS: {},
    LEAN: {"decoder": "lean"},
    COMPILED: {"torch_compile": True},
    GRAPHED: {"cuda_graph": True, "attention": "flex"},
    RECOMPUTING: {"gradient_checkpointing": True},
    SERVED: {"engine": "server"},
    COLOCATED: {"engine": "colocated"},
}
TRL_ARMS: dict[str, dict[str, Any]] = {
    TUNED: {},
    DEFAULT: {},
    TRL_SERVED: {"engine": "server"},
    TRL_COLOCATED: {"engine": "colocated"},
}
ARMS = {**OUR_ARMS, **TRL_ARMS}
"""What each changes in the settings."""
DEFAULT_MICRO_BATCH = 8


@dataclass
class Arms:
    """Runs arms in processes of their own."""

    trl_python: str
    minutes: float
    """Limit of one process, and of the start of a server."""
    vllm_python: str | None = None
    """None is TRL's."""
    gpus: GPUs = field(default_factory=GPUs)
    logs: Path | None = None
    """Folder that gets what processes say."""
    micro_batches: dict[tuple[str, str], int] = field(default_factory=dict)
    """What fitted, by settings and arm."""

    @property
    def pythons(self) -> Pythons:
        """Whose environments the arms run in."""
        return Pythons(sys.executable, self.trl_python, self.vllm_python or self.trl_python)

    def check(self, arms: Sequence[str], settings: Settings) -> None:
        """Raise :class:`UserError` where an arm cannot run here."""
        for arm in arms:
            if arm in TRL_ARMS:
                check_trl(self.trl_python)
            reason = self.why_not(arm, settings)
            if reason is not None:
                raise UserError(f"--arms {arm}: {reason}; leave it out")

    def why_not(self, arm: str, settings: Settings) -> str | None:
        """Return why an arm cannot run here, or None."""
        return why_not(side_of(arm), replace(settings, **ARMS[arm]), self.pythons, self.gpus)

    def parity(self, arm: str, settings: Settings) -> dict[str, Tensor]:
        """Return what the gates compare."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "tensors.safetensors"
            self._run(arm, self.command(arm, "parity", settings, out))
            return load_file(out)

    def steps(self, arm: str, settings: Settings) -> dict[str, Any]:
        """Return seconds by phase, tokens and peak memory of one process; halves TRL's micro-batch until it fits."""
        key, told = (settings.name, arm), replace(settings, **ARMS[arm])
        size = self.micro_batches.get(key) or self._first_micro_batch(arm, settings.name, told)
        while size >= 1:
            found = self._steps_with(arm, told, size)
            if not found.get("out_of_memory"):
                self.micro_batches[key] = size
                gpus = 1 + (told.engine == "server" and self.gpus.several)
                return {**found, "gpus": gpus if told.device == "cuda" else 0}
            size = 0 if arm in OUR_ARMS or size % 2 else size // 2
        raise ArmError("out of memory")

    def _steps_with(self, arm: str, told: Settings, size: int) -> dict[str, Any]:
        """Run one process; its server, if it needs one, is new: TRL's takes weights from one trainer only."""
        servers = Servers(self.pythons, self.minutes, self.gpus, self.logs)
        with tempfile.TemporaryDirectory() as folder, servers.for_arm(arm, side_of(arm), told) as served:
            out = Path(folder) / "steps.json"
            self._run(arm, [*self.command(arm, "steps", served, out), *trl_options(arm, size)])
            found: dict[str, Any] = json.loads(out.read_text())
        return found

    def _first_micro_batch(self, arm: str, name: str, told: Settings) -> int:
        alone = self.micro_batches.get((name, TUNED))
        if alone is not None and told.engine != "local":
            return alone  # beside vLLM there is no more room
        return first_micro_batch(arm, told)

    def command(self, arm: str, task: str, settings: Settings, out: Path) -> list[str]:
        """Return the command line of one process."""
        told, side = replace(settings, **ARMS[arm]), side_of(arm)
        python = self.pythons.trainer(side, told.engine)
        given = json.dumps(asdict(told))
        return [python, "-m", "benchmarks.arm", task, "--side", side, "--settings", given, "--out", str(out)]

    def _run(self, arm: str, command: Sequence[str]) -> None:
        own = environment_of_others() if arm in TRL_ARMS else os.environ
        run_arm(command, self.minutes, self.gpus.environment(own), self.logs and self.logs / f"{arm}.log")


def side_of(arm: str) -> str:
    """Return the module that does an arm's work."""
    return "our_side" if arm in OUR_ARMS else "trl_side"


def first_micro_batch(arm: str, settings: Settings) -> int:
    """Return the completions in one pass that an arm begins with: all, or TRL's default where that divides them."""
    if arm == DEFAULT and settings.completions % DEFAULT_MICRO_BATCH == 0:
        return DEFAULT_MICRO_BATCH
    return settings.completions


def trl_options(arm: str, micro_batch: int) -> list[str]:
    """Return what tells an arm of TRL from another."""
    if arm in OUR_ARMS:
        return []
    return ["--micro-batch", str(micro_batch), *(["--checkpointing"] if arm == DEFAULT else [])]


def runner_of(options: argparse.Namespace, device: str, logs: Path | None = None) -> Arms:
    """Return what runs arms on this machine, with the options of :func:`add_pythons`."""
    gpus = GPUs.shared_out(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Arms(
        options.trl_python,
        getattr(options, "process_minutes", 1.0),
        options.vllm_python,
        gpus if device == "cuda" else GPUs(),
        logs,
    )


def logs_of(out: Path) -> Path:
    """Return the folder, made, that gets what the arms of a result file say."""
    folder = out.with_name(f"{out.stem}_logs")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def add_pythons(result: argparse.ArgumentParser) -> None:
    """Add the options that name other environments."""
    result.add_argument("--trl-python", default=sys.executable, help="Python that can import trl (default: this one)")
    result.add_argument("--vllm-python", help="Python that can import vllm (default: TRL's)")
