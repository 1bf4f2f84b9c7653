"""What every benchmark does with its figures: a JSON file with their origin, a table, an exit status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import describe_device, provenance
from lit_debias.errors import UserError
from lit_debias.support.atomic import write_text

PACKAGES = ("lit-debias", "torch", "lightning", "transformers", "peft", "bitsandbytes")


def run(measure: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace) -> int:
    """Measure, write ``options.out`` and print; return 0, 1 where a gate failed, or 2 for a user's mistake.

    ``measure`` returns ``settings`` with a device, ``gates``, and ``phases`` where all gates passed.
    """
    return guarded(lambda given: publish(measure(given), given.out), options)


def guarded(action: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Return the exit status of an action; 2 with one line for a user's mistake."""
    try:
        return action(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def publish(found: Mapping[str, Any], out: Path) -> int:
    """Write what was measured, with its origin, and print it; return 0, or 1 where a gate failed."""
    report = {**origin(found["settings"]["device"]), "passed": passed(found["gates"]), **found}
    write(out, report)
    console = Console()
    print_gates(report["gates"], console)
    if report["phases"]:
        console.print(phase_table(report))
    for name, seconds in report.get("parts", {}).items():
        console.print(f"{name}: {seconds:.3f} s of one more pass", highlight=False)
    if "decoding" in report:
        console.print(decoding_line(report["decoding"]), highlight=False, soft_wrap=True)
    return 0 if report["passed"] else 1


def origin(device: str) -> dict[str, Any]:
    """Return date, commit, hardware and versions."""
    return provenance(PACKAGES, describe_device(device))


def passed(gates: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether all gates passed."""
    return all(gate["passed"] for gate in gates.values())


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Write JSON; a reader finds the old file or the new one."""
    write_text(path, json.dumps(report, indent=2) + "\n")


def print_gates(gates: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print a line for each gate."""
    for name, gate in gates.items():
        figures = ", ".join(f"{key} {value:.5g}" for key, value in gate.items() if key != "passed")
        console.print(f"{'ok  ' if gate['passed'] else 'FAIL'} {name}: {figures}", highlight=False, soft_wrap=True)


def decoding_line(found: Mapping[str, float]) -> str:
    """Return a line on a decoding step."""
    step, products, roofline = (f"{1e3 * found[f'{name}_seconds']:.1f} ms" for name in ("step", "products", "roofline"))
    return (
        f"a decoding step: {step}, products with weights {products}, so {found['beyond_products']:.0%} beyond them; "
        f"roofline {roofline}, {found['roofline_share']:.0%} of it reached"
    )


def phase_table(report: Mapping[str, Any]) -> Table:
    """Return a row for each phase."""
    table = Table("phase", title=report["name"], box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("median s", "min s", "max s", "rate", "unit", "peak GiB"):
        table.add_column(column, justify="right")
    for name, phase in report["phases"].items():
        seconds = [f"{phase['seconds'][key]:.3f}" for key in ("median", "min", "max")]
        peak = f"{phase['peak_bytes'] / 2**30:.2f}"
        table.add_row(name, *seconds, f"{phase['rate']:,.1f}", phase["unit"], peak)
    return table
