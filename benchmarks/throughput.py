"""Throughput and memory of one GRPO step by phase: rollout, reference, rewards, update.

Checks first that the fast step computes what the plain one does; exits with 1, and times nothing, where it does not.

    python -m benchmarks.throughput --out runs/bench
    python -m benchmarks.throughput --out runs/bench --shape 0.5b --quantization none
    python -m benchmarks.throughput --out runs/bench --gpu      # all GPU arms, one call

docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measurement import measure
from benchmarks.provenance import describe_device, provenance
from benchmarks.settings import Settings, gpu_arms
from benchmarks.shapes import SHAPES, save_model
from lit_debias.errors import UserError, did_you_mean
from lit_debias.models import check_model
from lit_debias.plugins import components, get_plugin_manager
from lit_debias.rewards.base import Reward

PACKAGES = ("lit-debias", "torch", "lightning", "transformers", "peft", "bitsandbytes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where a gate failed, or 2 for a user's mistake."""
    options = parser().parse_args(arguments)
    try:
        return run(options.out, arms(options), options.reward or ["Fluency"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    default = Settings()
    result = argparse.ArgumentParser(
        "python -m benchmarks.throughput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--out", type=Path, required=True, help="folder that gets throughput.json")
    what = result.add_mutually_exclusive_group()
    what.add_argument("--model", default=default.model, help="folder, pkg://PACKAGE/FILE.gguf, or hub id")
    what.add_argument("--shape", choices=SHAPES, help="a random model of this Qwen2.5 shape instead of --model")
    what.add_argument("--gpu", action="store_true", help="measure all GPU arms; ignores the settings below")
    result.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    result.add_argument("--quantization", choices=["nf4", "none"], default=default.quantization)
    result.add_argument("--dtype", choices=["bfloat16", "float32"], default=default.dtype)
    for name in ("prompts", "group-size", "prompt-tokens", "completion-tokens", "repeats"):
        result.add_argument(f"--{name}", type=_positive, default=getattr(default, name.replace("-", "_")))
    result.add_argument("--quick", action="store_true", help="one tiny step: does it run?")
    result.add_argument(
        "--reward",
        action="append",
        metavar="NAME[=JSON]",
        help="reward class of an installed plugin with its arguments; may be repeated (default: Fluency)",
    )
    return result


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def arms(options: argparse.Namespace) -> list[Settings]:
    """Return what the options ask to measure.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu and (options.gpu or options.device == "cuda"):
        raise UserError("torch sees no CUDA device here; write --device cpu, without --gpu")
    given = {field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}
    if options.device == "auto":
        given["device"] = "cuda" if has_gpu else "cpu"
    chosen = gpu_arms() if options.gpu else [Settings(**given)]
    return [arm.quick() for arm in chosen] if options.quick else chosen


def build_reward(text: str) -> tuple[str, Reward]:
    """Return name and instance of ``NAME`` or ``NAME={"argument": value}``.

    Raises:
        UserError: no plugin has such a reward, or the arguments do not fit.
    """
    name, _, values = text.partition("=")
    classes = {found.name: found.cls for found in components(get_plugin_manager()) if found.kind == "reward"}
    if name not in classes:
        raise UserError(f"--reward {name}: no such reward{did_you_mean(name, classes)}")
    try:
        return name, classes[name](**json.loads(values or "{}"))
    except (TypeError, ValueError) as error:
        raise UserError(f'--reward {text}: {error}; write NAME or NAME={{"argument": value}}') from error


def run(out: Path, settings: list[Settings], rewards: list[str]) -> int:
    """Measure all arms and write ``out/throughput.json``, anew after every arm; return the exit status."""
    for arm in settings:
        check_model(arm.model)
    named = dict(build_reward(text) for text in rewards)
    device = settings[0].device
    report: dict[str, Any] = {**provenance(PACKAGES, describe_device(device)), "rewards": rewards, "arms": []}
    out.mkdir(parents=True, exist_ok=True)
    for arm in settings:
        report["arms"].append({"name": arm.name, "settings": asdict(arm), **measure_arm(arm, named)})
        report["passed"] = all(gate["passed"] for each in report["arms"] for gate in each["gates"].values())
        (out / "throughput.json").write_text(json.dumps(report, indent=2) + "\n")
        gc.collect()  # trainer and module refer to each other
        if device == "cuda":
            torch.cuda.empty_cache()
    print_report(report, Console())
    return 0 if report["passed"] else 1


def measure_arm(settings: Settings, rewards: dict[str, Reward]) -> dict[str, Any]:
    """Measure one arm; a model of a shape lives in a temporary folder meanwhile."""
    if settings.shape is None:
        return measure(settings, rewards)
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(settings.shape, Path(folder), settings.device)
        return measure(replace(settings, model=str(model)), rewards)


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print gates and phases of every arm."""
    for arm in report["arms"]:
        for name, gate in arm["gates"].items():
            figures = ", ".join(f"{key} {value:.5g}" for key, value in gate.items() if key != "passed")
            console.print(f"{'ok  ' if gate['passed'] else 'FAIL'} {name}: {figures}", highlight=False, soft_wrap=True)
        if arm["phases"]:
            console.print(phase_table(arm))


def phase_table(arm: dict[str, Any]) -> Table:
    """Return a row for each phase of one arm."""
    table = Table("phase", title=arm["name"], box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("median s", "min s", "max s", "rate", "unit", "peak GiB"):
        table.add_column(column, justify="right")
    for name, phase in arm["phases"].items():
        seconds = [f"{phase['seconds'][key]:.3f}" for key in ("median", "min", "max")]
        peak = f"{phase['peak_bytes'] / 2**30:.2f}"
        table.add_row(name, *seconds, f"{phase['rate']:,.0f}", phase["unit"], peak)
    return table


if __name__ == "__main__":
    sys.exit(main())
