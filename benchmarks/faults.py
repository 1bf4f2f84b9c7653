"""Kills, stops and starves training runs, and looks whether they go on to bitwise the weights of an undisturbed one.

    python -m benchmarks.faults                    the full form: 50 kills, all faults (minutes on two cores)
    python -m benchmarks.faults --short            a few kills, one process; part of `make test`
    python -m benchmarks.faults --only killed      faults whose names begin so

Exits with 1 where anything is not as expected. docs/faults.md says what users can rely on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# One thread a process: tiny models gain nothing from more, and a process that forks must not have any.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from benchmarks import disk_faults, kill_faults, report, reward_faults
from benchmarks.fault_bench import Bench, Finding
from lit_debias.plugins.manager import get_plugin_manager

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
    passed = True
    origin = report.origin("cpu") | {"seed": options.seed}  # once: the commit may change while it runs
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.kills or (3 if options.short else 50), options.seed, options.short)
        for fault in (fault for name, fault in faults.items() if name.startswith(tuple(options.only))):
            passed &= publish([fault(bench)], bench, options.out, origin)
        if not options.short and "rewards".startswith(tuple(options.only)):
            passed &= publish(reward_faults.find(), bench, options.out, origin)
    return 0 if passed else 1


def publish(findings: list[Finding], bench: Bench, out: Path, origin: dict[str, Any]) -> bool:
    """Print findings and add them to what the file holds of this commit; return whether all is well.

    So a long run that breaks off has not been for nothing, and ``--only`` brings single rows up to date.
    """
    for finding in findings:
        mark = "ok" if finding.ok else "NOT AS EXPECTED"
        print(f"{mark}: {finding.fault}: {finding.seen} (expected: {finding.expected})", flush=True)
    before = json.loads(out.read_text()) if out.is_file() else {}
    if any(before.get(name) != value for name, value in origin.items()):
        before = {}
    rows = {row["fault"]: row for row in [*before.get("faults", []), *map(asdict, findings)]}
    everything = {"passed": all(row["ok"] for row in rows.values()), "faults": list(rows.values())}
    report.write(out, {**origin, **before, **bench.details, **everything})
    return all(finding.ok for finding in findings)


if __name__ == "__main__":
    sys.exit(main())
