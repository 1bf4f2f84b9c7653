"""All benchmarks of one GPU in a single call: parity, rollout, update, step, and the comparison with TRL.

Every item is a process of its own with its own limit; what does not fit into the time that is left is skipped, and
``gpu.json`` says so. Shapes are Qwen2.5's, 0.5B in bf16 and 7B with an NF4 base, with random weights.

    python -m benchmarks.gpu --out runs/gpu --trl-python .venv-trl/bin/python
    python -m benchmarks.gpu --out runs/gpu --device cpu --shape tiny                # does it run?
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console

from benchmarks import report
from benchmarks.options import device_of
from benchmarks.shapes import SHAPES
from benchmarks.vs_trl import GRAPHED, OURS, TUNED, Arms
from lit_debias.errors import UserError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Item:
    """One benchmark."""

    name: str
    arguments: tuple[str, ...]
    """Module and its arguments, without ``--out``."""
    seconds: float
    """Left when it begins, or it is skipped; an estimate of one H100."""
    limit: float
    """Seconds after which it is stopped."""
    trl: bool = False
    """Whether it needs TRL."""


def items(options: argparse.Namespace, device: str, shapes: Path) -> Iterator[Item]:
    """Yield the benchmarks, what matters most first."""
    yield Item("trl_parity", ("trl_parity",), 20, 150, trl=True)
    small, large = ("0.5b", "7b") if options.shape is None else (options.shape, options.shape)
    sizes = {"prompts": 8, "group-size": 8, "prompt-tokens": 128, "completion-tokens": 128}
    if options.shape == "tiny":
        sizes = {"prompts": 1, "group-size": 2, "prompt-tokens": 8, "completion-tokens": 4}
    step = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    common = (*step, "--device", device, "--shape-folder", str(shapes))
    trl = ("--trl-python", options.trl_python, "--repeats", "2", "--rounds", "1")
    on_gpu = device == "cuda"  # what a CPU has not, it leaves out
    graphed, flex = (("--cuda-graph",), ("--attention", "flex")) if on_gpu else ((), ())
    arms = ("--arms", OURS, *((GRAPHED,) if on_gpu else ()), TUNED)
    shapes_of = {"small": ("--shape", small, "--quantization", "none"), "large": ("--shape", large)}
    for label, model in shapes_of.items():
        yield Item(
            f"vs_trl_{label}", ("vs_trl", *model, *common, *trl, *arms), 70 if label == "small" else 140, 200, True
        )
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


class Run:
    """Runs items until the time is spent; writes ``gpu.json`` anew after every one."""

    def __init__(self, out: Path, minutes: float, device: str, trl: str | None) -> None:
        self.out, self.trl = out, trl
        self.deadline = time.monotonic() + 60 * minutes
        self.report: dict[str, Any] = {"benchmark": "gpu", **report.origin(device), "minutes": minutes, "items": []}

    def one(self, item: Item) -> dict[str, Any]:
        """Run one item, or say why not, and write it down."""
        left = max(0.0, self.deadline - time.monotonic())
        entry: dict[str, Any] = {"name": item.name, "command": f"python -m benchmarks.{' '.join(item.arguments)}"}
        if item.trl and self.trl is not None:
            entry |= {"status": "skipped", "reason": self.trl}
        elif left < item.seconds:
            entry |= {"status": "skipped", "reason": f"{left:.0f} s left, and it takes about {item.seconds:.0f} s"}
        else:
            entry |= self._run(item, min(item.limit, left))
        self.report["items"].append(entry)
        report.write(self.out / "gpu.json", self.report)
        return entry

    def _run(self, item: Item, limit: float) -> dict[str, Any]:
        module, *arguments = item.arguments
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{module}",
            *arguments,
            "--out",
            str(self.out / f"{item.name}.json"),
        ]
        start = time.monotonic()
        with (self.out / f"{item.name}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
            try:
                status = "passed" if process.wait(limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own processes too
                process.wait()
                status = "stopped"
        seconds = time.monotonic() - start
        return {"status": status, "seconds": seconds} | (
            {"reason": f"not done after {limit:.0f} s"} if status == "stopped" else {}
        )


def no_trl(python: str) -> str | None:
    """Return why the items that need TRL cannot run, or None."""
    try:
        Arms(python, minutes=1).check_trl()
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
    running = Run(out, options.minutes, device, no_trl(options.trl_python))
    with tempfile.TemporaryDirectory() as shapes:
        for item in items(options, device, Path(shapes)):
            entry = running.one(item)
            told = entry.get("reason") or f"{entry['seconds']:.0f} s"
            console.print(f"{entry['status']:8}{item.name}: {told}", highlight=False, soft_wrap=True)
    return 1 if {entry["status"] for entry in running.report["items"]} & {"failed", "stopped"} else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for figures and logs")
    result.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    result.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    result.add_argument("--shape", choices=SHAPES, help="instead of both shapes")
    result.add_argument("--trl-python", default=sys.executable, help="Python that can import trl (default: this one)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 0, 1 where one failed, or 2 for a user's mistake."""
    return report.guarded(run, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
