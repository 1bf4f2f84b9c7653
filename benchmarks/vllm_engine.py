"""Rollouts of ``VLLMEngine`` on a server against vLLM's own ``LLM.generate``, and how long a server takes to switch.

    python -m benchmarks.vllm_engine --vllm-python .venv-vllm/bin/python

Both sample the same prompts with the same seeds, threads and options of vLLM, in turn, and no token ends a completion.
The ratio is taken pair by pair, so that what else the machine does meets both. Exits with 1 where a goal is missed; the
figures are written all the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.clock import spread
from benchmarks.options import positive, program
from benchmarks.settings import EMBEDDED_MODEL
from benchmarks.vllm_processes import offline, options_of, server
from lit_debias import QLoRAPolicy
from lit_debias.models.sources import check_model, resolve
from lit_debias.policy.policy import Policy
from lit_debias.types import PromptBatch
from lit_debias_vllm import VLLMEngine, sync
from lit_debias_vllm.sampling import Sampling, seed_of

SHARE, SWITCH_SECONDS = 0.9, 0.5
Way = Literal["adapter", "merged"]
WAYS: tuple[Way, ...] = ("merged", "adapter")


@dataclass(frozen=True)
class Size:
    """P x G x T."""

    prompts: int
    group_size: int
    tokens: int

    @classmethod
    def read(cls, text: str) -> Size:
        """Return what ``8x8x48`` says."""
        return cls(*(positive(part) for part in text.split("x")))

    @property
    def total(self) -> int:
        """P x G x T."""
        return self.prompts * self.group_size * self.tokens

    def __str__(self) -> str:
        return f"{self.prompts} x {self.group_size} x {self.tokens}"


class Other(Protocol):
    """Samples without a server; see :class:`benchmarks.vllm_processes.Offline`."""

    def rollout(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``seconds`` and ``tokens``."""


def prompts_of(size: Size) -> PromptBatch:
    """Return as many prompts, no two alike."""
    asked = "Is it fair to judge people from region {} by where they come from?"
    return PromptBatch([asked.format(number) for number in range(size.prompts)])


def task_of(policy: Policy, size: Size, seed: int, adapter: str | None) -> dict[str, Any]:
    """Return the rollout that an engine makes of a seed, for :class:`Other`."""
    encoded = policy.encode_prompts(prompts_of(size).asked)
    sampling = Sampling(size.group_size, size.tokens, 1.0, policy.eos_token_ids)
    return {
        "prompts": [ids[mask].tolist() for ids, mask in zip(*encoded, strict=True)],
        "sampling": [sampling.parameters(seed_of(seed, number)) for number in range(size.prompts)],
        "adapter": adapter,
        "salt": "offline",
    }


def pairs(policy: Policy, engine: VLLMEngine, other: Other, size: Size, rounds: int) -> dict[str, Any]:
    """Return tokens/s of both and the ratio of each pair; the first pair warms up.

    Raises:
        RuntimeError: one of them has sampled another number of tokens.
    """
    engine.max_new_tokens = size.tokens
    adapter = str(engine.versions.now(policy).adapter()) if engine.sync == "adapter" else None
    found: dict[str, list[float]] = {"engine": [], "offline": []}
    for turn in range(1 + rounds):

        def ours(turn: int = turn) -> tuple[float, int]:
            start = time.perf_counter()
            rollout = engine.generate(policy, prompts_of(size), size.group_size, turn)
            return time.perf_counter() - start, int(rollout.lengths.sum())

        def theirs(turn: int = turn) -> tuple[float, int]:
            done = other.rollout(task_of(policy, size, turn, adapter))
            return done["seconds"], done["tokens"]

        sides = {"engine": ours, "offline": theirs}
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            seconds, tokens = sides[name]()
            if tokens != size.total:
                raise RuntimeError(f"{name}: {tokens} tokens were sampled, not {size.total}")
            if turn:
                found[name].append(tokens / seconds)
    ratios = [mine / other for mine, other in zip(found["engine"], found["offline"], strict=True)]
    return {**{name: spread(rates) for name, rates in found.items()}, "ratio": spread(ratios)}


def switches(policy: Policy, engine: VLLMEngine, count: int) -> dict[str, Any]:
    """Return the seconds from an update until the server has the new version, files and all."""
    engine.prepare(policy)
    pool = engine._pool
    assert pool is not None
    seconds = []
    for _ in range(count):
        with torch.no_grad():
            for parameter in policy.trainable_parameters().values():
                parameter.add_(1e-4)
        start = time.perf_counter()
        engine._version = engine.versions.now(policy)
        pool.call(sync.bring, pool.servers[0], engine._version)
        seconds.append(time.perf_counter() - start)
    return spread(seconds)


def of_way(policy: Policy, url: str, way: Way, other: Other, options: argparse.Namespace) -> dict[str, Any]:
    """Return rates and switches of one way of weights to a server."""
    sizes = [Size.read(text) for text in options.sizes]

    def engine(transfer: Literal["folder", "http"] = "folder") -> VLLMEngine:
        longest = max(size.tokens for size in sizes)
        return VLLMEngine([url], longest, sync=way, transfer=transfer, timeout=1800, check_every=10**6)

    rates = {str(size): pairs(policy, engine(), other, size, options.rounds) for size in sizes}
    by: dict[str, Any] = {
        transfer: switches(policy, engine(transfer), options.switches) for transfer in ("folder", "http")
    }
    return {"rates": rates, "switch_seconds": by}


def goals(ways: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what is to be reached, what was, and whether it suffices, by name."""
    found = {}
    for way, figures in ways.items():
        for size, rates in figures["rates"].items():
            value = rates["ratio"]["median"]
            found[f"{way}, {size}, of offline"] = {"value": value, "bar": SHARE, "passed": value >= SHARE}
        value = figures["switch_seconds"]["folder"]["median"]
        found[f"{way}, switch in s"] = {"value": value, "bar": SWITCH_SECONDS, "passed": value < SWITCH_SECONDS}
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of both ways, and the goals."""
    check_model(options.model)
    policy = loaded(options.model)
    sizes = [Size.read(text) for text in options.sizes]
    rows, longest = max(s.prompts * s.group_size for s in sizes), 128 + max(s.tokens for s in sizes)
    ways = {}
    for way in options.ways:
        rank = policy.recipe.rank if way == "adapter" else None
        given = options_of(resolve(options.model), rows, longest, rank)
        with (
            offline(options.vllm_python, given, options.threads) as other,
            server(options.vllm_python, given, options.threads) as url,
        ):
            ways[way] = of_way(policy, url, way, other, options)
    settings = {"model": options.model, "device": "cpu", "threads": options.threads, "rounds": options.rounds}
    sizes_told = [asdict(size) for size in sizes]
    found = {"settings": {**settings, "sizes": sizes_told, "switches": options.switches}, "ways": ways}
    return {"benchmark": "vllm_engine", **found, "goals": goals(ways)}


def loaded(model: str) -> Policy:
    """Return a policy whose adapter does something, and whose completions no token ends."""
    torch.manual_seed(0)
    policy = QLoRAPolicy(model, quantization="none", dtype="bfloat16").load()
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    policy.eos_token_ids = ()
    return policy


# ---------------------------------------------------------------- showing


def publish(found: Mapping[str, Any], out: Path) -> int:
    """Write and print; return 1 where a goal is missed."""
    passed = report.passed(found["goals"])
    report.write(out, {**report.origin("cpu"), "passed": passed, **found})
    console = Console()
    console.print(table(found["ways"]))
    for name, goal in found["goals"].items():
        mark = "ok  " if goal["passed"] else "MISS"
        console.print(f"{mark} {name}: {goal['value']:.2f} (goal {goal['bar']:g})", highlight=False)
    return 0 if passed else 1


def table(ways: Mapping[str, Any]) -> Table:
    """Return a row for each way and size."""
    result = Table("weights", "rollout", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("engine\ntokens/s", "offline\ntokens/s", "ratio", "switch s\nfolder", "switch s\nHTTP"):
        result.add_column(column, justify="right")
    for way, figures in ways.items():
        times = [f"{median(figures['switch_seconds'][by]['all']):.2f}" for by in ("folder", "http")]
        for size, rates in figures["rates"].items():
            both = [f"{rates[name]['median']:,.0f}" for name in ("engine", "offline")]
            result.add_row(way, size, *both, f"{rates['ratio']['median']:.0%}", *times)
    return result


def parser() -> argparse.ArgumentParser:
    result = program("vllm_engine", __doc__)
    result.add_argument("--vllm-python", metavar="PYTHON", required=True, help="of an environment with vLLM")
    result.add_argument("--model", default=EMBEDDED_MODEL, help="folder, pkg://PACKAGE/FILE.gguf, or hub id")
    result.add_argument("--sizes", nargs="+", default=["8x8x48", "16x8x64"], help="prompts x group x new tokens")
    result.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    result.add_argument("--rounds", type=positive, default=5, help="pairs of each size")
    result.add_argument("--switches", type=positive, default=7)
    result.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="of each vLLM")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where a goal is missed, or 2 for a user's mistake."""
    options = parser().parse_args(arguments)
    return report.guarded(lambda given: publish(measure(given), given.out), options)


if __name__ == "__main__":
    sys.exit(main())
