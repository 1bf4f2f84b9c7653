"""Runs that are killed, and runs that are told to stop."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks import fault_runs
from benchmarks.fault_bench import RESUMES, Bench, Finding
from benchmarks.fault_runs import Lab, checkpoints, die_while_saving, final_state, free_port, rank_of_two, same
from lit_debias.training import checkpoints as checkpoint_io

# ---------------------------------------------------------------- kill -9


def killed(bench: Bench) -> Finding:
    """One run, killed again and again: every other time while it saves, else at a random moment."""
    lab, chance = Lab(bench.lab.run_folder("killed"), steps=6 * bench.kills + 8), random.Random(bench.seed)
    whole, folder = bench.undisturbed(lab), lab.run_folder("run")
    config, kills, done = lab.config(folder), [], 0
    for number in range(bench.kills):
        saving = number % 2 == 0
        before = partial(die_while_saving, chance.randint(1, 200)) if saving else None
        running = lab.resume(config, before=before)
        if not saving:
            interrupt(running, folder, chance)
        ended = running.end()
        good, damaged = checkpoint_io.newest_good(checkpoints(folder))
        step = checkpoint_io.read(good)["global_step"] if good else 0
        half = [path.name for path in folder.rglob("*.part")]
        where = ended.text.rpartition("killed in ")[2].strip() if saving else "anywhere"
        kills.append({"code": ended.code, "where": where, "step": step, "unfinished_files": len(half)})
        if ended.code != -signal.SIGKILL or damaged or step < done:
            break
        done = step
    ended = lab.resume(config).end()
    result = "bitwise" if ended.code == 0 and same(whole, final_state(folder)) else ended.text[-300:]
    bench.details["kills"] = kills
    counts = [0, *(kill["unfinished_files"] for kill in kills)]  # of all kills so far; nobody clears them away
    unfinished = sum(after > before for before, after in pairwise(counts))
    seen = (
        f"{len(kills)} kills by step {done} of {lab.steps}, {unfinished} left half a file; no checkpoint was damaged, "
        f"no step lost; then {result}"
    )
    all_died = [kill["code"] for kill in kills] == [-signal.SIGKILL] * bench.kills
    if not all_died:
        seen = f"after {len(kills)} kills: {kills[-1]}, {damaged}; then {result}"
    return Finding(f"kill -9, {bench.kills} times", RESUMES, seen, all_died and result == "bitwise")


def interrupt(running: fault_runs.Running, folder: Path, chance: random.Random) -> None:
    """Kill a process at a random moment: while it starts, one time in four, else once it has saved something new."""
    before, starting = checkpoints(folder)[:1], chance.random() < 0.25
    if not starting:
        running.wait_for(lambda: checkpoints(folder)[:1] != before)
    if not running.ended(chance.uniform(0, 2.0 if starting else 0.2)):
        running.send(signal.SIGKILL)


def killed_at_the_end(bench: Bench) -> Finding:
    """Killed after the last checkpoint and before the adapter is written."""
    folder = bench.lab.run_folder("at_the_end")
    config = bench.lab.config(folder)

    def before() -> None:
        from lit_debias.training.callbacks import AdapterExport

        AdapterExport.on_fit_end = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]

    ended = bench.lab.fit(config, before=before).end()
    seen = f"exit code {ended.code}, then {bench.resumes(config)}"
    return Finding("kill -9 before the adapter is written", RESUMES, seen, seen == "exit code -9, then bitwise")


# ---------------------------------------------------------------- told to stop


def stopped(bench: Bench, name: str, number: int, checkpoint_callback: bool = True) -> Finding:
    """A signal at a random moment; the exit code is the shell's, and the line says how to go on."""
    folder = bench.lab.run_folder(name.replace(" ", "_"))
    callbacks = {} if checkpoint_callback else {"callbacks": [{"class_path": "AdapterExport"}]}
    config = bench.lab.config(folder, **callbacks)
    started = (lambda: checkpoints(folder)) if checkpoint_callback else (lambda: list(folder.rglob("metrics.csv")))
    running = bench.lab.fit(config)
    running.wait_for(lambda: bool(started()))
    running.ended(random.Random(f"{bench.seed} {name}").uniform(0, 0.3))
    running.send(number)
    ended = running.end()
    line = "resume with --ckpt_path" in ended.text and "Traceback" not in ended.text
    seen = f"exit code {ended.code}, {'one line' if line else 'no line'}, then {bench.resumes(config)}"
    expected = f"exit code {128 + number}, one line, then bitwise"
    return Finding(name, expected, seen, seen == expected)


def sigterm(bench: Bench) -> Finding:
    """As SLURM and Kubernetes send it."""
    return stopped(bench, "SIGTERM", signal.SIGTERM)


def sigterm_without_checkpoints(bench: Bench) -> Finding:
    """Where no ModelCheckpoint of the configuration saves at steps."""
    return stopped(bench, "SIGTERM without ModelCheckpoint", signal.SIGTERM, checkpoint_callback=False)


def control_c(bench: Bench) -> Finding:
    """As a terminal sends it."""
    return stopped(bench, "Ctrl-C", signal.SIGINT)


def sigterm_of_two(bench: Bench, told: tuple[int, ...]) -> Finding:
    """Two processes train together, and ``told`` get the signal, one after the other."""
    name = f"SIGTERM to {'both' if len(told) == 2 else 'the second'} of 2 processes"
    lab = bench.lab
    options = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.use_distributed_sampler", "false")

    def pair(config: Path, *more: str) -> list[fault_runs.Running]:
        port = free_port()
        return [lab.fit(config, *options, *more, before=partial(rank_of_two, rank, port)) for rank in (0, 1)]

    folders = [lab.run_folder(f"{name.replace(' ', '_')}/{which}") for which in ("whole", "stopped")]
    configs = [lab.config(folder) for folder in folders]
    codes = [running.end().code for running in pair(configs[0])]
    running = pair(configs[1])
    running[0].wait_for(lambda: bool(checkpoints(folders[1])))
    for rank in told:
        running[rank].send(signal.SIGTERM)
        running[rank].ended(0.05)
    codes += [each.end().code for each in running]
    codes += [each.end().code for each in pair(configs[1], "--ckpt_path", "last")]
    bitwise = codes[-2:] == [0, 0] and same(*map(final_state, folders))
    seen = f"exit codes {codes[2:4]}, then {'bitwise' if bitwise else f'not ({codes})'}"
    expected = "exit codes [143, 0], then bitwise"
    return Finding(name, expected, seen, seen == expected)


SHORT: dict[str, Callable[[Bench], Finding]] = {
    "killed": killed,
    "sigterm": sigterm,
}
FULL: dict[str, Callable[[Bench], Finding]] = {
    "killed_at_the_end": killed_at_the_end,
    "sigterm_without_checkpoints": sigterm_without_checkpoints,
    "control_c": control_c,
    "sigterm_second_of_two": lambda bench: sigterm_of_two(bench, (1,)),
    "sigterm_both_of_two": lambda bench: sigterm_of_two(bench, (0, 1)),
}
