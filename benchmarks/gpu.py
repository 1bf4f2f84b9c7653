"""All benchmarks of one GPU in a single call: parity, rollout, update, step, and TRL and vLLM beside them.

Every item is a process of its own with its own limit; what does not fit into the time that is left is skipped, and
``gpu.json`` says so. Shapes are Qwen2.5's, 0.5B in bf16 and 7B with an NF4 base, with random weights; vLLM's items have
7B in bf16 too.

    python -m benchmarks.gpu --out runs/gpu --trl-python .venv-trl/bin/python
    python -m benchmarks.gpu --out runs/gpu --trl-python .venv-trl/bin/python --only vllm_large --minutes 9
    python -m benchmarks.gpu --out runs/gpu --device cpu --shape tiny                # does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console

from benchmarks import report
from benchmarks.arms import (
    ARMS,
    COLOCATED,
    GRAPHED,
    OURS,
    SERVED,
    TRL_COLOCATED,
    TRL_SERVED,
    TUNED,
    Arms,
    add_pythons,
    runner_of,
)
from benchmarks.options import device_of
from benchmarks.processes import check_trl, end_on_terminate, started
from benchmarks.settings import Settings
from benchmarks.shapes import SHAPES
from lit_debias.errors import UserError

BF16, NF4 = "none", "nf4"
FOR_VLLM = {"tiny": "13m"}
"""Instead of shapes whose heads are too narrow for vLLM."""


@dataclass(frozen=True)
class Item:
    """One benchmark."""

    name: str
    arguments: tuple[str, ...]
    """Module and its arguments, without ``--out`` and ``--arms``."""
    seconds: float
    """An estimate of one H100, without the arms."""
    limit: float
    """Seconds after which it is stopped."""
    trl: bool = False
    """Whether it needs TRL."""
    arms: Mapping[str, float] = field(default_factory=dict)
    """Arms of the comparison with TRL, and the seconds of each."""
    quantization: str = NF4
    """Of the base that the arms train."""
    python: str = sys.executable

    @property
    def vllm(self) -> bool:
        """Whether it is about vLLM."""
        return any(map(with_vllm, self.arms))


def with_vllm(arm: str) -> bool:
    """Return whether an arm samples with vLLM."""
    return "engine" in ARMS[arm]


def items(options: argparse.Namespace, device: str, shapes: Path) -> Iterator[Item]:
    """Yield the benchmarks, what matters most first."""
    yield Item("trl_parity", ("trl_parity",), 20, 150, trl=True, python=options.trl_python)
    small, large = ("0.5b", "7b") if options.shape is None else (options.shape, options.shape)
    sizes = {"prompts": 8, "group-size": 8, "prompt-tokens": 128, "completion-tokens": 128}
    if options.shape == "tiny":
        sizes = {"prompts": 1, "group-size": 2, "prompt-tokens": 8, "completion-tokens": 4}
    step = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    common = (*step, "--device", device, "--shape-folder", str(shapes))
    on_gpu = device == "cuda"  # what a CPU has not, it leaves out
    graphed, flex = (("--cuda-graph",), ("--attention", "flex")) if on_gpu else ((), ())
    shapes_of = {"small": ("--shape", small, "--quantization", BF16), "large": ("--shape", large)}
    versus = Versus(options, common)
    graphs = {GRAPHED: 20.0} if on_gpu else {}
    yield versus.item("vs_trl_small", small, BF16, 20, {OURS: 10} | graphs | {TUNED: 20}, trl=True)
    yield versus.item("vllm_small", small, BF16, 25, {OURS: 12, SERVED: 60, TRL_COLOCATED: 65, **LATER})
    yield versus.item("vs_trl_large", large, NF4, 50, {OURS: 25} | graphs | {TUNED: 45}, trl=True)
    few = (*common, "--repeats", "3")
    if on_gpu:
        yield Item("rollout_plain_small", ("rollout", *shapes_of["small"], *few), 20, 90)
        yield Item("update_plain_small", ("update", *shapes_of["small"], *few), 20, 90)
    for label, model in shapes_of.items():
        scale = 1 if label == "small" else 2
        yield Item(f"rollout_{label}", ("rollout", *model, *few, *graphed), 20 * scale, 90)
        yield Item(f"update_{label}", ("update", *model, *few, *flex), 30 * scale, 120)
        yield Item(f"step_{label}", ("step", *model, *few, *graphed, *flex), 20 * scale, 90)
    yield Item("rollout_compiled_small", ("rollout", *shapes_of["small"], *common, "--torch-compile"), 60, 200)
    alone = {OURS: 35, SERVED: 100, TUNED: 70, TRL_COLOCATED: 120}
    yield versus.item("vllm_large", large, BF16, 70, alone | {arm: 2 * seconds for arm, seconds in LATER.items()})
    yield versus.item("vllm_large_nf4", large, NF4, 0, {OURS: 40, SERVED: 100, COLOCATED: 110})


LATER = {COLOCATED: 60.0, TRL_SERVED: 70.0}
"""Arms that few machines can run, with the seconds of the small model."""


@dataclass(frozen=True)
class Versus:
    """Makes items of ``benchmarks.vs_trl``."""

    options: argparse.Namespace
    common: tuple[str, ...]

    def item(
        self, name: str, shape: str, quantization: str, seconds: float, arms: Mapping[str, float], trl: bool = False
    ) -> Item:
        """Return one; an arm, or the start of its server, may take a third of the item's limit."""
        if any(map(with_vllm, arms)):
            shape = FOR_VLLM.get(shape, shape)
        limit = max(200, 2 * (seconds + sum(arms.values())))
        pythons = ["--trl-python", self.options.trl_python]
        if self.options.vllm_python is not None:
            pythons += ["--vllm-python", self.options.vllm_python]
        model = ("--shape", shape, "--quantization", quantization)
        once = ("--repeats", "2", "--rounds", "1", "--process-minutes", f"{limit / 180:.1f}")
        return Item(name, ("vs_trl", *model, *self.common, *pythons, *once), seconds, limit, trl, arms, quantization)


class Run:
    """Runs items until the time is spent; writes ``gpu.json`` anew after every one."""

    def __init__(self, out: Path, minutes: float, device: str, trl: str | None, runner: Arms) -> None:
        self.out, self.device, self.trl, self.runner = out, device, trl, runner
        self.deadline = time.monotonic() + 60 * minutes
        self.report: dict[str, Any] = {"benchmark": "gpu", **report.origin(device), "minutes": minutes, "items": []}

    def one(self, item: Item) -> dict[str, Any]:
        """Run one item, or say why not, and write it down."""
        skipped = self._cannot_run(item)
        arms = [arm for arm in item.arms if arm not in skipped]
        arguments = (*item.arguments, *(("--arms", *arms) if arms else ()))
        entry: dict[str, Any] = {"name": item.name, "command": f"python -m benchmarks.{' '.join(arguments)}"}
        reason = self._why_not(item, arms, skipped)
        if reason is not None:
            entry |= {"status": "skipped", "reason": reason}
        else:
            entry |= self._run(item, arguments, min(item.limit, self._left))
        if item.arms:
            entry["arms"] = {arm: f"skipped: {why}" for arm, why in skipped.items()}
            entry["arms"] |= {arm: self._outcome(item, arm, entry["status"]) for arm in arms}
        self.report["items"].append(entry)
        report.write(self.out / "gpu.json", self.report)
        return entry

    @property
    def _left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def _cannot_run(self, item: Item) -> dict[str, str]:
        """Return the arms that cannot run here, and why."""
        settings = Settings(device=self.device, quantization=item.quantization)  # type: ignore[arg-type]
        found = {arm: self.runner.why_not(arm, settings) for arm in item.arms}
        return {arm: reason for arm, reason in found.items() if reason is not None}

    def _why_not(self, item: Item, arms: Sequence[str], skipped: Mapping[str, str]) -> str | None:
        """Return why an item is left out, or None."""
        if item.trl and self.trl is not None:
            return self.trl
        if item.vllm and not any(map(with_vllm, arms)):
            return next(reason for arm, reason in skipped.items() if with_vllm(arm))
        seconds, left = item.seconds + sum(item.arms[arm] for arm in arms), self._left
        return f"{left:.0f} s left, and it takes about {seconds:.0f} s" if left < seconds else None

    def _outcome(self, item: Item, arm: str, status: str) -> str:
        """Return what became of an arm."""
        found = self.out / f"{item.name}.json"
        cells = json.loads(found.read_text())["cells"] if status != "skipped" and found.is_file() else []
        for cell in cells:
            if arm in cell["errors"]:
                return f"failed: {cell['errors'][arm]}"
            if arm in cell["arms"]:
                return "timed"
        return "not timed"

    def _run(self, item: Item, arguments: Sequence[str], limit: float) -> dict[str, Any]:
        module, *rest = arguments
        found = self.out / f"{item.name}.json"
        found.unlink(missing_ok=True)  # of a call before
        command = [item.python, "-m", f"benchmarks.{module}", *rest, "--out", str(found)]
        start = time.monotonic()
        with (self.out / f"{item.name}.log").open("wb") as log, started(command, log) as process:
            try:
                status = "passed" if process.wait(limit) == 0 else "failed"
            except TimeoutExpired:
                status = "stopped"
        seconds = time.monotonic() - start
        return {"status": status, "seconds": seconds} | (
            {"reason": f"not done after {limit:.0f} s"} if status == "stopped" else {}
        )


def no_trl(python: str) -> str | None:
    """Return why the items that need TRL cannot run, or None."""
    try:
        check_trl(python)
    except UserError as error:
        return str(error)
    return None


def run(options: argparse.Namespace) -> int:
    """Run all items; return 0, or 1 where one failed or was stopped."""
    device = device_of(options)
    if device == "cpu" and options.shape is None:
        raise UserError("torch sees no CUDA device here; write --device cpu --shape tiny to see whether it runs")
    out, console = options.out.resolve(), Console()
    out.mkdir(parents=True, exist_ok=True)
    running = Run(out, options.minutes, device, no_trl(options.trl_python), runner_of(options, device))
    keep = options.shape_folder
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(keep) as shapes:
        for item in chosen(list(items(options, device, Path(shapes).resolve())), options.only):
            entry = running.one(item)
            told = entry.get("reason") or f"{entry['seconds']:.0f} s"
            console.print(f"{entry['status']:8}{item.name}: {told}", highlight=False, soft_wrap=True)
            for arm, outcome in entry.get("arms", {}).items() if entry["status"] != "skipped" else ():
                console.print(f"        {arm}: {outcome}", highlight=False, soft_wrap=True)
    return 1 if {entry["status"] for entry in running.report["items"]} & {"failed", "stopped"} else 0


def chosen(every: Sequence[Item], only: Sequence[str] | None) -> list[Item]:
    """Return the items whose names begin as asked; all without a choice.

    Raises:
        UserError: one of ``only`` is no item's.
    """
    for start in only or ():
        if not any(item.name.startswith(start) for item in every):
            raise UserError(f"--only {start}: no such item; there are {', '.join(item.name for item in every)}")
    return [item for item in every if only is None or item.name.startswith(tuple(only))]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for figures and logs")
    result.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    result.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    result.add_argument("--shape", choices=SHAPES, help="instead of both shapes")
    result.add_argument("--only", nargs="+", metavar="NAME", help="items whose names begin so (default: all)")
    result.add_argument("--shape-folder", type=Path, help="folder that keeps models of shapes for the next call")
    add_pythons(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 0, 1 where one failed, or 2 for a user's mistake."""
    return report.guarded(run, parser().parse_args(arguments))


if __name__ == "__main__":
    end_on_terminate()
    sys.exit(main())
