"""Steps that sample, then train, and steps that train while they sample, with a vLLM server on a core of its own.

    python -m benchmarks.asynchronous --vllm-python .venv-vllm/bin/python

The server has one core and the trainer another, as a GPU each would be, so that neither takes time from the other but
through memory. The two kinds of step take turns in one run. Exits with 1 where training while sampling is not faster.
docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.clock import Clock, spread
from benchmarks.measurement import MeasuredGRPO, measured
from benchmarks.options import add_step, build_reward, model_at_hand, program, settings_of
from benchmarks.settings import Settings
from lit_debias.errors import UserError
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias.plugins import RolloutEngine, RolloutUnderWay
from lit_debias.support.threads import usable_cores
from lit_debias.training.grpo import GRPO
from lit_debias.types import PromptBatch
from lit_debias_vllm import VLLMEngine
from lit_debias_vllm.__main__ import write_base

IN_TURN, OVERLAPPED = "in turn", "overlapped"
PARTS = {"rollout_time": "sampling", "update": "update", "rollout_wait": "waited for the rollout"}
"""What is kept of a step -> what the table calls it."""
SWITCHES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
OPTIONS = (
    *("--served-model-name", "base", "--host", "127.0.0.1", "--enable-lora", "--max-lora-rank", "16"),
    *("--logprobs-mode", "processed_logprobs", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"),
)


class Either(VLLMEngine):
    """Samples in turn with the update, or while it goes on."""

    in_turn = True

    def under_way(self, *arguments: Any, **options: Any) -> AbstractContextManager[RolloutUnderWay]:
        """See :meth:`RolloutEngine.under_way`."""
        if self.in_turn:
            return RolloutEngine.under_way(self, *arguments, **options)
        return super().under_way(*arguments, **options)


class MeasuredAhead(MeasuredGRPO):
    """Steps of both kinds in turn, each with what its parts take."""

    def __init__(self, settings: Settings, engine: Either) -> None:
        super().__init__(settings, dict(map(build_reward, ("Fluency", "Variety"))), engine)  # type: ignore[arg-type]
        self.one_step_off_policy, self.correction = True, ImportanceCorrection()
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self._update = 0.0

    def train_on_experience(self) -> None:
        """Time the update."""
        start = time.perf_counter()
        super().train_on_experience()
        self._update = time.perf_counter() - start

    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Warm up, and time."""
        self.new_parts()
        for _ in range(self.settings.warmup):
            self._both(prompts, Clock(self.settings.device))
        self.new_parts()
        clock = Clock(self.settings.device)
        for _ in range(self.settings.repeats):
            self._both(prompts, clock)
        return {"phases": clock.figures(), "parts": self.seconds}

    def new_parts(self) -> None:
        """Forget what was timed."""
        self.seconds = {arm: defaultdict(list) for arm in (IN_TURN, OVERLAPPED)}

    def _both(self, prompts: PromptBatch, clock: Clock) -> None:
        for arm in (IN_TURN, OVERLAPPED):
            self.engine.in_turn = arm == IN_TURN  # type: ignore[attr-defined]
            with clock.phase(arm):
                GRPO.training_step(self, prompts, 0)
            found = self.trainer.callback_metrics
            clock.count(arm, float(found["num_tokens"]), "tokens/s")
            values = {name: float(found[name]) for name in ("rollout_time", "rollout_wait")} | {"update": self._update}
            for name, value in values.items():
                self.seconds[arm][name].append(value)


# ---------------------------------------------------------------- the server


@contextmanager
def served(python: str, model: Path, core: int, longest: int) -> Iterator[str]:
    """Start a server on one core within the context, and yield its address.

    Raises:
        UserError: it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["taskset", "-c", str(core), python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--port", str(port), "--dtype", "bfloat16", "--max-model-len", str(longest), *OPTIONS]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SWITCHES
    log = model.with_name("vllm.log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}", process, log, python)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, python: str, seconds: float = 600) -> None:
    """Wait until a server is well.

    Raises:
        UserError: it has ended, or is not well in time; says its last line.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
    raise UserError(f"--vllm-python {python}: vLLM's server does not start: {last}")


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this process on one core within the context."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---------------------------------------------------------------- figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of both kinds of step and of their parts, and what the arithmetic says of them."""
    settings, cores = settings_of(options), sorted(usable_cores())
    if not Path(options.vllm_python).is_file():
        raise UserError(f"--vllm-python {options.vllm_python}: no such file; write the Python of an environment")
    if len(cores) < 2:
        raise UserError("asynchronous: it needs two cores, one for the server and one for the trainer")
    server_core, trainer_core = cores[:2]
    with model_at_hand(settings, options.shape_folder) as at_hand, tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        write_base(at_hand.model, base, "bfloat16")
        longest = settings.prompt_tokens + settings.completion_tokens + 64  # and the check's own prompts
        with served(options.vllm_python, base, server_core, longest) as url, on_core(trainer_core):
            engine = Either([url], settings.completion_tokens, timeout=600.0)
            found = measured(MeasuredAhead(at_hand, engine))
    parts = {arm: {name: spread(each) for name, each in of.items()} for arm, of in found.pop("parts").items()}
    cores_of = {"server": server_core, "trainer": trainer_core}
    named = {"benchmark": "asynchronous", "name": settings.name, "settings": asdict(settings), "cores": cores_of}
    return {**named, **found, "parts": parts, "summary": summary(found["phases"], parts)}


def summary(phases: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, float]:
    """Return medians: of both kinds of step, of what the overlapped one would take at best, and how much faster it is.

    At best the shorter of sampling and update takes no time of its own.
    """
    in_turn, overlapped = (phases[arm]["seconds"]["median"] for arm in (IN_TURN, OVERLAPPED))
    sampling, update = (parts[IN_TURN][name]["median"] for name in ("rollout_time", "update"))
    best = in_turn - min(sampling, update)
    pairs = zip(phases[IN_TURN]["seconds"]["all"], phases[OVERLAPPED]["seconds"]["all"], strict=True)
    return {
        "in_turn": in_turn,
        "overlapped": overlapped,
        "at_best": best,
        "times_as_fast": median(one / other for one, other in pairs),
        "of_the_gain": (in_turn - overlapped) / (in_turn - best),
    }


def publish(found: Mapping[str, Any], out: Path) -> int:
    """Write and print; return 1 where overlapping is not faster."""
    known = found["summary"]
    passed = known["times_as_fast"] > 1
    report.write(out, {**report.origin(found["settings"]["device"]), "passed": passed, **found})
    console = Console()
    console.print(table(found))
    console.print(
        f"{'ok  ' if passed else 'MISS'} {known['times_as_fast']:.2f} times as fast; {known['at_best']:.2f} s at best, "
        f"{known['of_the_gain']:.0%} of that gain",
        highlight=False,
    )
    return 0 if passed else 1


def table(found: Mapping[str, Any]) -> Table:
    """Return a row for each kind of step: medians of the whole and of its parts, in seconds."""
    result = Table("", "step", *PARTS.values(), title=found["name"], box=box.SIMPLE, padding=(0, 1, 0, 0))
    for arm, phase in found["phases"].items():
        medians = [phase["seconds"]["median"], *(found["parts"][arm][name]["median"] for name in PARTS)]
        result.add_row(arm, *(f"{seconds:.2f} s" for seconds in medians))
    return result


def parser() -> argparse.ArgumentParser:
    result = program("asynchronous", __doc__)
    add_step(result)
    result.set_defaults(quantization="none", prompts=4)
    result.add_argument("--vllm-python", metavar="PYTHON", required=True, help="of an environment with vLLM")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where overlapping is not faster, or 2 for a user's mistake."""
    return report.guarded(lambda given: publish(measure(given), given.out), parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
