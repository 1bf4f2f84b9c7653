"""The figure of ``benchmarks.growth``: measured points with minimum and maximum, and the predicted lines, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

LABELS = {
    "group_size": "group size G",
    "prompt_tokens": "prompt tokens S",
    "completion_tokens": "completion tokens T",
    "shape": "parameters, millions",
}
# Okabe and Ito's colours, which colour-blind readers tell apart
COLOURS = {"step": "#000000", "rollout": "#0072B2", "reference": "#009E73", "update": "#D55E00"}
PEAK = "#CC79A7"
GIB = 2**30


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw a column for each variable: seconds of step and phases above, peak memory below.

    Args:
        found: A result of ``benchmarks.growth``.
        path: SVG to write, the same for equal results.
    """
    varied = [name for name in LABELS if any(row["vary"] == name for row in found["points"])]
    with mpl.rc_context({"svg.hashsalt": "growth", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(3 * len(varied) + 0.6, 5.6), layout="constrained")
        axes = figure.subplots(2, len(varied), squeeze=False, sharex="col", sharey="row")
        for (top, bottom), name in zip(axes.T, varied, strict=True):
            rows = sorted(
                (row for row in found["points"] if row["vary"] in ("base", name)), key=lambda row: at(row, name)
            )
            _seconds(top, rows, name)
            _memory(bottom, rows, name)
            bottom.set_xlabel(LABELS[name])
        axes[0, 0].set_ylabel("seconds")
        axes[1, 0].set_ylabel("peak memory, GiB")
        for row in axes:
            row[0].set_ylim(bottom=0)  # shared, so only once everything is drawn
        handles, _ = axes[0, 0].get_legend_handles_labels()
        handles.append(Line2D([], [], color="grey", linewidth=1, label="predicted"))
        handles.append(
            Line2D([], [], color="grey", marker="o", markerfacecolor="white", linestyle="", label="not fitted on")
        )
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        figure.savefig(path, metadata={"Date": None})


def at(row: Mapping[str, Any], name: str) -> float:
    """Return where a point stands on the axis of a variable."""
    return float(row["parameters"] / 1e6 if name == "shape" else row["settings"][name])


def _seconds(axes: Axes, rows: list[Mapping[str, Any]], name: str) -> None:
    for phase, colour in COLOURS.items():
        spreads = [row["measured"]["seconds"][phase] for row in rows]
        low, high = [[abs(one[end] - one["median"]) for one in spreads] for end in ("min", "max")]
        medians = [one["median"] for one in spreads]
        predicted = [row["predicted"]["seconds"][phase] for row in rows]
        _series(axes, rows, name, medians, predicted, colour, phase, [low, high])


def _memory(axes: Axes, rows: list[Mapping[str, Any]], name: str) -> None:
    peaks = [row["measured"]["peak_bytes"] / GIB for row in rows]
    predicted = [row["predicted"]["peak_bytes"] / GIB for row in rows]
    _series(axes, rows, name, peaks, predicted, PEAK, "peak", None)


def _series(
    axes: Axes,
    rows: list[Mapping[str, Any]],
    name: str,
    values: list[float],
    predicted: list[float],
    colour: str,
    label: str,
    errors: list[list[float]] | None,
) -> None:
    """Draw a predicted line, and points that are full where they were fitted on and hollow where tested on."""
    where = [at(row, name) for row in rows]
    axes.plot(where, predicted, color=colour, linewidth=1)
    axes.errorbar(where, values, yerr=errors, fmt="none", ecolor=colour, capsize=2, linewidth=1)
    for full in (True, False):
        chosen = [index for index, row in enumerate(rows) if row["fitted"] == full]
        axes.scatter(
            [where[index] for index in chosen],
            [values[index] for index in chosen],
            s=22,
            edgecolors=colour,
            facecolors=colour if full else "white",
            label=label if full else None,
            zorder=3,
        )
    axes.margins(x=0.08)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
