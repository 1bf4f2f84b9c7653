"""Advice on a class name that a configuration file has wrong: what to install, or which classes fit there."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from lit_debias.errors import did_you_mean
from lit_debias.plugins.official import missing_plugin


def class_advice(name: str, owner: str, key: str) -> str:
    """Return what to write instead of the name of a class that is not there.

    Args:
        name: What stands in the file.
        owner: Path of the class whose option it is; empty for an option of the command.
        key: The option's name, such as ``rewards`` or ``trainer.callbacks``.
    """
    if advice := missing_plugin(name):
        return advice
    return f"there is no class '{name}'{did_you_mean(name.rpartition('.')[2], fitting_classes(owner, key))}"


def fitting_classes(owner: str, key: str) -> set[str]:
    """Return the short names of the classes that fit an option, as :func:`class_advice` has it."""
    bases = _bases(owner, key)
    found = {cls for base in bases for cls in _concrete(base) if _is_public(cls)}
    roots = {base for base in bases if any(cls is not base and issubclass(cls, base) for cls in found)}
    return {cls.__name__ for cls in found - roots}


def _bases(owner: str, key: str) -> list[type]:
    """Return the classes that an option's type names; where nothing says its type, whatever it may be called."""
    section, _, name = key.rpartition(".")
    owner = "lightning.Trainer" if section == "trainer" else owner
    return list(_classes_in(hints_of(owner).get(name))) or _by_name(name)


def hints_of(path: str) -> dict[str, Any]:
    """Return option -> type of the class at a path; empty where it is not there, or a type cannot be read."""
    module, _, name = path.rpartition(".")
    with suppress(Exception):  # of whatever code the path leads to
        return typing.get_type_hints(getattr(import_module(module), name).__init__)
    return {}


def _classes_in(hint: Any) -> Iterator[type]:
    for part in typing.get_args(hint) or (hint,):
        if typing.get_args(part):
            yield from _classes_in(part)
        elif isinstance(part, type) and part.__module__.partition(".")[0] not in ("builtins", "collections", "pathlib"):
            yield part


def _by_name(name: str) -> list[type]:
    from lightning import LightningDataModule, LightningModule

    from lit_debias.benchmark.benchmark import Benchmark
    from lit_debias.rewards.reward import Reward

    known: dict[str, type] = {"model": LightningModule, "data": LightningDataModule, "benchmarks": Benchmark}
    return [known.get(name, Reward)] if name in (*known, "rewards", "judges") else []


def _concrete(base: type) -> Iterator[type]:
    todo, seen = [base], set()
    while todo:
        cls = todo.pop()
        if cls not in seen:
            seen.add(cls)
            todo += cls.__subclasses__()
            if not inspect.isabstract(cls):
                yield cls


def _is_public(cls: type) -> bool:
    """Return whether a package above the class's module offers it, or a module that is a package of its own."""
    if cls.__name__.startswith("_"):
        return False
    packages = cls.__module__.split(".")
    above = [".".join(packages[:end]) for end in range(1, max(2, len(packages)))]
    if packages[:2] == ["torch", "optim"]:  # schedules have no other place than their module
        above.append(cls.__module__)
    return any(getattr(sys.modules.get(package), cls.__name__, None) is cls for package in above)
