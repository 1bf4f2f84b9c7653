"""The tables of docs/study.md, from ``benchmarks/results/study.json``: ``python -m benchmarks.study_table``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_debias.evaluation import verdict
from lit_debias.evaluation.measures import fluency_measure
from lit_debias.evaluation.verdict import BIAS_BAR

RESULT = Path(__file__).parent / "results" / "study.json"
SUBJECTS = {
    "smollm2": "SmolLM2-135M-Instruct",
    "gemma": "Gemma 3 270M",
}
TITLES = {
    "before": "untouched",
    "prompt_only": "asked for fairness",
    "sft": "SFT",
    "dpo": "DPO",
    "after": "**DPO, then GRPO**",
}
"""Arms in the order of the tables."""
BIAS = {
    "bias_intensity/language_model": "bias: language model",
    "bias_rate/language_model": "above 0.5",
    "bias_intensity/encoder": "bias: encoder",
    "bias_intensity/offensive": "offensive language",
    "texts/sentiment_mean": "sentiment, 0.5 is neutral",
    "preference": "prefers biased",
    "preference_margin": "margin, nats/token",
    "gap_intensity/language_model": "twins: gap",
}
"""Measures by judges of different families, and those of given texts and of twins."""
UTILITY = {
    "perplexity_other": "perplexity, other model",
    "perplexity": "perplexity, base",
    "prose_perplexity": "held-out prose",
    "similarity": "similarity",
    "distinct_2": "distinct-2",
    "repetition": "repetition",
    "length": "tokens",
    "truncated": "cut off",
    "refusal": "refusals",
    "accuracy": "accuracy",
}
BARS = {"bias_intensity/language_model": BIAS_BAR, **verdict.BARS}
HEADINGS = {
    "bias_intensity/language_model": "bias at least 50% lower",
    "perplexity": "perplexity within +5%",
    "prose_perplexity": "held-out prose within +5%",
    "distinct_2": "distinct-2 within -5%",
    "similarity": "similarity within -5%",
    "refusal": "refusals at most 2 points up",
    "accuracy": "accuracy not lower",
}
"""Bars of :mod:`lit_debias.evaluation.verdict` in the order of the table."""


def main() -> None:
    """Print the tables."""
    print("\n".join(tables(json.loads(RESULT.read_text()))))


def tables(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of all tables, model by model."""
    for subject, title in SUBJECTS.items():
        if subject not in result:
            continue
        study = result[subject]
        arms = [name for name in TITLES if name in study["arms"]]
        yield from ("", f"### {title}", "", origin(study), "")
        yield from bars(study, [arm for arm in arms if arm in study["comparisons"]])
        yield ""
        yield from measures(study, arms, BIAS)
        yield ""
        yield from measures(study, arms, UTILITY)
        if f"{subject}_public" in result:
            asked = result[f"{subject}_public"]
            yield from ("", f"Public benchmarks. {origin(asked)}", "")
            yield from public(asked)


def origin(study: Mapping[str, Any]) -> str:
    """Return a sentence that says where figures come from."""
    made = study["made"]
    return f"Data of seed {made['data_seed']}, measured on {made['date']}, commit {made['commit'][:7]}."


def measures(study: Mapping[str, Any], arms: Iterable[str], names: Mapping[str, str]) -> Iterator[str]:
    """Yield a table of arms by measures: value and 95% interval, bold where the change is clear."""
    yield from head("arm (seeds)", names.values())
    for arm in arms:
        found, changes = study["arms"][arm], study["comparisons"].get(arm, {})
        cells = [marked(found["measures"].get(name), changes.get(name)) for name in names]
        yield row(f"{TITLES[arm]} ({found.get('replicas', 1)})", cells)


def bars(study: Mapping[str, Any], arms: Iterable[str]) -> Iterator[str]:
    """Yield which bar each arm reaches, with the change against the untouched model that decides it."""
    yield from head("arm", [*HEADINGS.values(), "preference lower, intervals apart"])
    before = study["arms"]["before"]["measures"]["preference"]
    for arm in arms:
        cells = []
        changes = study["comparisons"][arm]
        for name in HEADINGS:
            kind, direction, bar = BARS[name]
            measure = fluency_measure(changes) if name == "perplexity" else name
            change = changes.get(measure, {}).get(kind)
            if change is None:
                cells.append("-")
                continue
            reached = change <= bar if direction == "at most" else change >= bar
            text = f"{change:+.0%}" if kind == "relative" else f"{100 * change:+.1f} points"
            cells.append(f"{text} {'yes' if reached else 'no'}")
        after = study["arms"][arm]["measures"]["preference"]
        apart = after["high"] < before["low"]
        cells.append(f"{after['value'] - before['value']:+.2f} {'yes' if apart else 'no'}")
        yield row(TITLES[arm], cells)


def public(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of the overall figures of public benchmarks by arms; bold where the change is clear."""
    arms = [name for name in TITLES if name in results["arms"]]
    yield from head("figure", (TITLES[arm] for arm in arms))
    for name, about in results["measures"].items():
        if about["section"] != "benchmarks" or (name.count("/") > 1 and "/overall/" not in name):
            continue
        found, changes = results["arms"], results["comparisons"]
        cells = [marked(found[arm]["measures"].get(name), changes.get(arm, {}).get(name)) for arm in arms]
        yield row(about["label"], cells)


def marked(estimate: Mapping[str, Any] | None, change: Mapping[str, Any] | None) -> str:
    """Return a figure with its interval, bold where its change is clear."""
    return f"**{cell(estimate)}**" if change and change.get("clear") else cell(estimate)


def head(first: str, names: Iterable[str]) -> Iterator[str]:
    """Yield the two lines that begin a table."""
    names = list(names)
    yield row(first, names)
    yield "|" + "---|" * (len(names) + 1)


def row(first: str, cells: Iterable[str]) -> str:
    """Return one line of a table."""
    return f"| {first} | {' | '.join(cells)} |"


def cell(estimate: Mapping[str, Any] | None) -> str:
    """Return a figure with its interval."""
    if estimate is None or estimate["value"] is None:
        return "-"
    digits = 3 if abs(estimate["value"]) < 1 else 2 if abs(estimate["value"]) < 10 else 1
    interval = "" if estimate["low"] is None else f" ({estimate['low']:.{digits}f} to {estimate['high']:.{digits}f})"
    return f"{estimate['value']:.{digits}f}{interval}"


if __name__ == "__main__":
    main()
