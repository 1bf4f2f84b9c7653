"""Whether figures of one name are one quantity: only where what they were made with agrees."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from lit_debias.report.sources import Evaluation

SETTINGS = {
    "model": "models",
    "quantization": "quantizations",
    "data_sha256": "data",
    "columns": "columns",
    "splits": "splits",
    "limit": "numbers of prompts",
    "max_new_tokens": "lengths of answers",
    "temperature": "temperatures",
    "top_k": "sampling",
    "top_p": "sampling",
    "min_p": "sampling",
    "stop": "stop strings",
    "chat_template_kwargs": "chat templates",
    "perplexity_model": "perplexity models",
}
"""What the primary figures of two evaluations must share, the judge aside. Runs may have seeds of their own."""
KEPT = ("class", "depends_on_batch")
"""What is there beside the arguments of a reward."""


def apart(evaluation: Evaluation, config: Mapping[str, Any]) -> dict[str, str]:
    """Return reward -> why its figures of the training and of the evaluation are not one quantity.

    Args:
        evaluation: Its rewards are compared.
        config: Of the training, as its config.yaml has it; empty where it is not known.
    """
    measured = [name.removeprefix("reward/") for name in evaluation.results["measures"] if name.startswith("reward/")]
    whole = _other_base(evaluation, config)
    reasons = {name: whole or _other_reward(name, evaluation, config) for name in measured}
    return {name: reason for name, reason in reasons.items() if reason}


def as_config(text: str) -> Mapping[str, Any]:
    """Return what a config.yaml says; empty where it is no YAML."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def disagreements(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return what keeps the primary figures of runs from being one quantity, in words."""
    differing = [
        f"{words} ({name})"
        for name, words in SETTINGS.items()
        if _several(evaluation.setting(name) for evaluation in evaluations)
    ]
    found = [f"the runs are of different {', '.join(differing)}"] if differing else []
    if _several(evaluation.results["verdict"]["measure"] for evaluation in evaluations):
        found.append("the verdicts of the runs are about different measures")
    elif _several(_judge(evaluation) for evaluation in evaluations):
        found.append("the judges of the runs are set differently")
    return found


def settings_of(reward: Any, files: str) -> Any:
    """Return class and arguments of a reward, alike for a configuration and for an identity in results.

    Args:
        reward: ``class_path`` and ``init_args``, or ``class`` and ``arguments``, or anything that is within them.
        files: What names a file of an identity: ``path``, which a configuration has too, or ``sha256``.
    """
    if isinstance(reward, Mapping):
        if "class_path" in reward:
            return {"class": _short(reward["class_path"]), **settings_of(reward.get("init_args") or {}, files)}
        if "class" in reward:
            kept = {name: reward[name] for name in KEPT if name in reward} | {"class": _short(reward["class"])}
            return {**kept, **settings_of(reward.get("arguments") or {}, files)}
        if {"path", "sha256"} == set(reward):
            return settings_of(reward[files], files)
        return {name: settings_of(value, files) for name, value in reward.items()}
    if isinstance(reward, (list, tuple)):
        return [settings_of(value, files) for value in reward]
    return posixpath.normpath(reward) if isinstance(reward, str) and "/" in reward else reward


def _other_base(evaluation: Evaluation, config: Mapping[str, Any]) -> str:
    policy = _at(config, "model", "init_args", "policy", "init_args")
    if not isinstance(policy, Mapping):
        return ""
    for name in ("model", "quantization"):
        evaluated = evaluation.setting(name)
        if name in policy and evaluated is not None and policy[name] != evaluated:
            return f"the training's {name} is {policy[name]}, that of the evaluation {evaluated}"
    if policy.get("adapter") and policy.get("reference") == "adapter":
        return "the training's reference is the adapter that it continued, that of the evaluation is the base"
    return ""


def _other_reward(name: str, evaluation: Evaluation, config: Mapping[str, Any]) -> str:
    known = _at(evaluation.results, "settings", "rewards", name)
    found = _at(config, "model", "init_args", "rewards", name)
    if not isinstance(known, Mapping) or "unknown" in known or not isinstance(found, Mapping):
        return f"it is not known how “{name}” was set in both"
    trained, evaluated = settings_of(found, "path"), settings_of(known, "path")
    if evaluated.get("depends_on_batch"):
        return f"scores of “{name}” compare within a batch only"
    differing = [key for key in evaluated if key in trained and trained[key] != evaluated[key]]
    if not differing:
        return ""
    return f"“{name}” was trained with {_words(trained, differing)}, and evaluated with {_words(evaluated, differing)}"


def _words(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {settings[name]}" for name in names)


def _judge(evaluation: Evaluation) -> Any:
    judge = str(evaluation.results["verdict"]["measure"]).partition("/")[2]
    return settings_of(_at(evaluation.results, "settings", "judges", judge), "sha256")


def _several(values: Iterable[Any]) -> bool:
    return len({repr(value) for value in values}) > 1


def _short(path: Any) -> str:
    """Return distribution and name of a class, which may be imported from several of its modules."""
    parts = str(path).split(".")
    return f"{parts[0]}.{parts[-1]}"


def _at(content: Any, *names: str) -> Any:
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content
