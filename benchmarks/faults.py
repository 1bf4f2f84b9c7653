"""Kills, stops and starves training runs, and looks whether they go on to bitwise the weights of an undisturbed one.

    python -m benchmarks.faults                    the full form: 50 kills, all faults (minutes on two cores)
    python -m benchmarks.faults --short            a few kills, one process; part of `make test`
    python -m benchmarks.faults --only killed      faults whose names begin so

Exits with 1 where anything is not as expected. docs/faults.md says what users can rely on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

# One thread a process: tiny models gain nothing from more, and a process that forks must not have any.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from rich.console import Console
from rich.table import Table

from benchmarks import disk_faults, kill_faults, report, reward_faults
from benchmarks.fault_bench import Bench, Finding
from lit_debias.plugins import get_plugin_manager

SHORT: dict[str, Callable[[Bench], Finding]] = {**kill_faults.SHORT, **disk_faults.SHORT}
FULL = {**SHORT, **kill_faults.FULL, **disk_faults.FULL}


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/faults.json"), help="JSON file to write")
    parser.add_argument("--kills", type=int, help="how often to kill; by default 50, and 3 with --short")
    parser.add_argument("--seed", type=int, default=0, help="seeds the moments")
    parser.add_argument("--short", action="store_true", help="a few kills, and the faults that take seconds")
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose names begin so")
    options = parser.parse_args()
    get_plugin_manager()  # imports the plugins once, for all processes
    faults = SHORT if options.short else FULL
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.kills or (3 if options.short else 50), options.seed, options.short)
        for fault in (fault for name, fault in faults.items() if name.startswith(tuple(options.only))):
            findings.append(found := fault(bench))
            print(f"{'ok' if found.ok else 'NOT AS EXPECTED'}: {found.fault}: {found.seen}", flush=True)
        if not options.short and "rewards".startswith(tuple(options.only)):
            findings += reward_faults.find()
    passed = bool(findings) and all(finding.ok for finding in findings)
    content = {"passed": passed, "seed": options.seed, "faults": [asdict(f) for f in findings], **bench.details}
    report.write(options.out, {**report.origin("cpu"), **content})
    table = Table("fault", "expected", "seen", "ok")
    for finding in findings:
        table.add_row(finding.fault, finding.expected, finding.seen, "yes" if finding.ok else "NO")
    Console().print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
