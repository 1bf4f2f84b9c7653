"""Says whether two evaluations are of the same thing: settings, data, models, judges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_debias.errors import UserError
from lit_debias.models import locate
from lit_debias.redaction import is_secret_name
from lit_debias.rewards.base import Reward


def sha256_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the names and contents of files, and of the files in folders."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def sha256_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 over rows of data that lie in no file here."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON-like settings, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def identify_model(source: str) -> list[Any]:
    """Return what tells one base model from another; weights are told apart by size and time, not read."""
    path = Path(locate(source))
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [source, [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]]


def describe(value: Any, depth: int = 6) -> Any:
    """Return what an object is made of as JSON: its class and attributes; files that it names by their content.

    It is kept in results, so attributes that hold secrets by their names (``api_key``) are left out.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Path)):
        path = Path(value)
        return [str(value), sha256_of([path])] if _exists(path) else str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item, depth - 1) for item in value]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if depth <= 0 or not hasattr(value, "__dict__") or isinstance(value, (Tensor, nn.Module, type)):
        return name
    attributes = {key: item for key, item in sorted(vars(value).items()) if not is_secret_name(key)}
    return {"class": name, **{key: describe(item, depth - 1) for key, item in attributes.items()}}


def _exists(path: Path) -> bool:
    try:
        return len(path.parts) > 1 and path.exists()  # a bare word is hardly a path
    except (OSError, ValueError):  # longer than a file name may be, or not one at all
        return False


def check_judges(judges: Mapping[str, Reward], rewards: Mapping[str, Reward]) -> None:
    """Raise :class:`UserError` where a judge is also a reward: what was trained on says nothing about success."""
    described = {name: _without_batch_size(describe(reward)) for name, reward in rewards.items()}
    for judge, instance in judges.items():
        if judge in rewards:
            raise UserError(f"'{judge}' is both a judge and a reward; give the judge a name of its own")
        for name, of_reward in described.items():
            if _without_batch_size(describe(instance)) == of_reward:
                raise UserError(
                    f"judge '{judge}' is the reward '{name}' (same class and settings); write a judge that nothing is "
                    "trained on, for example one with another checkpoint, seed and fold of the templates"
                )


def _without_batch_size(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_batch_size(item) for key, item in value.items() if key != "batch_size"}
    return value
