"""A whole GRPO step against TRL's trainer: same weights, prompts, lengths, rewards, loss, adapters and optimiser.

Every arm runs in processes of its own, in turn (A B A B), with a warm-up step in each. Parity gates come first: on
given completions both sides must agree in log-probs, advantages and LoRA gradient; where they do not, the program
times nothing and exits with 1.

TRL is no dependency of lit-debias; give it an environment of its own::

    python -m venv .venv-trl
    .venv-trl/bin/pip install -c constraints.txt -e '.[embedded]' trl==1.16.0
    python -m benchmarks.vs_trl --trl-python .venv-trl/bin/python
    python -m benchmarks.vs_trl --trl-python .venv-trl/bin/python --grid --lengths fixed natural

Arms with vLLM need it there too: ``trl[vllm]==1.16.0``, and no constraints.

docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks import report
from benchmarks.arms import (
    ARMS,
    GRAPHED,
    OUR_ARMS,
    OURS,
    TRL_ARMS,
    TUNED,
    Arms,
    add_pythons,
    logs_of,
    runner_of,
)
from benchmarks.clock import rate, spread
from benchmarks.options import add_step, model_at_hand, positive, program, settings_of
from benchmarks.processes import ArmError, end_on_terminate
from benchmarks.settings import Settings
from benchmarks.workload import prompt_ids

SPEEDUPS = {arm.replace(OURS, "speedup"): arm for arm in OUR_ARMS}
GRID = {"quantization": ("nf4", "none"), "prompt_tokens": (47, 256), "group_size": (4, 8, 16)}
MAX_LOGPROB_DIFFERENCE = 1e-3  # nats, float32
MAX_ADVANTAGE_DIFFERENCE = 1e-3
MIN_COSINE = 0.999


# ---------------------------------------------------------------- parity


def parity_settings(settings: Settings) -> Settings:
    """Return the small float32 update that the gates compare; the base keeps its quantisation."""
    return replace(
        settings,
        dtype="float32",
        lengths="fixed",
        prompts=min(settings.prompts, 2),
        group_size=min(settings.group_size, 4),
        completion_tokens=min(settings.completion_tokens, 16),
    )


def parity_gates(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Compare both sides' log-probs and advantages, and the direction of their gradients."""
    bounds = {
        "logprobs": MAX_LOGPROB_DIFFERENCE,
        "reference_logprobs": MAX_LOGPROB_DIFFERENCE,
        "advantages": MAX_ADVANTAGE_DIFFERENCE,
    }
    gates: dict[str, dict[str, Any]] = {}
    for name, bound in bounds.items():
        same_shape = ours[name].shape == theirs[name].shape
        difference = float((ours[name] - theirs[name]).abs().max()) if same_shape else float("inf")
        gates[name] = {"max_difference": difference, "max_bound": bound, "passed": difference <= bound}
    mine, other = ours["gradient"].double(), theirs["gradient"].double()
    cosine = float(cosine_similarity(mine, other, dim=0)) if mine.shape == other.shape else 0.0
    gates["gradient"] = {"cosine": cosine, "min_cosine": MIN_COSINE, "passed": cosine > MIN_COSINE}
    return gates


# ---------------------------------------------------------------- timing


def cells(settings: Settings, lengths: Sequence[str], grid: bool) -> Iterator[Settings]:
    """Yield what is compared: the settings, or the grid around them, with each kind of lengths."""
    values = GRID if grid else {name: (getattr(settings, name),) for name in GRID}
    for kind, *point in product(lengths, *values.values()):
        yield replace(settings, lengths=kind, **dict(zip(values, point, strict=True)))  # type: ignore[arg-type]


def summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return median, minimum and maximum of an arm's phases over all its processes, its rate and its peak memory."""
    seconds = {
        phase: [value for found in rounds for value in found["seconds"][phase]] for phase in rounds[0]["seconds"]
    }
    tokens = [count for found in rounds for count in found["tokens"]]
    return {
        "phases": {phase: spread(values) for phase, values in seconds.items()},
        "tokens": {"median": median(tokens), "min": min(tokens), "max": max(tokens), "all": tokens},
        "tokens_per_second": rate(seconds["step"], tokens),
        "peak_bytes": max(found["peak_bytes"] for found in rounds),
        "processes": len(rounds),
        "gpus": rounds[0]["gpus"],
        "versions": rounds[0]["versions"],
    }


def speedups(arms: Mapping[str, Mapping[str, Any]], ours: str) -> dict[str, float]:
    """Return how many times more tokens a second an arm of ours makes than each of TRL's that has been timed."""
    if ours not in arms:
        return {}
    mine = arms[ours]["tokens_per_second"]
    return {name: mine / arm["tokens_per_second"] for name, arm in arms.items() if name not in OUR_ARMS}


class Comparison:
    """Gates, then every cell's arms in turn; the file is written anew after every process."""

    def __init__(self, runner: Arms, arms: Sequence[str], rounds: int, out: Path, device: str) -> None:
        self.runner, self.arms, self.rounds, self.out = runner, arms, rounds, out
        self.report: dict[str, Any] = {
            "benchmark": "vs_trl",
            **report.origin(device),
            "passed": False,
            "gates": {},
            "cells": [],
        }

    def run(self, chosen: Sequence[Settings]) -> bool:
        """Return whether all gates passed and all arms did their work."""
        beside_trl = not TRL_ARMS.keys().isdisjoint(self.arms)
        for settings in {cell.quantization: cell for cell in reversed(chosen)}.values() if beside_trl else ():
            self._check(settings)
        sound = report.passed(self.report["gates"])  # of nothing, where no arm is TRL's
        for cell in chosen if sound else ():
            self._time(cell)
        self.report["passed"] = sound and not any(cell["errors"] for cell in self.report["cells"])
        report.write(self.out, self.report)
        return bool(self.report["passed"])

    def _check(self, settings: Settings) -> None:
        small = parity_settings(settings)
        ours = GRAPHED if GRAPHED in self.arms else OURS  # the one whose attention is further from TRL's
        try:
            gates = parity_gates(*(self.runner.parity(arm, small) for arm in (ours, TUNED)))
        except ArmError as error:
            print(f"error: parity, {settings.quantization}: {error}", file=sys.stderr)
            gates = {"run": {"passed": False}}
        self.report["gates"] |= {f"{settings.quantization}, {name}": gate for name, gate in gates.items()}

    def _time(self, settings: Settings) -> None:
        found: dict[str, list[dict[str, Any]]] = {}
        cell: dict[str, Any] = {"name": settings.name, "settings": asdict(settings), "arms": {}, "errors": {}}
        self.report["cells"].append(cell)
        for _, arm in product(range(self.rounds), self.arms):  # A B A B
            if arm in cell["errors"]:
                continue
            try:
                found.setdefault(arm, []).append(self.runner.steps(arm, settings))
            except ArmError as error:
                cell["errors"][arm] = str(error)
                report.write(self.out, self.report)
                continue
            cell["arms"][arm] = summary(found[arm])
            if arm not in OUR_ARMS:
                cell["arms"][arm]["micro_batch"] = self.runner.micro_batches[settings.name, arm]
            cell |= {key: speedups(cell["arms"], ours) for key, ours in SPEEDUPS.items()}
            report.write(self.out, self.report)


def table(cell: Mapping[str, Any]) -> Table:
    """Return a row for each arm of one cell."""
    result = Table(title=cell["name"], box=box.SIMPLE, padding=0)
    result.add_column("arm", no_wrap=True)
    timed = {key: arm for key, arm in SPEEDUPS.items() if arm in cell["arms"]}
    times = ["ours" if arm == OURS else arm.removeprefix(f"{OURS}_") for arm in timed.values()]
    for column in ("step s", "min", "max", "rollout", "ref.", "update", "tok/s", "GiB", *times):
        result.add_column(column, justify="right")
    for name, arm in cell["arms"].items():
        step = arm["phases"]["step"]
        seconds = [f"{step[key]:.2f}" for key in ("median", "min", "max")]
        parts = [f"{arm['phases'][key]['median']:.2f}" for key in ("rollout", "reference", "update")]
        times = [f"{cell[key][name]:.2f}x" if name in cell[key] else "" for key in timed]
        tokens, peak = f"{arm['tokens_per_second']:,.0f}", f"{arm['peak_bytes'] / 2**30:.2f}"
        result.add_row(name, *seconds, *parts, tokens, peak, *times)
    return result


def compare(options: argparse.Namespace) -> int:
    """Compare, write and print; return the exit status."""
    settings = settings_of(options)
    runner = runner_of(options, settings.device, logs_of(options.out))
    for quantization in GRID["quantization"] if options.grid else (settings.quantization,):
        runner.check(options.arms, replace(settings, quantization=quantization))
    with model_at_hand(settings, options.shape_folder) as at_hand:
        chosen = list(cells(at_hand, options.lengths, options.grid))
        for cell in {(cell.lengths, cell.prompt_tokens): cell for cell in chosen}.values():
            prompt_ids(cell)  # a mistake in the sizes is the user's, and no arm's
        comparison = Comparison(runner, options.arms, options.rounds, options.out, settings.device)
        passed = comparison.run(chosen)
    console = Console()
    report.print_gates(comparison.report["gates"], console)
    for cell in comparison.report["cells"]:
        if cell["arms"]:
            console.print(table(cell))
        for arm, error in cell["errors"].items():
            console.print(f"FAIL {arm}: {error}", highlight=False, soft_wrap=True)
    return 0 if passed else 1


def parser() -> argparse.ArgumentParser:
    result = program("vs_trl", __doc__)
    add_step(result)
    result.set_defaults(repeats=3)
    add_pythons(result)
    result.add_argument("--arms", nargs="+", choices=ARMS, default=[OURS, TUNED])
    result.add_argument("--lengths", nargs="+", choices=["fixed", "natural"], default=["fixed"])
    result.add_argument("--grid", action="store_true", help=f"all of {GRID} instead of the three options")
    result.add_argument("--rounds", type=positive, default=2, help="processes of each arm")
    result.add_argument("--process-minutes", type=float, default=30.0, help="limit of one process")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 0, 1 where a gate or an arm failed, or 2 for a user's mistake."""
    return report.guarded(compare, parser().parse_args(arguments))


if __name__ == "__main__":
    end_on_terminate()
    sys.exit(main())
