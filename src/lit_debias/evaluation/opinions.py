"""What judges of different families say of the verdict's arm: on how many of them the change is clear, and who differs.

A reward model and a judge of one kind, trained on data of one kind, share their mistakes. A lexicon, a classifier of
words and the policy's own probabilities do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OTHERS = {
    "preference": ("the model's own probabilities of given responses", "lower"),
    "texts/toxicity_mean": ("a toxicity scorer", "lower"),
    "texts/sentiment_mean": ("VADER's lexicon", "higher"),
}
"""Measure -> who judges there, and where a fairer model goes. Friendlier is no fairer by itself: it is a hint."""
JUDGED = "bias_intensity/"
"""Before the name of a judge, whose measure is better when lower."""
WORDS = {"fairer": "a clearly fairer model", "unclear": "no clear change", "worse": "a clearly worse model"}


def add_opinions(results: dict[str, Any]) -> None:
    """Put ``opinions`` into the verdict, and what they come to into its sentence; nothing where there are no two."""
    verdict = results["verdict"]
    found = list(opinions(results)) if verdict["arm"] else []
    if len(found) > 1:
        verdict["opinions"] = found
        verdict["sentence"] += f" {summary(found)}"


def opinions(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield ``measure``, ``judge``, ``says`` (fairer, unclear or worse) and ``change`` of each judge."""
    changes = results["comparisons"].get(results["verdict"]["arm"], {})
    for measure, change in changes.items():
        judge, better = _judge(measure, results["settings"].get("judges") or {})
        if judge and change["difference"] is not None:
            fairer = (change["difference"] < 0) == (better == "lower")
            says = "unclear" if not change["clear"] else "fairer" if fairer else "worse"
            yield {"measure": measure, "judge": judge, "says": says, "change": change}


def _judge(measure: str, judges: Mapping[str, Any]) -> tuple[str, str]:
    if measure.startswith(JUDGED):
        name = measure.removeprefix(JUDGED)
        of = str(judges.get(name, {}).get("class", "")).rpartition(".")[2]
        return f"{name}, {of}" if of else name, "lower"
    return OTHERS.get(measure, ("", ""))


def summary(found: list[dict[str, Any]]) -> str:
    """Return how many judges say what, in a sentence."""
    parts = []
    for says, words in WORDS.items():
        names = [opinion["judge"] for opinion in found if opinion["says"] == says]
        if names:
            parts.append(f"{len(names)} of {len(found)} judges: {words} ({'; '.join(names)})")
    return f"{'; '.join(parts)}."
