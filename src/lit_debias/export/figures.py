"""The figures of ``lit-debias evaluate`` as a model card shows them: a table, and the hub's ``model-index``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from lit_debias.models.hub_names import public_name
from lit_debias.support.text import counted

Results = Mapping[str, Any]
TASK = "text-generation"


@dataclass(frozen=True)
class Figure:
    """One measure, before training and after, as texts."""

    label: str
    better: str
    before: str
    after: str
    change: str


def arms_of(folder: Path, results: Results) -> list[str]:
    """Return the arms of an evaluation that an adapter's folder is, or is one replica of."""
    settings = results["settings"]
    given = {**settings.get("adapters", {}), "after": settings.get("adapter")}
    several = {name: [paths] if isinstance(paths, str) else list(paths or []) for name, paths in given.items()}
    here = folder.resolve()
    named = [name for name, paths in several.items() if here in [Path(path).expanduser().resolve() for path in paths]]
    return [name for name in named if name in results["arms"]]


def table(results: Results, arm: str) -> list[Figure]:
    """Return a row for each measure that the untouched base and the arm both have."""
    before, after = (results["arms"][name]["measures"] for name in ("before", arm))
    changes = results["comparisons"].get(arm, {})
    return [
        Figure(about["label"], about["better"], _said(before[name]), _said(after[name]), _moved(changes.get(name)))
        for name, about in results["measures"].items()
        if _known(before.get(name)) and _known(after.get(name))
    ]


def _known(estimate: Mapping[str, Any] | None) -> bool:
    return estimate is not None and estimate["value"] is not None


def _said(estimate: Mapping[str, Any]) -> str:
    interval = "" if estimate["low"] is None else f" ({estimate['low']:.3g} to {estimate['high']:.3g})"
    return f"{estimate['value']:.3g}{interval}"


def _moved(change: Mapping[str, Any] | None) -> str:
    if change is None or change["difference"] is None:
        return ""
    return f"{change['difference']:+.3g}{'' if change['clear'] else ', unclear'}"


def about(results: Results, arm: str) -> dict[str, Any]:
    """Return what a card says around the table."""
    settings, prompts = results["settings"], results["prompts"]
    replicas = results["arms"][arm].get("replicas", 1)
    verdict = results["verdict"]
    return {
        "rows": table(results, arm),
        "sentence": verdict["sentence"] if verdict.get("arm") == arm else "",
        "checks": verdict["checks"] if verdict.get("arm") == arm else [],
        "data": public_name(settings["data"]),
        "splits": ", ".join(settings["splits"]),
        "prompts": counted(prompts["rows"], "prompt"),
        "seeds": replicas,
        "sampling": f"temperature {settings['temperature']:g}, at most {counted(settings['max_new_tokens'], 'token')}, "
        f"{_weights(settings['quantization'])} computing in {settings['dtype']}",
        "created": str(results["created"])[:10],
        "version": results["versions"]["lit-debias"],
        "notes": results["notes"],
    }


def _weights(quantization: str) -> str:
    return "a base that was not quantised," if quantization == "none" else f"a base in {quantization.upper()}"


def model_index(results: Results, arm: str) -> list[EvalResult]:
    """Return every measure of the arm in the hub's form."""
    return list(_entries(results, arm))


def _entries(results: Results, arm: str) -> Iterator[EvalResult]:
    settings, before = results["settings"], results["arms"]["before"]["measures"]
    data = public_name(settings["data"])
    for name, estimate in results["arms"][arm]["measures"].items():
        if not _known(estimate) or name not in results["measures"]:
            continue
        bounds = {end: estimate[end] for end in ("low", "high") if estimate[end] is not None}
        base = {"before": before[name]["value"]} if _known(before.get(name)) else {}
        yield EvalResult(
            task_type=TASK,
            dataset_type=data,
            dataset_name=data,
            dataset_split=", ".join(settings["splits"]),
            metric_type=name,
            metric_name=results["measures"][name]["label"],
            metric_value=estimate["value"],
            metric_args={**base, **bounds},
        )
