"""The figure of ``benchmarks.learning``: reward by step and by seconds, with the band of the seeds, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart
COLOURS = {"lit-debias": "#0072B2", "trl": "#D55E00"}
LABELS = {"lit-debias": "lit-debias", "trl": "TRL"}
WINDOW = 5
"""Steps that a point of a line is the mean of."""


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw a row for each reward: by step on the left, by seconds on the right.

    Args:
        found: A result of ``benchmarks.learning``.
        path: SVG to write, the same for equal results.
    """
    rewards = list(found["summary"])
    with mpl.rc_context({"svg.hashsalt": "learning", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(8, 2.6 * len(rewards) + 0.4), layout="constrained")
        axes = figure.subplots(len(rewards), 2, squeeze=False, sharey="row", sharex="col")
        for (by_step, by_seconds), reward in zip(axes, rewards, strict=True):
            for arm in found["summary"][reward]["arms"]:
                runs = [run for run in found["runs"] if run["reward"] == reward and run["arm"] == arm]
                curves = np.array([smooth(run["rewards"]) for run in runs])
                _line(by_step, np.arange(1, curves.shape[1] + 1), curves, arm)
                _line(by_seconds, min((run["seconds"] for run in runs), key=max), curves, arm)
            by_step.set_ylabel(f"reward {reward}")
        axes[-1, 0].set_xlabel("step")
        axes[-1, 1].set_xlabel("seconds of training")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.savefig(path, metadata={"Date": None})


def smooth(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and up to ``WINDOW - 1`` before it."""
    return [float(np.mean(values[max(0, end - WINDOW) : end])) for end in range(1, len(values) + 1)]


def _line(axes: Axes, where: Any, curves: Any, arm: str) -> None:
    axes.plot(where, curves.mean(0), color=COLOURS[arm], linewidth=1.5, label=LABELS[arm])
    axes.fill_between(where, curves.min(0), curves.max(0), color=COLOURS[arm], alpha=0.2, linewidth=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
