"""The figures, as JSON that the page hands to plotly.js; colours of text and grid are the page's own (CSS)."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from lit_debias.report.curves import Curve
from lit_debias.report.keys import NEUTRAL, Key

SMOOTH_FROM = 20
"""Steps from which a running mean is drawn over the single ones."""
LABEL_WIDTH = 18
STEPS = ("#6366f1", "#c026d3", "#ea580c")
"""Colours of the first, a middle and the last rollout step."""
FRONT = Key("Pareto front of training", NEUTRAL, glyph="┄")
STEP = Key("a training step, by colour", STEPS[1], glyph="•")

Part = Mapping[str, Any]
"""An estimate: ``value``, ``low``, ``high``, ``n``."""


def intervals(parts: Mapping[str, Mapping[str, Part]], keys: Mapping[str, Key], label: str) -> str:
    """Return a row of points with 95% intervals for each name, one point for each arm.

    Args:
        parts: Arm -> name of the row -> its estimate; rows are in the order of the first arm.
        keys: Arm -> its key.
        label: What the points measure; it lies in [0, 1].
    """
    figure = go.Figure()
    rows = list(dict.fromkeys(name for of_arm in parts.values() for name in of_arm))
    for index, (arm, of_arm) in enumerate(parts.items()):
        offset = 0.22 * (index - (len(parts) - 1) / 2)
        shown = [(row + offset, name, of_arm[name]) for row, name in enumerate(rows) if name in of_arm]
        figure.add_scatter(
            name=plain(keys[arm].name),
            mode="markers",
            y=[y for y, _, _ in shown],
            x=[part["value"] for _, _, part in shown],
            error_x=_error_bars([part for _, _, part in shown]),
            customdata=[[plain(name), part["n"]] for _, name, part in shown],
            hovertemplate="%{customdata[0]}: %{x:.3f} (n = %{customdata[1]})",
            marker={"color": keys[arm].colour, "symbol": keys[arm].symbol, "size": 9},
        )
    figure.update_xaxes(range=[-0.02, 1.02], title=label)
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[f"{_wrapped(name)} <i>({_count(parts, name)})</i>" for name in rows],
        range=[len(rows) - 0.5, -0.5],
        zeroline=False,
    )
    return to_json(figure, 60 + (12 + 15 * len(parts)) * len(rows))


def lines(curves: Sequence[Curve], keys: Sequence[Key], label: str) -> str:
    """Return curves over rollout steps; longer ones as a running mean, with the single steps behind it.

    Args:
        curves: Points of each curve.
        keys: Key of each curve.
        label: Of the y-axis.
    """
    figure = go.Figure()
    for curve, key in zip(curves, keys, strict=True):
        steps, values = zip(*curve, strict=True)
        window = smoothing(len(steps))
        style = {"x": steps, "mode": "lines" if len(steps) > 1 else "markers", "marker": {"color": key.colour}}
        if window > 1:
            thin = {"color": key.colour, "width": 1}
            figure.add_scatter(y=values, line=thin, opacity=0.35, hoverinfo="skip", **style)
        bold = {"color": key.colour, "width": 2}
        figure.add_scatter(name=plain(key.name), y=running_mean(values, window), line=bold, **style)
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title="rollout step")
    figure.update_yaxes(title=label, hoverformat=".3g")
    return to_json(figure, 280)


def smoothing(steps: int) -> int:
    """Return over how many steps the running mean goes: an odd number, about a tenth of them; 1 for short curves."""
    return 1 if steps < SMOOTH_FROM else steps // 20 * 2 + 1


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean over ``window`` values around each; fewer, evenly on both sides, at the ends."""
    reach = [min(window // 2, i, len(values) - 1 - i) for i in range(len(values))]
    return [fmean(values[i - near : i + near + 1]) for i, near in enumerate(reach)]


def tradeoff(
    points: Mapping[float, tuple[float, float]],
    arms: Mapping[str, tuple[Part, Part]],
    keys: Mapping[str, Key],
    labels: tuple[str, str],
) -> str:
    """Return one reward against another: training step by step, its Pareto front, and the arms as marked points.

    Args:
        points: Rollout step -> (x, y); both are better when higher.
        arms: Arm -> estimates of x and y.
        keys: Arm -> its key.
        labels: Of the x- and the y-axis.
    """
    figure = go.Figure()
    across, up = map(plain, labels)
    hover = f"{across} %{{x:.3f}}<br>{up} %{{y:.3f}}"
    if points:
        _add_training(figure, points, hover)
    for arm, (x, y) in arms.items():
        figure.add_scatter(
            name=plain(keys[arm].name),
            mode="markers",
            x=[x["value"]],
            y=[y["value"]],
            error_x=_error_bars([x]),
            error_y=_error_bars([y]),
            hovertemplate=hover,
            marker={"color": keys[arm].colour, "symbol": keys[arm].symbol, "size": 14},
        )
    figure.update_xaxes(title=f"{across} →", zeroline=False)
    figure.update_yaxes(title=f"{up} →", zeroline=False)
    return to_json(figure, 460 if points else 400, below=60 if points else 0)


def _add_training(figure: go.Figure, points: Mapping[float, tuple[float, float]], hover: str) -> None:
    front = pareto_front(points)
    figure.add_scatter(
        name=FRONT.name,
        mode="lines",
        hoverinfo="skip",
        x=[points[step][0] for step in front],
        y=[points[step][1] for step in front],
        line={"color": FRONT.colour, "width": 1.5, "dash": "dot"},
    )
    scale = {
        "title": {"text": "rollout step", "side": "top"},
        "orientation": "h",
        "thickness": 8,
        "len": 0.8,
        "outlinewidth": 0,
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
    }
    figure.add_scatter(
        name=STEP.name,
        mode="markers",
        customdata=list(points),
        x=[x for x, _ in points.values()],
        y=[y for _, y in points.values()],
        hovertemplate=f"step %{{customdata}}<br>{hover}<extra></extra>",
        marker={"color": list(points), "colorscale": list(STEPS), "size": 7, "colorbar": scale},
    )


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


def plotly_js() -> str:
    """Return the library's source, to be inlined once."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def to_json(figure: go.Figure, height: int, below: int = 0) -> str:
    """Return a figure with the page's layout as JSON; plotly escapes <, > and / so that no tag can end its script.

    Args:
        figure: To be laid out.
        height: In pixels.
        below: Room under the x-axis, in pixels.
    """
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 16, "r": 16, "t": 8, "b": 44 + below},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        dragmode=False,
        showlegend=False,
    )
    figure.update_xaxes(fixedrange=True)  # a finger that scrolls the page must not zoom
    figure.update_yaxes(fixedrange=True, automargin=True)
    return str(figure.to_json(engine="json"))


def _error_bars(parts: Sequence[Part]) -> dict[str, Any]:
    known = [part["low"] is not None for part in parts]
    return {
        "type": "data",
        "array": [part["high"] - part["value"] if ok else 0 for part, ok in zip(parts, known, strict=True)],
        "arrayminus": [part["value"] - part["low"] if ok else 0 for part, ok in zip(parts, known, strict=True)],
        "thickness": 1.5,
        "width": 0,
    }


def _count(parts: Mapping[str, Mapping[str, Part]], name: str) -> int:
    return max(int(of_arm[name]["n"]) for of_arm in parts.values() if name in of_arm)


def _wrapped(name: str) -> str:
    return "<br>".join(map(plain, textwrap.wrap(name.replace("_", " "), LABEL_WIDTH))) or "-"


def plain(text: str) -> str:
    """Return a name as plotly draws it letter by letter: tags would be drawn as links, and %{...} filled in."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")
