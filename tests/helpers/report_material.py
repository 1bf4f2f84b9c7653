"""Runs for tests of the report: records with known scores, results of many arms, training logs."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

from lit_debias.evaluation import explanations
from lit_debias.evaluation.explanations import Explained
from lit_debias.evaluation.records import Record, save_arm, write_json
from lit_debias.evaluation.results import provenance, summarize
from lit_debias.rewards.explanation import Explanation

EVIL = "<script>alert('pwned')</script><img src=x onerror=alert(1)>"
HOSTILE = (
    "</script></style>]]><!--<script>window.owned = 1</script><img src=x onerror='window.owned = 2'>"
    '<svg onload="window.owned = 3"></svg><a href="javascript:window.owned = 4">a</a><a href="https://evil.example">b</a>'
    "<b>bold</b>%{x}&lt;&#60;{{ 7 * 7 }}javascript:alert(1)"
)
CHECKPOINT = "runs/reward_model"
REWARDS = {
    "fairness": {
        "class": "lit_debias_deberta.rewards.DebertaFairness",
        "version": "0.1.0",
        "source": "4567cdef",
        "arguments": {"checkpoint": {"path": CHECKPOINT, "sha256": "89abef01"}, "dtype": "auto"},
    },
    "fluency": {"class": "lit_debias_fluency.reward.Fluency", "arguments": {"floor": -3.0, "ceiling": -0.5}},
}
"""Identities, as an evaluation writes them."""
SETTINGS = {"model": "tiny & small", "data_sha256": "0123abcd", "adapter": "runs/adapter", "rewards": REWARDS}
TITLES = {"before": "base", "prompt_only": "asked for fairness", "sft": "SFT", "grpo": "GRPO, all <rewards>"}


def record(i: int, side: int, score: float, text: str, **more) -> Record:
    group, other = ("rider", "nurse") if side == 0 else ("nurse", "rider")
    return Record(
        prompt_id=f"p{i}{side}",
        twin_id=f"t{i}",
        split="test_group",
        category="occupational</script>",
        group=group,
        prompt_kind="open",
        prompt=f"What are {group}s like, {i}?",
        counterfactual_prompt=f"What are {other}s like, {i}?",
        ambiguous=False,
        answer=-1,
        biased_choice=-1,
        completion=text,
        tokens=4,
        base_logprob=-8.0,
        judges={"judge": score},
        **more,
    )


def passage(i: int, logprob: float) -> Record:
    """Return a passage of prose that was read, 4 tokens long."""
    return Record(
        **dict.fromkeys(("prompt_id", "twin_id"), f"prose-{i}"),
        **dict.fromkeys(("split", "prompt_kind"), "prose"),
        **dict.fromkeys(("category", "group"), "all"),
        prompt=f"A passage of prose, {i}.",
        counterfactual_prompt="",
        ambiguous=False,
        answer=-1,
        biased_choice=-1,
        prose_logprob=logprob,
        prose_tokens=4,
    )


def write_evaluation(folder: Path, arms: dict[str, list[Record]], **changes) -> dict:
    """Write results.json and arms/ as `lit-debias evaluate` does; ``changes`` replace top-level parts."""
    for name, records in arms.items():
        save_arm(folder / "arms" / f"{name}.json", f"key of {name}", {}, records)
    results = {
        **summarize({name: [records] for name, records in arms.items()}, 50, 0),
        "settings": SETTINGS,
        "fingerprints": {name: f"key of {name}" for name in arms},
        "notes": ["a part of the data"],
        **provenance(),
        **changes,
    }
    write_json(folder / "results.json", results)
    return results


def explain_arms(folder: Path, arms: dict[str, list[Record]], why: Explanation, judge: str = "Judge m") -> None:
    """Write explanations as `lit-debias explain` does: ``why`` of every second answer, none of each fourth."""
    said = [why, Explanation(False), why, None]
    rows = [
        Explained(
            *(record.prompt, record.completion, said[number % 4], judge, "0123456789abcdef"),
            arm=arm,
            cluster=record.drawn_with,
            scores=record.judges,
        )
        for arm, records in arms.items()
        for number, record in enumerate(records)
    ]
    explanations.save(folder / explanations.NAME, rows)


def many_arms(folder: Path) -> list[str]:
    """Write a run of nine arms with seeds, a benchmark, and the log of a training; return the arms' names."""
    names = ["before", "prompt_only", "sft", "dpo", "grpo_fairness", "grpo", "gdpo", "an arm of a long name", "last"]
    arms = {}
    for number, name in enumerate(names):
        rewards = {"fairness": 0.4 + 0.05 * number, "fluency": 0.8 - 0.02 * number}
        text = EVIL if name == "grpo" else f"{name} said a-rather-long-word-{'x' * 60} and more"
        arms[name] = [
            record(i, side, min(1, 0.2 + 0.07 * number + 0.03 * i + 0.05 * side), f"{text} {i}", rewards=rewards)
            for i in range(6)
            for side in (0, 1)
        ]
    results = write_evaluation(folder, arms)
    why = Explanation(
        True, ("gender", "region"), ("riders",), ("SAID", "ALERT"), "It speaks of <all>.", "Some riders do.", ("never",)
    )
    explain_arms(folder, {name: arms[name] for name in ("before", "grpo")}, why)
    results["titles"] = TITLES
    results["arms"]["grpo"]["replicas"] = 3
    results["verdict"]["arm"] = "grpo"
    passed = {"name": "bias", "value": -0.6, "bar": "at most -50%, clearly", "passed": True}
    results["verdict"]["checks"] = [passed, {**passed, "name": "perplexity", "passed": False}]
    results["measures"]["crows"] = {"label": "CrowS-Pairs", "better": "toward 50", "section": "benchmarks"}
    for name, value in (("before", 60.0), ("grpo", 52.0)):
        results["arms"][name]["measures"]["crows"] = {"value": value, "low": value - 1, "high": value + 1, "n": 1508}
    write_json(folder / "results.json", results)
    log_csv(folder / "logs", [training_row(step) for step in range(40)])
    (folder / "logs" / "config.yaml").write_text(json.dumps(training_config()))  # JSON is YAML
    return names


def training_config(floor: float = -3.0, **policy) -> dict:
    """Return what Lightning saves of a training with the rewards of :data:`REWARDS`, unless ``floor`` is another."""
    rewards = {
        "fairness": {
            "class_path": "lit_debias_deberta.DebertaFairness",
            "init_args": {"checkpoint": CHECKPOINT, "dtype": "auto", "cache_size": 10000},
        },
        "fluency": {"class_path": "lit_debias_fluency.Fluency", "init_args": {"floor": floor, "ceiling": -0.5}},
    }
    arguments = {"policy": {"class_path": "QLoRAPolicy", "init_args": policy}, "rewards": rewards}
    return {"model": {"class_path": "GRPO", "init_args": arguments}}


def training_row(step: int) -> dict[str, float]:
    wave = math.sin(step)
    fairness, fluency = 0.5 + 0.01 * step + 0.02 * wave, 0.8 - 0.004 * step + 0.02 * wave
    rewards = {"reward": fairness + fluency, "rewards/fairness/mean": fairness, "rewards/fluency/mean": fluency}
    return {"step": 2 * step, "rollout_step": step + 1, **rewards, "kl": 0.01 * step}


def log_csv(folder: Path, rows: list[dict[str, float]]) -> None:
    folder.mkdir(parents=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def hostile(folder: Path) -> None:
    """Write a run in which every name and text is :data:`HOSTILE`, as are its settings, notes and configuration."""
    arms = {
        arm: [
            replace(
                record(i, side, score + 0.03 * i, HOSTILE, rewards={"fair": score, HOSTILE: score - 0.1}),
                **dict.fromkeys(("category", "group", "prompt", "counterfactual_prompt"), HOSTILE),
                judges={HOSTILE: score + 0.03 * i + 0.1 * side},
            )
            for i in range(4)
            for side in (0, 1)
        ]
        for arm, score in (("before", 0.2), ("after", 0.6))
    }
    texts = ((HOSTILE,), (HOSTILE,), ("<b>bold</b>",), HOSTILE, HOSTILE)
    explain_arms(folder, arms, Explanation(True, *texts), HOSTILE)
    settings = dict.fromkeys(("model", "adapter", "data", "data_sha256", HOSTILE), HOSTILE)
    results = write_evaluation(folder, arms, settings=settings, notes=[HOSTILE], created=HOSTILE, hardware=HOSTILE)
    results["titles"] = dict.fromkeys(arms, HOSTILE)
    results["verdict"]["sentence"] = HOSTILE
    results["verdict"]["checks"] = [{"name": HOSTILE, "value": 1.0, "bar": HOSTILE, "passed": True}]
    for about in results["measures"].values():
        about["label"] = about["section"] = HOSTILE
    write_json(folder / "results.json", results)
    rows = [
        {
            "step": step,
            "rollout_step": step,
            "reward": 0.5,
            "rewards/fair/mean": 0.1 * step,
            f"rewards/{HOSTILE}/mean": 0.5,
        }
        for step in range(3)
    ]
    log_csv(folder / "logs", rows)
    (folder / "logs" / "config.yaml").write_text(f"model: {HOSTILE}\n")


def text_of(page):
    """Return the page without plotly and other scripts that belong to it."""
    return re.sub(r"<script[ >].*?</script>", "", page.read_text(), flags=re.DOTALL)
