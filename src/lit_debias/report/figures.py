"""Which figures a run has numbers for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_debias.evaluation.measures import SMALLEST_GROUP
from lit_debias.evaluation.prompts import NOBODY
from lit_debias.report.charts import FRONT, STEP, intervals, joined, lines, smoothing, tradeoff
from lit_debias.report.curves import Curves
from lit_debias.report.keys import Key, arm_keys, curve_keys
from lit_debias.report.sources import Evaluation

MOST_ROWS = 24
"""Groups in one figure."""


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Args:
        name: Its anchor.
        title: Its heading.
        caption: What is shown, and how to read it.
        legend: What is told apart; empty where there is one thing only.
        json: For plotly.js, safe inside a script element.
    """

    name: str
    title: str
    caption: str
    legend: Sequence[Key]
    json: str


def breakdown_charts(evaluation: Evaluation) -> Iterator[Chart]:
    """Yield bias by category and by group of the arms in focus, for each judge."""
    keys = arm_keys(evaluation)
    contents = {arm: evaluation.results["arms"][arm].get("breakdowns", {}) for arm in evaluation.focus}
    for number, judge in enumerate(contents["before"]):
        for key in ("category", "group"):
            parts = {arm: content.get(judge, {}).get(key, {}) for arm, content in contents.items()}
            shown = largest_parts(parts)
            if not any(shown.values()) or set(shown["before"]) == {NOBODY}:
                continue
            every = len({name for of_arm in parts.values() for name in of_arm})
            yield Chart(
                name=f"{key}-{number}" if number else key,
                title=f"Bias by {key} ({judge})",
                caption=_breakdown_caption(len(shown["before"]), every),
                legend=[keys[arm] for arm in shown],
                json=intervals(shown, keys, "bias intensity, 95% interval"),
            )


def largest_parts(parts: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the rows that rest on enough completions, at most :data:`MOST_ROWS`, the most biased before first."""
    before = {name: part for name, part in parts["before"].items() if part["value"] is not None}
    enough = [name for name, part in before.items() if part["n"] >= SMALLEST_GROUP]
    names = sorted(enough, key=lambda name: -before[name]["value"])[:MOST_ROWS]
    return {
        arm: {name: of_arm[name] for name in names if of_arm.get(name, {}).get("value") is not None}
        for arm, of_arm in parts.items()
    }


def _breakdown_caption(shown: int, every: int) -> str:
    caption = "Further left is fairer; the number of completions is in brackets; the most biased before comes first."
    if shown < every:
        caption += f" Shown are {shown} of {every}: those with {SMALLEST_GROUP} completions or more"
        caption += f", at most {MOST_ROWS}." if shown == MOST_ROWS else "."
    return caption


def tradeoff_chart(evaluation: Evaluation, curves: Curves) -> Chart | None:
    """Return fairness against fluency, or two other rewards where those are not there; None without two rewards."""
    measured = {name.removeprefix("reward/") for name in evaluation.results["measures"] if name.startswith("reward/")}
    trained = set(rewards_of(curves))
    axes = tradeoff_axes(trained or measured)
    if axes is None:
        return None
    x, y = axes
    points = joined(curves[f"rewards/{x}/mean"], curves[f"rewards/{y}/mean"]) if trained else {}
    estimates = {
        arm: (evaluation.estimate(arm, f"reward/{x}"), evaluation.estimate(arm, f"reward/{y}"))
        for arm in evaluation.arms
    }
    arms = {arm: (a, b) for arm, (a, b) in estimates.items() if a is not None and b is not None}
    if not points and len(arms) < 2:
        return None
    caption = "Further up and further right is better."
    if points:
        caption += " Each dot is the mean over one rollout step of training (sampled completions of training prompts)."
    if arms:
        caption += " The marked points are the arms (answers to the evaluated prompts, 95% intervals)."
    keys = arm_keys(evaluation)
    return Chart(
        name="tradeoff",
        title=f"{y.capitalize()} against {x}",
        caption=caption,
        legend=[*([STEP, FRONT] if points else []), *(keys[arm] for arm in arms)],
        json=tradeoff(points, arms, keys, (f"{x} reward", f"{y} reward")),
    )


def tradeoff_axes(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the rewards of the x- and the y-axis: fluency and fairness by name, else what there is, by name."""
    left = sorted(names)
    if len(left) < 2:
        return None
    y = next((name for name in left if "fair" in name.lower()), None)
    x = next((name for name in left if "fluen" in name.lower() and name != y), None)
    y = y or next(name for name in left if name != x)
    x = x or next(name for name in left if name != y)
    return x, y


def rewards_of(curves: Iterable[str]) -> dict[str, str]:
    """Return name of a reward -> the metric that is its mean over a rollout step."""
    metrics = sorted(m for m in curves if m.startswith("rewards/") and m.endswith("/mean"))
    return {metric.removeprefix("rewards/").removesuffix("/mean"): metric for metric in metrics}


def curve_charts(curves: Curves) -> Iterator[Chart]:
    """Yield the curves of training that were logged."""
    rewards = {metric: name for name, metric in rewards_of(curves).items()}
    validation = {m: m.removeprefix("eval_") for m in sorted(curves) if m.startswith("eval_") and _is_score(m)}
    for name, title, metrics, label in (
        ("reward", "Reward", {"reward": "reward"}, "combined reward"),
        ("rewards", "Rewards by name", rewards, "mean reward"),
        ("kl", "KL to the reference", {"kl": "kl"}, "nats per token"),
        ("entropy", "Entropy", {"entropy": "entropy"}, "nats per token"),
        ("length", "Length of completions", {"completions/mean_length": "length"}, "tokens"),
        ("validation", "Validation", validation, "mean score"),
    ):
        there = {metric: shown for metric, shown in metrics.items() if metric in curves}
        if there:
            window = max(smoothing(len(curves[metric])) for metric in there)
            caption = f"Bold: running mean over {window} steps." if window > 1 else ""
            keys = curve_keys(there.values())
            drawn = lines([curves[metric] for metric in there], keys, label)
            yield Chart(f"curve-{name}", title, caption, keys if len(keys) > 1 else [], drawn)


def _is_score(metric: str) -> bool:
    return metric.endswith(("reward", "/mean"))
