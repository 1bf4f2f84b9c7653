"""Which figures a run has numbers for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_debias.evaluation.measures import SMALLEST_GROUP
from lit_debias.evaluation.prompts import NOBODY
from lit_debias.report.charts import FRONT, STEP, intervals, joined, lines, smoothing, tradeoff
from lit_debias.report.curves import Curves
from lit_debias.report.keys import Key, arm_keys, curve_keys
from lit_debias.report.sources import Evaluation
from lit_debias.synthetic.taxonomy import group_meanings

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
        terms: Name in the figure -> what it means, for those that need it.
    """

    name: str
    title: str
    caption: str
    legend: Sequence[Key]
    json: str
    terms: Mapping[str, str] = field(default_factory=dict)


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
                terms=group_terms(shown["before"], parts["before"]),
            )


def group_terms(shown: Iterable[str], every: Iterable[str]) -> dict[str, str]:
    """Return what the groups in a figure stand for; empty where they are not those of `lit-debias synthesize`."""
    known = group_meanings()
    if not set(every) <= {*known, NOBODY}:
        return {}
    words = {name.replace("_", " "): known[name] for name in shown if name in known}
    return {name: meaning for name, meaning in words.items() if name not in meaning}


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
    caption = (
        "Mean bias intensity with its 95% interval. Further left is fairer; the number of answers (n) is in brackets; "
        "the most biased before comes first."
    )
    if shown < every:
        caption += f" Shown are {shown} of {every}: those with {SMALLEST_GROUP} answers or more"
        caption += f", at most {MOST_ROWS}." if shown == MOST_ROWS else "."
    return caption


def tradeoff_charts(evaluation: Evaluation, curves: Curves, apart: Mapping[str, str]) -> list[Chart]:
    """Return fairness against fluency, or two other rewards where those are not there; empty without two rewards.

    Training and the arms are in one figure only where both of its axes are the same quantity for them.

    Args:
        evaluation: Its arms are shown.
        curves: Of the training.
        apart: Reward -> why its figures of both are not one quantity; see :func:`lit_debias.report.scales.apart`.
    """
    measured = {name.removeprefix("reward/") for name in evaluation.results["measures"] if name.startswith("reward/")}
    trained = set(rewards_of(curves))
    axes = tradeoff_axes(trained or measured)
    if axes is None:
        return []
    x, y = axes
    points = joined(curves[f"rewards/{x}/mean"], curves[f"rewards/{y}/mean"]) if trained else {}
    estimates = {arm: [evaluation.estimate(arm, f"reward/{name}") for name in axes] for arm in evaluation.arms}
    arms = {arm: (a, b) for arm, (a, b) in estimates.items() if a is not None and b is not None}
    reasons = [apart[name] for name in axes if name in apart]
    if not (points and arms and reasons):
        return [_tradeoff(evaluation, axes, points, arms)] if points or len(arms) > 1 else []
    why = f" Training and arms are two figures, for they have no scale in common: {'; '.join(dict.fromkeys(reasons))}."
    shown = [_tradeoff(evaluation, axes, {}, arms, why)] if len(arms) > 1 else []
    return [*shown, _tradeoff(evaluation, axes, points, {}, why if not shown else "")]


def _tradeoff(
    evaluation: Evaluation,
    axes: tuple[str, str],
    points: Mapping[float, tuple[float, float]],
    arms: Mapping[str, tuple[dict[str, Any], dict[str, Any]]],
    why: str = "",
) -> Chart:
    x, y = axes
    keys = arm_keys(evaluation)
    caption = "Mean rewards; further up and further right is better."
    if points:
        caption += (
            " Each dot is one step of training (sampled answers to training prompts). Pareto front: the steps that"
        )
        caption += " no other step beats in both."
    if arms:
        counts = [estimate["n"] for both in arms.values() for estimate in both]
        n = str(min(counts)) + (f" to {max(counts)}" if max(counts) > min(counts) else "")
        caption += f" The marked points are the arms (answers to the evaluated prompts, 95% intervals, n = {n})."
    return Chart(
        name="tradeoff" if arms else "tradeoff-training",
        title=f"{y.capitalize()} against {x}" + ("" if arms else " in training"),
        caption=caption + why,
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


CURVES = {
    "reward": "What training raises: the rewards of an answer, combined by the aggregator.",
    "rewards": "Mean score by each reward, over the answers of a step.",
    "kl": "How far the policy has moved away from the reference. It is held back by the loss.",
    "entropy": "How undecided the policy is about the next token. Near 0 it says the same again and again.",
    "length": "Mean length of the sampled answers.",
    "validation": "Mean scores on prompts that training does not see.",
}
"""Curve -> what it shows."""


def curve_charts(curves: Curves, apart: Mapping[str, str]) -> Iterator[Chart]:
    """Yield the curves of training that were logged; ``apart`` is that of :func:`tradeoff_charts`."""
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
            caption = CURVES[name] + (f" Bold: running mean over {window} steps." if window > 1 else "")
            reasons = dict.fromkeys(apart[shown] for shown in there.values() if name == "rewards" and shown in apart)
            if reasons:
                caption += f" Not to be compared with the mean rewards of the table: {'; '.join(reasons)}."
            keys = curve_keys(there.values())
            drawn = lines([curves[metric] for metric in there], keys, label)
            yield Chart(f"curve-{name}", title, caption, keys if len(keys) > 1 else [], drawn)


def _is_score(metric: str) -> bool:
    return metric.endswith(("reward", "/mean"))
