"""How time and memory of a step grow with group size, prompt, completion and model, beside a cost model's prediction.

One of the four is varied at a time around a base cell; every point is a process of its own, because peak memory on a
CPU is a process's maximum. The cost model (``benchmarks/cost.py``) is fitted on every second point and tested on the
others.

    python -m benchmarks.growth --plan                 # what would be measured
    python -m benchmarks.growth
    python -m benchmarks.growth --measured runs/bench/growth.json     # fit and draw again

docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from benchmarks import cost, report
from benchmarks.clock import spread
from benchmarks.cost import Architecture
from benchmarks.measurement import measured
from benchmarks.options import add_step, model_at_hand, program, settings_of
from benchmarks.processes import ArmError
from benchmarks.settings import Settings
from benchmarks.shapes import model_config
from benchmarks.step import MeasuredStep
from benchmarks.vs_trl import OURS, Arms
from lit_debias.errors import UserError
from lit_debias.models.sources import resolve

VALUES: dict[str, tuple[Any, ...]] = {
    "group_size": (4, 16, 24),
    "prompt_tokens": (128, 256, 512),
    "completion_tokens": (16, 96, 128),
    "shape": ("13m", "50m", "289m"),
}
QUICK: dict[str, tuple[Any, ...]] = {
    "group_size": (4,),
    "prompt_tokens": (64,),
    "completion_tokens": (16,),
    "shape": ("13m",),
}
PHASES = ("rollout", "reference", "update")


@dataclass
class Point:
    """One cell: what it is, and what was measured."""

    vary: str
    """``base``, or the field of :class:`Settings` that differs from it."""
    fitted: bool
    """Whether the cost model's constants are fitted on it; otherwise it is tested on it."""
    settings: Settings
    model: Architecture
    measured: dict[str, Any] = field(default_factory=dict)
    """``seconds`` of each phase as :func:`benchmarks.clock.spread` has them, and ``peak_bytes``."""

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` takes."""
        return {**asdict(self), "parameters": self.model.parameters}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Point:
        """Return the point of a result file."""
        settings, model = Settings(**found["settings"]), Architecture(**found["model"])
        return cls(found["vary"], found["fitted"], settings, model, found["measured"])


def plan(base: Settings, values: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Return the base cell and its variations, one field at a time; every second point is fitted on."""
    cells = [("base", base)]
    cells += [(name, replace(base, **{name: value})) for name, some in values.items() for value in some]
    distinct = [cell for index, cell in enumerate(cells) if index == 0 or cell[1] != base]
    return [
        Point(vary, index % 2 == 0, settings, architecture(settings)) for index, (vary, settings) in enumerate(distinct)
    ]


def architecture(settings: Settings) -> Architecture:
    """Return the shape of a cell's model without loading weights."""
    if settings.shape is not None:
        return Architecture.of(model_config(settings.shape))
    return Architecture.of(AutoConfig.from_pretrained(resolve(settings.model)))


# ---------------------------------------------------------------- measuring


class Growth:
    """Gates, then point after point; the file is written anew after every process."""

    def __init__(self, points: Sequence[Point], out: Path, minutes: float, shape_folder: Path | None) -> None:
        self.points, self.out, self.shape_folder = points, out, shape_folder
        self.runner = Arms(sys.executable, minutes)
        base = points[0].settings
        self.report: dict[str, Any] = {
            "benchmark": "growth",
            **report.origin(base.device),
            "passed": False,
            "settings": asdict(base),
            "gates": {},
            "points": [],
            "errors": {},
        }

    def run(self) -> dict[str, Any]:
        """Return the report: points that could be measured, errors of the others, nothing where a gate failed."""
        base = self.points[0].settings
        with model_at_hand(base.quick(), self.shape_folder) as at_hand:
            self.report["gates"] = measured(MeasuredStep(at_hand))["gates"]
        for point in self.points if report.passed(self.report["gates"]) else ():
            self._measure(point)
            report.write(self.out, self.report)
        return self.report

    def _measure(self, point: Point) -> None:
        try:
            with model_at_hand(point.settings, self.shape_folder) as at_hand:
                found = self.runner.steps(OURS, at_hand)
        except ArmError as error:
            self.report["errors"][point.settings.name] = str(error)
            return
        seconds = {phase: spread(found["seconds"][phase]) for phase in (*PHASES, "step")}
        point.measured = {"seconds": seconds, "peak_bytes": found["peak_bytes"]}
        self.report["points"].append(point.as_json())


# ---------------------------------------------------------------- predicting


def predictions(points: Sequence[Point]) -> dict[str, Any]:
    """Fit the cost model on the points that say so; return constants, each point's prediction, and relative errors."""
    fitted = [point for point in points if point.fitted]
    machine = cost.fit_machine(
        [work for point in fitted for work in cost.phases(point.model, point.settings).values()],
        [point.measured["seconds"][phase]["median"] for point in fitted for phase in PHASES],
    )
    memory = cost.fit_memory(
        [(point.model, point.settings) for point in fitted], [point.measured["peak_bytes"] for point in fitted]
    )
    predicted = [prediction(point, machine, memory) for point in points]
    errors: dict[str, dict[str, Any]] = {}
    for half, chosen in (("fitted", True), ("tested", False)):
        pairs = [(point, said) for point, said in zip(points, predicted, strict=True) if point.fitted == chosen]
        errors[half] = relative_errors(pairs)
    constants = {"machine": machine._asdict(), "memory": memory._asdict()}
    rows = [{**point.as_json(), "predicted": said} for point, said in zip(points, predicted, strict=True)]
    return {"constants": constants, "relative_errors": errors, "points": rows}


def prediction(point: Point, machine: cost.Machine, memory: cost.Memory) -> dict[str, Any]:
    """Return predicted seconds of each phase and of their sum, and the peak memory in bytes."""
    seconds = {phase: machine.seconds(work) for phase, work in cost.phases(point.model, point.settings).items()}
    return {
        "seconds": seconds | {"step": sum(seconds.values())},
        "peak_bytes": memory.peak(point.model, point.settings),
    }


def relative_errors(pairs: Sequence[tuple[Point, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return mean and largest |predicted / measured - 1| of each phase, the step, and the peak memory."""
    found: dict[str, list[float]] = {}
    for point, said in pairs:
        for phase, seconds in said["seconds"].items():
            measured_seconds = point.measured["seconds"][phase]["median"]
            found.setdefault(phase, []).append(abs(seconds / measured_seconds - 1))
        found.setdefault("peak_bytes", []).append(abs(said["peak_bytes"] / point.measured["peak_bytes"] - 1))
    return {name: {"mean": mean(values), "max": max(values)} for name, values in found.items()}


# ---------------------------------------------------------------- command line


def plan_table(points: Sequence[Point]) -> Table:
    """Return a row for each point."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("varies", "P", "G", "S", "T", "parameters", "cost model"):
        table.add_column(column, justify="right")
    for point in points:
        cell = point.settings
        sizes = (cell.prompts, cell.group_size, cell.prompt_tokens, cell.completion_tokens)
        half = "fitted" if point.fitted else "tested"
        table.add_row(point.vary, *map(str, sizes), f"{point.model.parameters / 1e6:,.1f}M", half)
    return table


def base_steps(points: Sequence[Point]) -> float:
    """Return the FLOPs of all steps in steps of the first point."""
    flops = [sum(work.flops for work in cost.phases(point.model, point.settings).values()) for point in points]
    each = points[0].settings.warmup + points[0].settings.repeats
    return each * sum(flops) / flops[0]


def result_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return measured and predicted step and memory of each point."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("varies", "cell", "step s", "predicted", "peak GiB", "predicted"):
        table.add_column(column, justify="right")
    for row in rows:
        seconds, peaks = row["measured"]["seconds"]["step"]["median"], row["measured"]["peak_bytes"] / 2**30
        said = row["predicted"]
        value = "" if row["vary"] == "base" else str(row["settings"][row["vary"]])
        figures = (seconds, said["seconds"]["step"], peaks, said["peak_bytes"] / 2**30)
        table.add_row(row["vary"], value, *(f"{figure:.2f}" for figure in figures))
    return table


def grow(options: argparse.Namespace) -> int:
    """Plan, measure, predict, write and draw; return the exit status."""
    console = Console()
    if find_spec("matplotlib") is None and not options.plan:
        raise UserError("the figure needs matplotlib; pip install 'lit-debias[dev]'")
    if options.measured is not None:
        if not options.measured.is_file():
            raise UserError(f"--measured {options.measured}: no such file; write the result of an earlier run")
        return conclude(json.loads(options.measured.read_text()), options.out, console)
    chosen = {name: (QUICK if options.quick else VALUES)[name] for name in options.vary}
    points = plan(settings_of(options), chosen)
    console.print(plan_table(points))
    console.print(f"{len(points)} processes, with as much work as {base_steps(points):.0f} steps of the first")
    if options.plan:
        return 0
    found = Growth(points, options.out, options.process_minutes, options.shape_folder).run()
    report.print_gates(found["gates"], console)
    for name, error in found["errors"].items():
        console.print(f"FAIL {name}: {error}", highlight=False, soft_wrap=True)
    if not any(row["fitted"] for row in found["points"]):
        report.write(options.out, found)
        return 1
    return conclude(found, options.out, console)


def conclude(found: dict[str, Any], out: Path, console: Console) -> int:
    """Fit on what was measured, write, print and draw; return the exit status."""
    from benchmarks.growth_plot import draw  # matplotlib is not everybody's

    found = found | predictions([Point.from_json(row) for row in found["points"]])
    found["passed"] = report.passed(found["gates"]) and not found["errors"]
    report.write(out, found)
    draw(found, out.with_suffix(".svg"))
    console.print(result_table(found["points"]))
    for half, errors in found["relative_errors"].items():
        told = ", ".join(f"{name} {value['mean']:.0%} (at most {value['max']:.0%})" for name, value in errors.items())
        console.print(f"relative error, {half}: {told}", highlight=False, soft_wrap=True)
    return 0 if found["passed"] else 1


def parser() -> argparse.ArgumentParser:
    result = program("growth", __doc__)
    add_step(result)
    result.set_defaults(prompt_tokens=48, repeats=2)
    result.add_argument("--vary", nargs="+", choices=VALUES, default=list(VALUES), help="default: each of them in turn")
    result.add_argument("--plan", action="store_true", help="print what would be measured, and stop")
    result.add_argument("--measured", type=Path, help="file of an earlier run to fit and draw again, without measuring")
    result.add_argument("--process-minutes", type=float, default=10.0, help="limit of one process")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where a gate or a point failed, or 2 for a user's mistake."""
    return report.guarded(grow, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
