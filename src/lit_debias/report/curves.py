"""Training curves from what a Lightning logger left in a run's folder."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

Curve = list[tuple[float, float]]
Curves = dict[str, Curve]

TRAINING_TAG = "reward"
"""Only GRPO logs it, so curves of a reward model in the same folder are left aside."""


def find_curves(folders: Iterable[Path]) -> tuple[Curves, Path | None]:
    """Return metric name -> points (rollout step, value) of the latest GRPO training, and its log folder.

    Reads TensorBoard's event files and CSVLogger's ``metrics.csv``; both are empty where there is none.
    """
    files = {
        file
        for folder in folders
        for pattern in ("events.out.tfevents.*", "metrics.csv")
        for file in folder.rglob(pattern)
    }
    for file in sorted(files, key=lambda file: (file.stat().st_mtime, file.name), reverse=True):
        curves = read_csv(file) if file.name == "metrics.csv" else read_events(file.parent)
        if TRAINING_TAG in curves:
            return over_rollouts(curves), file.parent
    return {}, None


def read_events(folder: Path) -> Curves:
    """Return the scalars of all event files of a folder over the logger's step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_csv(file: Path) -> Curves:
    """Return the columns of a ``metrics.csv`` over its column ``step``."""
    curves: Curves = {}
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            for name, value in row.items():
                if value and name not in ("step", "epoch") and row.get("step"):
                    curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return curves


def over_rollouts(curves: Mapping[str, Curve]) -> Curves:
    """Return curves over ``rollout_step`` where it was logged; the logger counts optimiser steps."""
    rollouts = dict(curves.get("rollout_step", []))
    return {
        name: [(rollouts.get(step, step), value) for step, value in points]
        for name, points in curves.items()
        if name != "rollout_step"
    }
