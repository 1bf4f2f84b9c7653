"""Rollouts and whole steps on a machine that is not idle: beside busy processes, and two runs at once.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.busy --against /tmp/before   # interleaved with the code of another commit
    python -m benchmarks.busy                         # this code alone

Takes the machine as it is: nothing else should run on it. Exits with 1 where a goal is missed; the figures are written
all the same. docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.clock import spread
from benchmarks.options import add_sampling, add_step, model_at_hand, positive, program, settings_of
from benchmarks.provenance import commit
from benchmarks.settings import Settings
from lit_debias.errors import UserError

ROOT = Path(__file__).parent.parent
ANSWER = "seconds: "  # as the side has it, whose module belongs to its own process
HERE, BEFORE = "this", "before"
KINDS = ("rollout", "step")
UNSET = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"


@dataclass(frozen=True)
class Condition:
    """What else the machine does."""

    busy: int = 0
    """Processes that only count."""
    runs: int = 1
    """Runs at once, the measured one included."""


IDLE, TWO_RUNS = "idle", "two runs at once"
CONDITIONS = {
    IDLE: Condition(),
    "beside one busy process": Condition(busy=1),
    "beside two busy processes": Condition(busy=2),
    TWO_RUNS: Condition(runs=2),
}
SHARES = {"beside one busy process": 0.55, TWO_RUNS: 0.5}
"""Condition -> the least share of the idle rate."""
IDLE_SHARE, SLOWEST = 0.98, 3.0


class Side:
    """A process that has a model and waits to be asked; see ``benchmarks.busy_side``."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment), cwd=cwd
        )

    def ask(self, kind: str, count: int) -> None:
        """Begin; :meth:`answer` waits."""
        assert self.process.stdin is not None
        print(kind, count, file=self.process.stdin, flush=True)

    def answer(self) -> list[float]:
        """Return the seconds of each.

        Raises:
            UserError: the process has ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return list(json.loads(line.removeprefix(ANSWER)))
        raise UserError(f"a run beside others ended with exit status {self.process.wait()}; its message stands above")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def write_metadata(root: Path, folder: Path) -> None:
    """Write what a checkout would be installed as: the environment knows the built-ins of one commit alone."""
    section = (root / "pyproject.toml").read_text().partition("[project.entry-points.lit_debias]\n")[2]
    entries = section.partition("\n\n")[0].replace('"', "")
    info = folder / "lit_debias-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lit-debias\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[lit_debias]\n{entries}\n")


def start(root: Path, settings: Settings, metadata: Path) -> Side:
    """Start a side with the code and the metadata of a checkout, and no setting of threads."""
    paths = [metadata, root, root / "src", *sorted((root / "plugins").glob("*/src"))]
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    program = str(Path(__file__).with_name("busy_side.py"))
    return Side([sys.executable, program, json.dumps(asdict(settings))], environment, root)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Within the context so many processes count; they end with this one, too."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ---------------------------------------------------------------- measuring

Seconds = dict[str, dict[str, dict[str, list[list[float]]]]]
"""Arm -> kind -> condition -> run -> seconds."""


def interleaved(sides: Mapping[str, Sequence[Side]], rounds: int, counts: Mapping[str, int]) -> Seconds:
    """Measure all, arm after arm within each condition, in the other order in every other round."""
    found: Seconds = {
        arm: {kind: {name: [[] for _ in range(c.runs)] for name, c in CONDITIONS.items()} for kind in KINDS}
        for arm in sides
    }
    for turn in range(rounds):
        for name, condition in CONDITIONS.items():
            for kind in KINDS:
                for arm in list(sides)[:: -1 if turn % 2 else 1]:
                    asked = sides[arm][: condition.runs]
                    with busy(condition.busy):
                        for side in asked:
                            side.ask(kind, counts[kind])
                        for seconds, side in zip(found[arm][kind][name], asked, strict=True):
                            seconds.extend(side.answer())
        print(f"round {turn + 1} of {rounds} is done", file=sys.stderr)
    return found


def cell(runs: Sequence[Sequence[float]], idle: Sequence[float], tokens: int) -> dict[str, Any]:
    """Return the figures of one condition; of several runs those of the slower one.

    Args:
        runs: Seconds, run by run.
        idle: Those of the same arm on the idle machine.
        tokens: Sampled in each rollout or step.
    """
    slower = max(runs, key=median)
    return {
        "rate": tokens / median(slower),
        "of_idle": median(idle) / median(slower),
        "slowest": max(max(seconds) / median(seconds) for seconds in runs),
        "seconds": [spread(seconds) for seconds in runs],
    }


def figures(found: Seconds, tokens: int) -> dict[str, Any]:
    """Return arm -> kind -> condition -> figures."""
    return {
        arm: {
            kind: {name: cell(runs, of_kind[IDLE][0], tokens) for name, runs in of_kind.items()}
            for kind, of_kind in of_arm.items()
        }
        for arm, of_arm in found.items()
    }


def goals(arms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what is to be reached, what was, and whether it suffices, by name."""
    found: dict[str, dict[str, Any]] = {}
    for kind, cells in arms[HERE].items():
        if BEFORE in arms:
            share = cells[IDLE]["rate"] / arms[BEFORE][kind][IDLE]["rate"]
            found[f"{kind}, idle, of the rate before"] = at_least(share, IDLE_SHARE)
        for name, share in SHARES.items():
            found[f"{kind}, {name}, of idle"] = at_least(cells[name]["of_idle"], share)
    slowest = max(each["slowest"] for each in arms[HERE]["rollout"].values())
    found["slowest rollout, of the median"] = {"value": slowest, "bar": SLOWEST, "passed": slowest <= SLOWEST}
    return found


def at_least(value: float, bar: float) -> dict[str, Any]:
    """Return a goal."""
    return {"value": value, "bar": bar, "passed": value >= bar}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all arms, and the goals."""
    settings, roots = settings_of(options), {HERE: ROOT}
    if options.against is not None:
        if not (options.against / "benchmarks" / "measurement.py").is_file():
            raise UserError(f"--against {options.against}: there is no checkout of this project; write its folder")
        roots = {BEFORE: options.against.resolve(), **roots}
    counts = {"rollout": options.rollouts, "step": options.steps}
    most = max(condition.runs for condition in CONDITIONS.values())
    with model_at_hand(settings, options.shape_folder) as at_hand, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for arm, root in roots.items():
            write_metadata(root, folder / arm)
        sides: dict[str, list[Side]] = {arm: [] for arm in roots}
        for arm, root in [(arm, root) for arm, root in roots.items() for _ in range(most)]:
            side = start(root, at_hand, folder / arm)
            stack.callback(side.close)
            side.answer()  # warm; one after the other, as loading takes more memory than having loaded
            sides[arm].append(side)
        arms = figures(interleaved(sides, options.rounds, counts), settings.most_tokens)
    commits = {arm: commit(root) for arm, root in roots.items()}
    found = {"settings": asdict(settings), "rounds": options.rounds, "counts": counts, "commits": commits}
    return {"benchmark": "busy", "name": settings.name, **found, "goals": goals(arms), "arms": arms}


# ---------------------------------------------------------------- showing


def publish(found: Mapping[str, Any], out: Path) -> int:
    """Write and print; return 1 where a goal is missed."""
    passed = report.passed(found["goals"])
    report.write(out, {**report.origin(found["settings"]["device"]), "passed": passed, **found})
    console = Console()
    console.print(table(found))
    for name, goal in found["goals"].items():
        mark = "ok  " if goal["passed"] else "MISS"
        console.print(f"{mark} {name}: {goal['value']:.2f} (goal {goal['bar']:g})", highlight=False)
    return 0 if passed else 1


def table(found: Mapping[str, Any]) -> Table:
    """Return a row for each condition and kind: tokens/s, share of idle, and the slowest over the median, by arm."""
    result = Table("", "machine", title=found["name"], box=box.SIMPLE, padding=(0, 1, 0, 0))
    shown: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "tokens/s": lambda each: f"{each['rate']:,.0f}",
        "of idle": lambda each: f"{each['of_idle']:.0%}",
        "slowest": lambda each: f"{each['slowest']:.1f}",
    }
    for arm in found["arms"]:
        for column in shown:
            result.add_column(f"{arm}\n{column}", justify="right")
    for kind in KINDS:
        for name in CONDITIONS:
            cells = [of_arm[kind][name] for of_arm in found["arms"].values()]
            result.add_row(kind, name, *(show(each) for each in cells for show in shown.values()))
    return result


def parser() -> argparse.ArgumentParser:
    result = program("busy", __doc__)
    add_step(result)
    add_sampling(result)
    result.add_argument("--against", type=Path, metavar="FOLDER", help="checkout of another commit to measure beside")
    result.add_argument("--rounds", type=positive, default=3)
    result.add_argument("--rollouts", type=positive, default=8, help="in each round and condition")
    result.add_argument("--steps", type=positive, default=3, help="in each round and condition")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where a goal is missed, or 2 for a user's mistake."""
    options = parser().parse_args(arguments)
    return report.guarded(lambda given: publish(measure(given), given.out), options)


if __name__ == "__main__":
    sys.exit(main())
