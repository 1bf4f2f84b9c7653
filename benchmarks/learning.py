"""Does a whole run learn what TRL's learns, and in what time?

Every trainer gets the same prompts in the same order, the same first adapter, reward, loss and AdamW; what each samples
is its own. Runs of both take turns, each in a process of its own. Before them the exact part: in float32 TRL trains on
the completions that lit-debias sampled, for some steps, and both adapters must have moved alike::

    python -m benchmarks.learning                                  # lit-debias alone where TRL is not installed
    python -m benchmarks.learning --trl-python .venv-trl/bin/python

Exits with 1 where the exact part fails. docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from scipy.stats import t as student
from torch import Tensor, cat

from benchmarks import report
from benchmarks.learning_plan import REWARDS, Plan
from benchmarks.learning_plot import draw
from benchmarks.options import device_of, positive, program
from benchmarks.processes import ArmError, check_trl, has_trl, run_arm
from benchmarks.provenance import environment_of_others
from lit_debias.support.precision import dtype_of

OURS, TRL = "lit-debias", "trl"
SIDES = {OURS: "learning_ours", TRL: "learning_trl"}
EXACT_STEPS = 6
MOST_DIFFERENCE = 0.01
"""Of two adapters' ways, relative to the way. AdamW turns a rounding of a tiny gradient into a whole step."""
BLOCKS = 6
"""Parts of a run whose mean rewards the table shows."""

Adapter = Mapping[str, Tensor]
Run = dict[str, Any]
"""``reward`` (name), ``seed``, ``arm``, and by step ``rewards``, ``seconds`` since the start, and ``tokens``."""


@dataclass(frozen=True)
class Trainers:
    """Runs a plan by one trainer or the other, each in a process of its own."""

    folder: Path
    trl_python: str
    minutes: float

    def learn(self, arm: str, plan: Plan, given: Path | None = None) -> Path:
        """Return the folder with the curve and the adapter.

        Raises:
            ArmError: the process failed.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        python = sys.executable if arm == OURS else self.trl_python
        command = [python, "-m", "benchmarks.learning_arm", "--side", SIDES[arm], "--out", str(folder)]
        command += ["--plan", json.dumps(asdict(plan)), *(() if given is None else ("--given", str(given)))]
        run_arm(command, self.minutes, None if arm == OURS else environment_of_others())
        return folder


# ---------------------------------------------------------------- the exact part


def difference(plan: Plan, ours: Adapter, theirs: Adapter) -> float:
    """Return how far two adapters lie apart, relative to the way that ``ours`` has gone; infinite for other names."""
    if {n: w.shape for n, w in ours.items()} != {n: w.shape for n, w in theirs.items()}:
        return float("inf")
    first = plan.first_adapter({name: weight.shape for name, weight in ours.items()})
    way = cat([(ours[name] - first[name]).flatten() for name in first]).double()
    apart = cat([(ours[name] - theirs[name]).flatten() for name in first]).double()
    return float(apart.norm() / way.norm())


def same_completions(trainers: Trainers, plan: Plan) -> float:
    """Return the difference of both adapters after TRL trained on what lit-debias sampled."""
    ours = trainers.learn(OURS, plan)
    theirs = trainers.learn(TRL, plan, given=ours / "curve.json")
    return difference(plan, *(load_file(folder / "adapter.safetensors") for folder in (ours, theirs)))


def exact_gate(trainers: Trainers, plan: Plan, steps: int) -> dict[str, Any]:
    """Return whether both trainers move the adapter alike in float32; beside it what bf16's rounding does."""
    apart = same_completions(trainers, plan.exact(steps))
    gate = {"steps": steps, "difference": apart, "bound": MOST_DIFFERENCE, "passed": apart <= MOST_DIFFERENCE}
    if plan.dtype == "bfloat16":
        gate["difference_in_bfloat16"] = same_completions(trainers, replace(plan, steps=min(steps, plan.steps)))
    return gate


# ---------------------------------------------------------------- runs and their summary


def run_of(arm: str, plan: Plan, folder: Path) -> Run:
    """Return what a process left."""
    curve = json.loads((folder / "curve.json").read_text())
    tokens = [sum(map(len, completions)) for completions in curve["completions"]]
    versions = {"versions": curve["versions"]} if "versions" in curve else {}
    kept = {"rewards": curve["reward"], "seconds": curve["seconds"], "tokens": tokens}
    return {"reward": plan.reward, "seed": plan.seed, "arm": arm, **kept, **versions}


def blocks(values: Sequence[float], count: int = BLOCKS) -> list[float]:
    """Return the means of ``count`` parts of equal size, the last with what remains."""
    size = max(len(values) // count, 1)
    starts = range(0, min(count, len(values)) * size, size)
    return [mean(values[start : start + size if start != starts[-1] else None]) for start in starts]


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return for each reward what the seeds' runs have in common, and how the trainers differ."""
    return {reward: _of_reward([run for run in runs if run["reward"] == reward]) for reward in _values(runs, "reward")}


def _of_reward(runs: Sequence[Run]) -> dict[str, Any]:
    by_arm = {arm: {run["seed"]: run for run in runs if run["arm"] == arm} for arm in _values(runs, "arm")}
    found: dict[str, Any] = {"arms": {arm: _of_arm(list(of_seed.values())) for arm, of_seed in by_arm.items()}}
    if set(by_arm) == {OURS, TRL}:
        seeds = sorted(set(by_arm[OURS]) & set(by_arm[TRL]))
        apart = [mean(by_arm[OURS][seed]["rewards"]) - mean(by_arm[TRL][seed]["rewards"]) for seed in seeds]
        found["ours_minus_trl"] = paired(apart)
        found["seconds_of_trl"] = found["arms"][OURS]["seconds"] / found["arms"][TRL]["seconds"]
    return found


def _of_arm(runs: Sequence[Run]) -> dict[str, Any]:
    by_seed = list(zip(*(blocks(run["rewards"]) for run in runs), strict=True))
    return {
        "blocks": [{"mean": mean(values), "min": min(values), "max": max(values)} for values in by_seed],
        "seconds": min(run["seconds"][-1] for run in runs),
    }


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """Return mean and 95% interval of paired differences, by Student's t; no interval of fewer than two."""
    centre, count = mean(differences), len(differences)
    if count < 2:
        return {"mean": centre, "seeds": count}
    spread = sum((value - centre) ** 2 for value in differences) / (count - 1)
    half = float(student.ppf(0.975, count - 1)) * (spread / count) ** 0.5
    return {"mean": centre, "low": centre - half, "high": centre + half, "seeds": count}


def _values(runs: Sequence[Run], name: str) -> list[Any]:
    return list(dict.fromkeys(run[name] for run in runs))


# ---------------------------------------------------------------- the program


def plans(plan: Plan, rewards: Sequence[str], seeds: Sequence[int]) -> Iterator[Plan]:
    """Yield a plan for each seed and reward."""
    for seed, reward in product(seeds, rewards):
        yield replace(plan, reward=reward, seed=seed)


def measure(options: argparse.Namespace) -> int:
    """Make all runs, write the file anew after each, draw and print; return the exit status."""
    plan, console = plan_of(options), Console()
    arms = [OURS, TRL] if options.arms is None and has_trl(options.trl_python) else options.arms or [OURS]
    if TRL in arms:
        check_trl(options.trl_python)
    found: dict[str, Any] = {"benchmark": "learning", **report.origin(plan.device), "settings": asdict(plan)}
    found |= {"passed": False, "gates": {}, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        trainers = Trainers(Path(folder), options.trl_python, options.process_minutes)
        try:
            if TRL in arms:
                name = "the same completions move both adapters alike, float32"
                found["gates"][name] = exact_gate(trainers, plan, options.exact_steps)
                report.print_gates(found["gates"], console)
            if report.passed(found["gates"]):
                for number, each in enumerate(plans(plan, options.rewards, options.seeds)):
                    for arm in arms[:: -1 if number % 2 else 1]:
                        found["runs"].append(run_of(arm, each, trainers.learn(arm, each)))
                        found["summary"] = summary(found["runs"])
                        report.write(options.out, found)
                        print(line(found["runs"][-1]), file=sys.stderr)
        except ArmError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    found["passed"] = report.passed(found["gates"])
    report.write(options.out, found)
    if found["runs"]:
        draw(found, options.out.with_suffix(".svg"))
        show(found, console)
    return 0 if found["passed"] else 1


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan that the options name."""
    device = device_of(options)
    dtype = str(dtype_of(options.dtype, device)).removeprefix("torch.")
    sizes = {"steps": options.steps, "completion_tokens": options.completion_tokens}
    if options.quick:
        sizes = {"steps": 2, "completion_tokens": 8}
    return Plan(model=options.model, device=device, dtype=dtype, **sizes)  # type: ignore[arg-type]


def line(run: Run) -> str:
    """Return how a run went."""
    return (
        f"{run['reward']}, seed {run['seed']}, {run['arm']}: reward {blocks(run['rewards'])[0]:.3f} -> "
        f"{blocks(run['rewards'])[-1]:.3f} in {run['seconds'][-1]:.0f} s"
    )


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the table, and a sentence on each reward."""
    console.print(table(found["summary"], found["settings"]["steps"]))
    for reward, of_reward in found["summary"].items():
        if "ours_minus_trl" not in of_reward:
            continue
        apart = of_reward["ours_minus_trl"]
        if "low" in apart:
            within = "no difference by step" if apart["low"] <= 0 <= apart["high"] else "A DIFFERENCE BY STEP"
            console.print(
                f"{reward}: mean reward of a run, lit-debias minus TRL: {apart['mean']:+.3f} "
                f"({apart['low']:+.3f} to {apart['high']:+.3f}, {apart['seeds']} seeds): {within}",
                highlight=False,
            )
        console.print(
            f"{reward}: all steps take lit-debias {of_reward['seconds_of_trl']:.2f} of TRL's time", highlight=False
        )


def table(found: Mapping[str, Any], steps: int) -> Table:
    """Return a row for each reward and trainer: the seeds' mean reward in parts of the run, and the run's seconds."""
    result = Table("reward", "trainer", box=box.SIMPLE, padding=(0, 1, 0, 0))
    count = len(next(iter(next(iter(found.values()))["arms"].values()))["blocks"])
    size = max(steps // count, 1)
    for number in range(count):
        result.add_column(
            f"{number * size + 1}-{(number + 1) * size if number + 1 < count else steps}", justify="right"
        )
    result.add_column("seeds at the end", justify="right")
    result.add_column("s", justify="right")
    for reward, of_reward in found.items():
        for arm, of_arm in of_reward["arms"].items():
            last = of_arm["blocks"][-1]
            means = [f"{block['mean']:.3f}" for block in of_arm["blocks"]]
            result.add_row(reward, arm, *means, f"{last['min']:.3f} to {last['max']:.3f}", f"{of_arm['seconds']:.0f}")
    return result


def parser() -> argparse.ArgumentParser:
    result = program("learning", __doc__)
    plan = Plan()
    result.add_argument("--model", default=plan.model, help="folder, pkg://PACKAGE/FILE.gguf, or hub id")
    result.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    result.add_argument("--steps", type=positive, default=plan.steps)
    result.add_argument("--completion-tokens", type=positive, default=plan.completion_tokens)
    result.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    result.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(REWARDS))
    result.add_argument("--arms", nargs="+", choices=SIDES, help="default: both where TRL can be imported")
    result.add_argument("--trl-python", default=sys.executable, help="Python that can import trl (default: this one)")
    result.add_argument("--exact-steps", type=positive, default=EXACT_STEPS, help="of the exact part")
    result.add_argument("--process-minutes", type=float, default=60.0, help="limit of one process")
    result.add_argument("--quick", action="store_true", help="two tiny steps: does it run?")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 0, 1 where the exact part or a process failed, or 2 for a user's mistake."""
    return report.guarded(measure, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
