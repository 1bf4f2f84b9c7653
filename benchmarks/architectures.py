"""Every causal architecture of the installed transformers, as a tiny random model: right, refused, or wrong?

Each goes through the policy's public interface and is compared with plain Hugging Face and PEFT, one sequence at a
time: log-probs while sampling, of the update, the reference and given texts, gradients, and the exported adapter. Exit
status 1 where one is wrong or ends in a traceback.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import report
from benchmarks.architecture_checks import NATS, RELATIVE, Finding, check
from benchmarks.tiny_architectures import Architecture, architectures
from lit_debias.errors import UserError, did_you_mean

VERDICTS = {
    "right": "green",
    "slower but right": "cyan",
    "refused": "yellow",
    "not built": "bright_black",
    "WRONG": "bold red",
    "TRACEBACK": "bold red",
}
SECONDS = 60
"""Limit of one architecture."""


def sweep(options: argparse.Namespace) -> int:
    """Examine the chosen architectures, write and print; return the exit status."""
    chosen = choose(options.only)
    console = Console()
    findings: dict[str, Finding] = {}
    for finding in track(examined(chosen, options.workers), "architectures", len(chosen), console=console):
        findings[finding.name] = finding
        if not finding.passed:
            console.print(f"{finding.verdict} {finding.name}: {finding.reason}", highlight=False, markup=False)
    ordered = [findings[architecture.name] for architecture in chosen]
    report.write(options.out, as_report(ordered))
    console.print(table(ordered))
    counts = Counter(finding.verdict for finding in ordered)
    console.print(", ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS), highlight=False)
    return 0 if all(finding.passed for finding in ordered) else 1


def choose(names: Sequence[str]) -> list[Architecture]:
    """Return the architectures of these model types or names; all where there are none.

    Raises:
        UserError: there is no such type.
    """
    everything = list(architectures())
    known = {name for one in everything for name in (one.name, one.model_type)}
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: no such architecture{did_you_mean(name, known)}")
    return [one for one in everything if not names or {one.name, one.model_type} & set(names)]


def examined(chosen: Sequence[Architecture], workers: int) -> Iterator[Finding]:
    """Yield findings as they come; where a process dies, those left get a process each."""
    left = {architecture.name: architecture for architecture in chosen}
    try:
        for finding in pooled(list(left.values()), workers):
            del left[finding.name]
            yield finding
    except BrokenProcessPool:
        for architecture in left.values():
            try:
                yield from pooled([architecture], 1)
            except BrokenProcessPool:
                yield Finding(architecture.name, architecture.model_type, "TRACEBACK", reason="the process died")


def pooled(chosen: Sequence[Architecture], workers: int) -> Iterator[Finding]:
    """Yield findings of a pool of fresh processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=quieten) as pool:
        for done in as_completed([pool.submit(within_limit, architecture) for architecture in chosen]):
            yield done.result()


def quieten() -> None:
    """Leave one thread to a process, and the terminal to the table."""
    from transformers.utils import logging as of_transformers

    torch.set_num_threads(1)
    logging.getLogger("torch").setLevel(logging.ERROR)
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()


def within_limit(architecture: Architecture) -> Finding:
    """Examine one; too long is a traceback."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return check(architecture)
    finally:
        signal.alarm(0)


# ---------------------------------------------------------------- output


def as_report(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what the result file holds."""
    return {
        "benchmark": "architectures",
        **report.origin("cpu"),
        "passed": all(finding.passed for finding in findings),
        "tolerances": {"nats": NATS, "relative_gradient": RELATIVE},
        "verdicts": dict(Counter(finding.verdict for finding in findings)),
        "architectures": [finding.as_json() for finding in findings],
    }


def table(findings: Sequence[Finding]) -> Table:
    """Return a row for each architecture."""
    result = Table("architecture", "verdict", "way", "reason", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("nats", "gradient"):
        result.add_column(column, justify="right")
    for finding in findings:
        nats = [value for name, value in finding.figures.items() if "gradient" not in name and "twice" not in name]
        gradients = [value for name, value in finding.figures.items() if "gradient" in name]
        worst = [f"{max(values):.1g}" if values else "" for values in (nats, gradients)]
        colour = VERDICTS[finding.verdict]
        result.add_row(finding.name, f"[{colour}]{finding.verdict}", finding.way, finding.reason, *worst)
    return result


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        "python -m benchmarks.architectures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--only", nargs="+", default=[], metavar="TYPE", help="model types, or names of variants")
    result.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    result.add_argument("--out", type=Path, default=Path("runs/bench/architectures.json"), help="JSON file to write")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep; return 0, 1 where something is wrong, or 2 for a user's mistake."""
    return report.guarded(sweep, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
