"""The figures, as JSON that the page hands to plotly.js; colours of text and grid are the page's own (CSS)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from lit_debias.report.curves import Curve, Curves

# Each colour has a contrast of 3 or more against the page in light and in dark mode; a test holds that.
COLOURS = {"before": "#748091", "prompt_only": "#c07600"}
OWN_COLOUR = "#0d9488"
"""Of the arm that the verdict is about."""
LINES = ("#0d9488", "#c07600", "#6366f1", "#db2777", "#4d8a0f", "#0284c7", "#a855f7", "#dc2626")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "cross", "x", "hexagram", "pentagon")
SMOOTH_FROM = 20
"""Steps from which a running mean is drawn over the single ones."""
LABEL_WIDTH = 18

Parts = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Args:
        name: Its anchor.
        title: Its heading.
        caption: What is shown, and how to read it.
        json: For plotly.js, safe inside a script element.
    """

    name: str
    title: str
    caption: str
    json: str


def intervals(parts: Parts, titles: Mapping[str, str], own: str, label: str) -> str:
    """Return a row of points with 95% intervals for each name, one point for each arm.

    Args:
        parts: Arm -> name of the row -> ``value``, ``low``, ``high``, ``n``; rows are in the order of the first arm.
        titles: Arm -> its name in the legend.
        own: The arm that the verdict is about.
        label: What the points measure; it lies in [0, 1].
    """
    figure = go.Figure()
    rows = list(dict.fromkeys(name for of_arm in parts.values() for name in of_arm))
    for index, (arm, of_arm) in enumerate(parts.items()):
        offset = 0.22 * (index - (len(parts) - 1) / 2)
        shown = [(row + offset, name, of_arm[name]) for row, name in enumerate(rows) if name in of_arm]
        figure.add_scatter(
            name=titles[arm],
            mode="markers",
            y=[y for y, _, _ in shown],
            x=[part["value"] for _, _, part in shown],
            error_x=_error_bars([part for _, _, part in shown]),
            customdata=[[name, part["n"]] for _, name, part in shown],
            hovertemplate="%{customdata[0]}: %{x:.3f} (n = %{customdata[1]})",
            marker={"color": colour(arm, own), "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 9},
        )
    figure.update_xaxes(range=[-0.02, 1.02], title=label, side="top")
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[f"{_wrapped(name)} <i>({_count(parts, name)})</i>" for name in rows],
        range=[len(rows) - 0.5, -0.5],
        zeroline=False,
        automargin=True,
    )
    return to_json(figure, 110 + (12 + 15 * len(parts)) * len(rows))


def lines(curves: Curves, names: Mapping[str, str], label: str) -> str:
    """Return curves over rollout steps; longer ones as a running mean, with the single steps behind it.

    Args:
        curves: Metric -> its points.
        names: Metrics to draw -> their names in the legend.
        label: Of the y-axis.
    """
    figure = go.Figure()
    for index, (metric, name) in enumerate(names.items()):
        steps, values = zip(*curves[metric], strict=True)
        ink = LINES[index % len(LINES)]
        mode = "lines" if len(steps) > 1 else "markers"
        window = smoothing(len(steps))
        if window > 1:
            figure.add_scatter(
                x=steps, y=values, mode=mode, line={"color": ink, "width": 1}, opacity=0.35, showlegend=False,
                hoverinfo="skip",
            )  # fmt: skip
        smooth = running_mean(values, window)
        figure.add_scatter(
            name=name, x=steps, y=smooth, mode=mode, line={"color": ink, "width": 2}, marker={"color": ink, "size": 9}
        )
    figure.update_layout(hovermode="x unified", showlegend=len(names) > 1)
    figure.update_xaxes(title="rollout step")
    figure.update_yaxes(title=label, hoverformat=".3g", automargin=True)
    return to_json(figure, 300)


def smoothing(steps: int) -> int:
    """Return over how many steps the running mean goes: an odd number, about a tenth of them; 1 for short curves."""
    return 1 if steps < SMOOTH_FROM else steps // 20 * 2 + 1


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean over ``window`` values around each; fewer, evenly on both sides, at the ends."""
    reach = [min(window // 2, i, len(values) - 1 - i) for i in range(len(values))]
    return [fmean(values[i - near : i + near + 1]) for i, near in enumerate(reach)]


def tradeoff(
    points: Mapping[float, tuple[float, float]],
    arms: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    titles: Mapping[str, str],
    own: str,
    labels: tuple[str, str],
) -> str:
    """Return one reward against another: training step by step, its Pareto front, and the arms as marked points.

    Args:
        points: Rollout step -> (x, y); both are better when higher.
        arms: Arm -> estimates of x and y.
        titles: Arm -> its name in the legend.
        own: The arm that the verdict is about.
        labels: Of the x- and the y-axis.
    """
    figure = go.Figure()
    if points:
        front = pareto_front(points)
        figure.add_scatter(
            name="Pareto front of training", mode="lines", hoverinfo="skip",
            x=[points[step][0] for step in front], y=[points[step][1] for step in front],
            line={"color": LINES[4], "width": 1.5, "dash": "dot"},
        )  # fmt: skip
        figure.add_scatter(
            name="a training step", mode="markers", customdata=list(points),
            x=[x for x, _ in points.values()], y=[y for _, y in points.values()],
            hovertemplate=f"step %{{customdata}}<br>{labels[0]} %{{x:.3f}}<br>{labels[1]} %{{y:.3f}}<extra></extra>",
            marker={"color": list(points), "colorscale": [[0, "#6366f1"], [0.5, "#c026d3"], [1, "#ea580c"]], "size": 7,
                    "colorbar": {"title": {"text": "rollout step", "side": "top"}, "orientation": "h", "thickness": 8,
                                 "y": -0.22, "yanchor": "top", "len": 0.8, "outlinewidth": 0}},
        )  # fmt: skip
    for index, (arm, (x, y)) in enumerate(arms.items()):
        figure.add_scatter(
            name=titles[arm], mode="markers", x=[x["value"]], y=[y["value"]],
            error_x=_error_bars([x]), error_y=_error_bars([y]),
            hovertemplate=f"{labels[0]} %{{x:.3f}}<br>{labels[1]} %{{y:.3f}}",
            marker={"color": colour(arm, own, index), "symbol": SYMBOLS[(index + 1) % len(SYMBOLS)], "size": 14},
        )  # fmt: skip
    figure.update_xaxes(title=f"{labels[0]} →")
    figure.update_yaxes(title=f"{labels[1]} →", automargin=True)
    return to_json(figure, 480 if points else 400)


def pareto_front(points: Mapping[float, tuple[float, float]]) -> list[float]:
    """Return the steps that no other step beats in both, by rising x."""
    front: list[float] = []
    highest = float("-inf")
    for step, (_, y) in sorted(points.items(), key=lambda item: (-item[1][0], -item[1][1])):
        if y > highest:
            front.append(step)
            highest = y
    return front[::-1]


def joined(x: Curve, y: Curve) -> dict[float, tuple[float, float]]:
    """Return step -> (x, y) for the steps that both curves have."""
    others = dict(y)
    return {step: (value, others[step]) for step, value in x if step in others}


def colour(arm: str, own: str, index: int = 0) -> str:
    """Return the colour of an arm; ``index`` chooses one where it has none of its own."""
    others = LINES[2:]
    return OWN_COLOUR if arm == own else COLOURS.get(arm, others[index % len(others)])


def plotly_js() -> str:
    """Return the library's source, to be inlined once."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def to_json(figure: go.Figure, height: int) -> str:
    """Return a figure with the page's layout as JSON; plotly writes <, > and / so that no tag can end its script."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 16, "r": 16, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12},
        dragmode=False,
    )
    figure.update_xaxes(fixedrange=True)  # a finger that scrolls the page must not zoom
    figure.update_yaxes(fixedrange=True)
    return str(figure.to_json(engine="json"))


def _error_bars(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = [part["low"] is not None for part in parts]
    return {
        "type": "data",
        "array": [part["high"] - part["value"] if ok else 0 for part, ok in zip(parts, known, strict=True)],
        "arrayminus": [part["value"] - part["low"] if ok else 0 for part, ok in zip(parts, known, strict=True)],
        "thickness": 1.5,
        "width": 0,
    }


def _count(parts: Parts, name: str) -> int:
    return max(of_arm[name]["n"] for of_arm in parts.values() if name in of_arm)


def _wrapped(name: str) -> str:
    return "<br>".join(textwrap.wrap(name.replace("_", " "), LABEL_WIDTH)) or "-"
