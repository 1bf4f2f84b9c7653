"""Where a figure comes from: date, commit, hardware and versions, as every result file states them."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lit_debias.support.precision import multiplies_bf16
from lit_debias.support.threads import SPIN_COUNT, SPINS


def provenance(packages: Iterable[str], hardware: str) -> dict[str, Any]:
    """Return date, commit (``-dirty`` where tracked files differ from it), hardware, and versions of ``packages``."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "hardware": hardware,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
    }


def commit(folder: Path = Path(__file__).parent) -> str:
    """Return the checkout's commit, or ``unknown`` outside a git checkout."""
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=False, cwd=folder)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def environment_of_others() -> dict[str, str]:
    """Return this environment for programs that are compared: their threads wait as GNU OpenMP has it by itself."""
    own = os.environ.get(SPINS) == str(SPIN_COUNT)
    return {**os.environ, SPINS: "300000"} if own else dict(os.environ)


def describe_device(device: str = "cpu") -> str:
    """Return the hardware in words; ``device`` is ``cpu`` or ``cuda``."""
    if device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        bf16 = " with bf16" if multiplies_bf16("cpu") else ""
        return f"{_cpu_name()}, {capability}{bf16}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    gpu = torch.cuda.get_device_properties(0)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}; {describe_device()}"


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} CPU ({names[0]})" if names else f"{platform.machine()} CPU"
