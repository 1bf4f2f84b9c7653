"""Completions a second of rewards, against Hugging Face's text-classification pipeline on the same encoder.

Without --reward, the rewards are the four heads of a reward model on a random encoder of DeBERTa-v3-base's shape; the
pipeline has the same encoder, a head of four labels, and fp32. Checks first that the rewards say what the plain
encoder and heads say; exits with 1, and times nothing, where they do not.

    python -m benchmarks.rewards
    python -m benchmarks.rewards --reward 'DebertaFairness={"checkpoint": "runs/reward_model"}' --reward Fluency

docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import DebertaV2Model, Pipeline, pipeline

from benchmarks import report
from benchmarks.clock import Clock
from benchmarks.encoders import ENCODERS, classifier, encoder_config, save_reward_model
from benchmarks.options import add_rewards, build_reward, device_of, positive, program
from lit_debias.rewards.asking import ask, check_scores
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.support.precision import dtype_of
from lit_debias_deberta.checkpoint import build_network
from lit_debias_deberta.network import DIMENSIONS

HEADS = tuple(f"Deberta{name.capitalize()}" for name in DIMENSIONS)
MAX_LENGTH = 256
MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.05}  # of a score


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the gate, and seconds and rates where it passed; see docs/benchmarks.md for the fields."""
    device = device_of(options)
    settings = {name: getattr(options, name) for name in ("shape", "completions", "repeats", "pipeline_batch_size")}
    settings["dtype"] = str(dtype_of(options.dtype or "auto", device)).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as temporary:
        named, folder = rewards(options, Path(temporary) / "reward_model")
        for reward in named.values():
            reward.setup(torch.device(device))
        gates = {} if folder is None else {"plain_scores": score_gate(named, folder, settings["dtype"])}
        found: dict[str, Any] = {"gates": gates, "phases": {}}
        if report.passed(gates):
            pipelines = {} if folder is None else pipelines_of(folder, device, options.pipeline_batch_size)
            vocabulary = encoder_config(options.shape).vocab_size
            batches = [random_batch(options.completions, vocabulary, 3 + repeat) for repeat in range(options.repeats)]
            clock = timed(named, pipelines, random_batch(8, vocabulary, seed=2), batches, device)
            found = {"gates": gates, "phases": clock.figures()} | speedup(clock)
    name = f"{len(named)} rewards, {options.completions} completions, {options.shape}, {device}"
    return {"benchmark": "rewards", "name": name, "settings": {**settings, "device": device}, **found}


def rewards(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Reward], Path | None]:
    """Return the rewards by name, and the folder of the random reward model where there is one."""
    if options.reward:
        return dict(build_reward(text) for text in options.reward), None
    save_reward_model(options.shape, folder, MAX_LENGTH)
    arguments = json.dumps({"checkpoint": str(folder), "dtype": options.dtype or "auto"})
    return dict(build_reward(f"{head}={arguments}") for head in HEADS), folder


def random_batch(completions: int, vocabulary: int, seed: int) -> RewardBatch:
    """Return completions of 8 to 128 words, eight to a prompt of 8 to 32; equal seeds give equal batches.

    Texts are words of the random encoder's tokenizer; ids and log-probs are random too.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(shortest: int, longest: int) -> list[int]:
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        return torch.randint(4, vocabulary, (length,), generator=generator).tolist()

    prompts = [words(8, 32) for _ in range(-(-completions // 8))]
    ids = [words(8, 128) for _ in range(completions)]
    return RewardBatch(
        prompts=[text_of(prompts[row // 8]) for row in range(completions)],
        completions=[text_of(row) for row in ids],
        group_ids=[row // 8 for row in range(completions)],
        completion_ids=ids,
        reference_logprobs=[-4 * torch.rand(len(row), generator=generator) for row in ids],
    )


def text_of(ids: Sequence[int]) -> str:
    return " ".join(f"w{index}" for index in ids)


def score_gate(named: dict[str, Reward], folder: Path, dtype: str) -> dict[str, Any]:
    """Compare the scores of 16 completions with those of Hugging Face's encoder, each pair read alone."""
    network = build_network(str(folder), max_length=MAX_LENGTH).eval()
    network.encoder = DebertaV2Model.from_pretrained(folder, dtype=torch.float32).eval()
    batch = random_batch(16, network.encoder.config.vocab_size, seed=1)
    with torch.inference_mode():
        plain = network.scores(network.read(batch.prompts, batch.completions, batch_size=1))
    found = torch.tensor([check_scores(name, ask(name, named[name], batch), batch) for name in HEADS]).T
    difference = float((found - plain).abs().max())
    return {
        "max_difference": difference,
        "max_bound": MAX_DIFFERENCE[dtype],
        "passed": difference <= MAX_DIFFERENCE[dtype],
    }


def pipelines_of(folder: Path, device: str, batch_sizes: Sequence[int]) -> dict[str, Pipeline]:
    """Return Hugging Face's pipelines by name, one for each batch size."""
    tokenizer = build_network(str(folder)).tokenizer
    options: dict[str, Any] = {"top_k": None, "function_to_apply": "sigmoid", "device": device}
    return {
        f"pipeline, batch {size}": pipeline(
            "text-classification", classifier(folder), tokenizer=tokenizer, batch_size=size, **options
        )
        for size in batch_sizes
    }


def timed(
    named: dict[str, Reward],
    pipelines: dict[str, Pipeline],
    warmup: RewardBatch,
    batches: Sequence[RewardBatch],
    device: str,
) -> Clock:
    """Time rewards and pipelines in turn; every repeat has other completions, which no cache knows."""
    run(named, pipelines, warmup, Clock(device))
    clock = Clock(device)
    for batch in batches:
        run(named, pipelines, batch, clock)
    clock.total("rewards", [f"reward {name}" for name in named], like=f"reward {next(iter(named))}")
    return clock


def run(named: dict[str, Reward], pipelines: dict[str, Pipeline], batch: RewardBatch, clock: Clock) -> None:
    """Score one batch with everything."""
    pairs = [{"text": p, "text_pair": c} for p, c in zip(batch.prompts, batch.completions, strict=True)]
    for name, reward in named.items():
        with clock.phase(f"reward {name}"):
            ask(name, reward, batch)
        clock.count(f"reward {name}", len(batch), "completions/s")
    for name, plain in pipelines.items():
        with clock.phase(name):
            plain(pairs, truncation=True, max_length=MAX_LENGTH)
        clock.count(name, len(batch), "completions/s")


def speedup(clock: Clock) -> dict[str, dict[str, float]]:
    """Return how many times faster all rewards together are than each pipeline."""
    figures = clock.figures()
    pipelines = {name: figure["rate"] for name, figure in figures.items() if name.startswith("pipeline")}
    return {"speedup": {name: figures["rewards"]["rate"] / slow for name, slow in pipelines.items()}}


def parser() -> argparse.ArgumentParser:
    result = program("rewards", __doc__)
    add_rewards(result, "the heads of a random reward model, and the pipeline beside them")
    result.add_argument("--shape", choices=ENCODERS, default="deberta-v3-base", help="of the random encoder")
    result.add_argument(
        "--dtype", choices=MAX_DIFFERENCE, help="of the products (default: bfloat16 where the device has it)"
    )
    result.add_argument("--completions", type=positive, default=256)
    result.add_argument("--repeats", type=positive, default=3)
    result.add_argument("--pipeline-batch-size", type=positive, nargs="+", default=[1, 16])
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where the gate failed, or 2 for a user's mistake."""
    return report.run(measure, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
