"""The figures, as pieces of HTML that wait for one copy of plotly.js."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from lit_debias.report.curves import Curves

COLOURS = {"before": "#8b95a5", "prompt_only": "#d99000", "after": "#0d9488"}
LINES = ("#0d9488", "#d99000", "#6366f1", "#db2777", "#65a30d", "#0ea5e9", "#9333ea", "#dc2626")
CONFIG = {"displayModeBar": False, "responsive": True}

Bars = Mapping[str, Mapping[str, Mapping[str, Any]]]


def bars(arms: Bars, titles: Mapping[str, str], label: str) -> str:
    """Return horizontal bars with 95% intervals, grouped by arm.

    Args:
        arms: Arm -> name of the bar -> ``value``, ``low``, ``high``, ``n``.
        titles: Arm -> its name in the legend.
        label: What the bars measure.
    """
    figure = go.Figure()
    names = list(dict.fromkeys(name for parts in arms.values() for name in parts))
    for arm, parts in reversed(list(arms.items())):  # plotly draws the last one on top
        shown = [(name, parts[name]) for name in reversed(names) if name in parts]
        known = [part["low"] is not None for _, part in shown]
        figure.add_bar(
            name=titles[arm],
            orientation="h",
            y=[name for name, _ in shown],
            x=[part["value"] for _, part in shown],
            error_x={
                "type": "data",
                "array": [p["high"] - p["value"] if ok else 0 for (_, p), ok in zip(shown, known, strict=True)],
                "arrayminus": [p["value"] - p["low"] if ok else 0 for (_, p), ok in zip(shown, known, strict=True)],
                "thickness": 1,
                "width": 2,
            },
            customdata=[part["n"] for _, part in shown],
            hovertemplate="%{y}: %{x:.3f} (n = %{customdata})",
            marker_color=COLOURS.get(arm, "#6366f1"),
        )
    height = 110 + (14 * len(arms) + 10) * len(names)
    figure.update_layout(barmode="group", bargap=0.3, legend_traceorder="reversed", xaxis_title=label)
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(type="category", automargin=True)
    return _html(figure, height)


def lines(curves: Curves, names: Sequence[str], label: str) -> str:
    """Return curves over rollout steps."""
    figure = go.Figure()
    for index, name in enumerate(names):
        steps, values = zip(*curves[name], strict=True)
        mode = "lines" if len(steps) > 1 else "markers"
        colour = LINES[index % len(LINES)]
        figure.add_scatter(name=name, x=steps, y=values, mode=mode, line={"color": colour, "width": 1.8})
    figure.update_layout(xaxis_title="rollout step", yaxis_title=label, hovermode="x unified")
    return _html(figure, 320)


def plotly_js() -> str:
    """Return the library's source, to be inlined once."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _html(figure: go.Figure, height: int) -> str:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 16, "t": 8, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12},
        showlegend=True,
    )
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
