"""Rewards that misbehave: the tests of tests/rewards/test_guard.py and its like, as rows of the table."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.fault_bench import Finding

ROOT = Path(__file__).parent.parent
GUARD, MODULE, PLUGINS = "test_reward_guard", "test_module_guard", "test_third_party_failures"
MISSING = "its scores of that step are missing, all other rows and steps are as ever"

# Fault -> what should come of it, and the tests that look: with one process, with two.
FAULTS: dict[str, tuple[str, list[str]]] = {
    **{
        f"reward {fault}, {processes}": (MISSING, [f"{GUARD}::test_{test}[{scenario}]"])
        for fault, scenario in {
            "raises": "raises",
            "hangs": "hangs",
            "is slow": "slow",
            "returns NaN": "nan",
            "returns a wrong length": "wrong length",
            "returns a wrong type": "wrong type",
            "ends its process": "exits",
        }.items()
        for processes, test in {"1 process": "one_process", "2 processes": "two_processes"}.items()
    },
    "reward calls sys.exit": (MISSING, [f"{GUARD}::test_a_failure_is_a_missing_score_of_the_right_rows[quits]"]),
    "reward hangs in a process of its own": (
        "its process is ended and started again",
        [f"{GUARD}::test_an_isolated_reward_that_hangs_is_ended"],
    ),
    "reward leaks memory": (
        "its process is ended between two calls; no score is lost",
        [f"{GUARD}::test_a_leak_is_ended_between_two_calls"],
    ),
    "reward fails too often, 1 process": (
        "the run stops with a checkpoint, and resumed ends bitwise the same",
        [f"{GUARD}::test_one_process[stops]", f"{MODULE}::test_a_run_that_stops_goes_on_as_if_it_had_not"],
    ),
    "reward fails too often, 2 processes": (
        "both stop at the same step",
        [f"{GUARD}::test_two_processes[stops]", f"{GUARD}::test_two_processes_stop_at_the_same_step"],
    ),
    "a plugin hangs": (
        "it costs its own scores",
        [
            f"{PLUGINS}::test_the_hanging_plugin_costs_its_own_scores",
            f"{PLUGINS}::test_the_hanging_plugin_starts_afresh_in_a_process_of_its_own",
        ],
    ),
    "a plugin lies about what it returns": (
        "it costs the rows that it lies about",
        [f"{PLUGINS}::test_the_lying_plugin_costs_the_rows_that_it_lies_about"],
    ),
}


def find() -> list[Finding]:
    """Run the tests once, in a process of their own, and read off what each fault led to."""
    files = [str(ROOT / "tests" / f"{name}.py") for name in (GUARD, MODULE, PLUGINS)]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        also_of_processes = ["-m", "not release"]
        options = ["-q", "-p", "no:cacheprovider", *also_of_processes, f"--junitxml={results}"]
        command = [sys.executable, "-m", "pytest", *options, *files]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        outcomes = outcomes_of(results)
    return [found(fault, expected, tests, outcomes) for fault, (expected, tests) in FAULTS.items()]


def outcomes_of(results: Path) -> dict[str, str]:
    """Return test -> ``passed``, or the first line of what went wrong, from pytest's JUnit file."""
    outcomes = {}
    for case in ElementTree.parse(results).iter("testcase"):
        trouble = [child for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        outcomes[name] = trouble[0].get("message", "failed").splitlines()[0] if trouble else "passed"
    return outcomes


def found(fault: str, expected: str, tests: list[str], outcomes: dict[str, str]) -> Finding:
    """Return the row of a fault; a test that has not run counts as one that failed."""
    bad = {test: outcomes.get(test, "has not run") for test in tests if outcomes.get(test) != "passed"}
    return Finding(fault, expected, f"not so: {bad}" if bad else "as expected", not bad)
