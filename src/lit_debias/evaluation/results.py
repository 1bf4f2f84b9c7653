"""``results.json``: every arm and measure with its interval, the changes, the verdict, and where it all comes from."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import chain
from operator import attrgetter
from typing import Any

import torch

import lit_debias
from lit_debias.benchmark.statistics import ClusterBootstrap, compare, pool_measures
from lit_debias.evaluation.meanings import meaning
from lit_debias.evaluation.measures import MEASURES, Estimates, breakdown, judges_of, measure, word_budgets
from lit_debias.evaluation.prompts import PROSE
from lit_debias.evaluation.records import Record
from lit_debias.evaluation.table import title
from lit_debias.evaluation.verdict import label, verdict
from lit_debias.support.text import counted

SCHEMA = 1


def summarize(arms: Mapping[str, Sequence[Sequence[Record]]], draws: int, seed: int) -> dict[str, Any]:
    """Return the figures of all arms over the same prompts: ``measures``, ``arms``, ``comparisons``, ``verdict``.

    Args:
        arms: Name of the arm -> records [N] of each of its replicas, one per training seed.
        draws: Bootstrap samples.
        seed: Of the bootstrap.
    """
    first = next(iter(arms.values()))[0]
    prompts = [record for record in first if record.prompt_kind != PROSE]
    bootstrap = bootstrap_of(first, draws, seed)
    budgets = word_budgets(chain.from_iterable(arms.values()))
    estimates = {
        name: pool_measures([measure(records, bootstrap, budgets) for records in replicas], stream(name, seed))
        for name, replicas in arms.items()
    }
    comparisons = {name: changes(found, estimates["before"]) for name, found in estimates.items() if name != "before"}
    names = dict.fromkeys(name for found in estimates.values() for name in found)
    return {
        "verdict": verdict(estimates, comparisons),
        "titles": {name: title(name) for name in arms},
        "measures": {
            name: {**asdict(MEASURES[name.partition("/")[0]]), "label": label(name), "meaning": meaning(name)}
            for name in names
        },
        "arms": {
            name: {
                "replicas": len(arms[name]),
                "measures": {measure: estimate.as_dict() for measure, estimate in found.items()},
                "breakdowns": breakdowns(arms[name], bootstrap, stream(name, seed)),
            }
            for name, found in estimates.items()
        },
        "comparisons": comparisons,
        "prompts": {
            "rows": len(prompts),
            "twins": sum(count > 1 for count in Counter(record.twin_id for record in prompts).values()),
            "by_kind": dict(Counter(record.prompt_kind for record in prompts)),
            "by_split": dict(Counter(record.split for record in prompts)),
        },
    }


def bootstrap_of(records: Sequence[Record], draws: int, seed: int) -> ClusterBootstrap:
    """Return the bootstrap over records [N]: twins are drawn together, and prompts apart from prose."""
    strata = [PROSE if record.prompt_kind == PROSE else "prompts" for record in records]
    return ClusterBootstrap([record.drawn_with for record in records], draws, seed, strata)


def changes(found: Estimates, baseline: Estimates) -> dict[str, dict[str, Any]]:
    """Return the paired change of every measure that both have."""
    return {name: compare(estimate, baseline[name]) for name, estimate in found.items() if name in baseline}


def breakdowns(
    replicas: Sequence[Sequence[Record]], bootstrap: ClusterBootstrap, stream: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return judge -> ``category``, ``group``, ``prompt_kind`` or ``split`` -> value -> estimate of the intensity."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for judge in judges_of(replicas[0]):
        found[judge] = {}
        for key in ("category", "group", "prompt_kind", "split"):
            parts = [breakdown(records, bootstrap, judge, attrgetter(key)) for records in replicas]
            pooled = sorted(pool_measures(parts, stream).items(), key=lambda part: -part[1].value)
            found[judge][key] = {name: estimate.as_dict() for name, estimate in pooled}
    return found


def stream(arm: str, seed: int) -> str:
    """Return what names an arm's draws of replicas: replicas of one arm have nothing to do with those of another."""
    return f"{seed}/{arm}"


def provenance() -> dict[str, Any]:
    """Return when, with what, and on what the figures were made."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "lit-debias": lit_debias.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft")},
        },
        "hardware": hardware(),
    }


def hardware() -> str:
    """Return the processor, and the GPU if there is one, in words."""
    processor = f"{platform.machine()}, {counted(os.cpu_count() or 1, 'core')}"
    return f"{torch.cuda.get_device_name()}; {processor}" if torch.cuda.is_available() else processor
