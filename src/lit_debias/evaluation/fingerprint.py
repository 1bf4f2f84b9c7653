"""Says whether two evaluations are of the same thing: settings, data, models, judges."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from lit_debias.benchmark.benchmark import AnyBenchmark, Benchmark
from lit_debias.errors import UserError, cause_of
from lit_debias.models.adapter_config import WEIGHTS
from lit_debias.models.sources import locate
from lit_debias.rewards.identity import UnknownIdentityError, described
from lit_debias.rewards.reward import Reward
from lit_debias.support.hashing import sha256, sha256_of_files
from lit_debias.text_measures.measure import TextMeasure

_log = logging.getLogger(__name__)


def sha256_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 over rows of data that lie in no file here."""
    return sha256(json.dumps(row, sort_keys=True, default=str) for row in rows)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON-like settings, whatever the order of their keys."""
    return sha256([json.dumps(settings, sort_keys=True)])


def differences(kept: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield the dotted names of settings that two JSON-like values have otherwise."""
    if isinstance(kept, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*kept, *now]):
            yield from differences(kept.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif kept != now:
        yield name


def identify_model(source: str) -> list[Any]:
    """Return what tells one base model from another; weights are told apart by size and time, not read."""
    path = Path(locate(source))
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [source, [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]]


def describe(value: Any) -> Any:
    """Return what an object is, as JSON: texts and numbers, files by their content, rewards by their ``identity()``.

    Benchmarks and measures of texts are described likewise. What cannot tell gets another description at each call,
    so that nothing that was kept passes for its own.
    """
    if isinstance(value, (Reward, Benchmark, TextMeasure)):
        return identify(value) or {"class": type(value).__qualname__, "unknown": uuid4().hex}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    try:
        return described(value)
    except UnknownIdentityError:
        return f"{type(value).__module__}.{type(value).__qualname__}"


def describe_adapter(folder: str | None) -> Any:
    """Return what an adapter is: its weights and their configuration, whatever else its folder says of them."""
    files = [Path(folder).expanduser() / name for name in (WEIGHTS, "adapter_config.json")] if folder else []
    return {"path": folder, "sha256": sha256_of_files(files)} if files else None


def identify(reward: Reward | AnyBenchmark | TextMeasure) -> dict[str, Any] | None:
    """Return the identity of a reward, benchmark or measure, checked; None where it cannot tell, which the log says.

    Raises:
        UserError: it fails, or is not JSON.
    """
    name = type(reward).__qualname__
    try:
        identity = reward.identity()
        json.dumps(identity)
    except UnknownIdentityError as reason:
        _log.warning("%s cannot tell what its scores depend on (%s), so none is kept: see its identity()", name, reason)
        return None
    except Exception as error:
        raise UserError(
            f"{name}: identity() fails or is not JSON ({cause_of(error)}); return a dict of texts and numbers"
        ) from error
    return identity


def check_judges(judges: Mapping[str, Reward], rewards: Mapping[str, Reward]) -> None:
    """Raise :class:`UserError` where a judge is also a reward: what was trained on says nothing about success."""
    known = {name: _comparable(reward) for name, reward in rewards.items()}
    for judge, instance in judges.items():
        if judge in rewards:
            raise UserError(f"'{judge}' is both a judge and a reward; give the judge a name of its own")
        for name, of_reward in known.items():
            if _comparable(instance) == of_reward:
                raise UserError(
                    f"judge '{judge}' is the reward '{name}' (same class and settings); write a judge that nothing is "
                    "trained on, for example one with another checkpoint, seed and fold of the templates"
                )


def _comparable(reward: Reward) -> Any:
    """Return what tells two rewards apart; the class alone where a reward cannot tell."""
    return _essence(identify(reward) or {"class": f"{type(reward).__module__}.{type(reward).__qualname__}"})


def _essence(value: Any) -> Any:
    if isinstance(value, dict):  # neither speed nor the spelling of a path makes another judge
        left_out = {"batch_size"} | ({"path"} if "sha256" in value else set())
        return {key: _essence(item) for key, item in value.items() if key not in left_out}
    return [_essence(item) for item in value] if isinstance(value, list) else value
