"""What scores depend on, as JSON: it tells whether something that was kept of an earlier run still holds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from lit_debias.support.hashing import sha256, sha256_of_files
from lit_debias.support.packages import PACKAGE_SCHEME, path_in_package
from lit_debias.support.redaction import is_secret_name, redact

Arguments = tuple[Sequence[Any], Mapping[str, Any]]


class UnknownIdentityError(Exception):
    """A value does not show what it is; the message says which."""


@dataclass(frozen=True)
class Opaque:
    """Stands for an argument that does not show what it is, such as a function."""

    kind: str
    """Name of its class."""


def recorded(value: Any) -> Any:
    """Return a value as it is now: containers copied, and :class:`Opaque` for what cannot be described anyway.

    So it stays what it was when a reward changes its arguments, and can be pickled wherever they can.
    """
    if isinstance(value, Mapping):
        return {key: recorded(item) for key, item in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(recorded(item) for item in value)
    known = value is None or isinstance(value, (bool, int, float, str, Path, Enum, torch.dtype, torch.device))
    return value if known or _is_record(value) or _names_itself(value) else Opaque(type(value).__qualname__)


def identity_of(instance: Any, arguments: Arguments, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return class, version, source and arguments of an object, and whether its scores depend on their batch.

    The version is that of the distribution whose plugin brought the class. The source is a digest of the Python files
    beside the module of the class, and of those that it inherits from, so that other code is another identity.

    Args:
        instance: Of the class.
        arguments: What its ``__init__`` got, as :func:`recorded` returns it.
        without: Arguments that do not count. Those with the name of a secret never do.

    Raises:
        UnknownIdentityError: an argument does not show what it is, or the class has no source.
    """
    cls = type(instance)
    try:
        bound = inspect.signature(cls.__init__).bind(instance, *arguments[0], **arguments[1])
    except TypeError as error:
        raise UnknownIdentityError(f"its arguments are not those of __init__ ({error})") from error
    bound.apply_defaults()
    given = dict(list(bound.arguments.items())[1:])
    counted = {name: value for name, value in given.items() if name not in without and not is_secret_name(name)}
    return {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "version": _version(cls.__module__),
        "source": sha256_of_files(_sources(cls)),
        "arguments": {name: _argument(name, value) for name, value in counted.items()},
        **({"depends_on_batch": True} if getattr(instance, "depends_on_batch", False) else {}),
    }


def variants(reward: Any) -> Iterator[tuple[str, Any]]:
    """Yield rewards built anew: with equal arguments, and with another number in the place of each that has one.

    Each comes with what is changed, which is nothing at first: ``words=40 and words=41``. Arguments in
    ``speed_options`` are left out, and so is everything where an argument cannot be given again.
    """
    cls, (args, kwargs) = type(reward), reward._arguments
    if "Opaque(" in repr((args, kwargs)):
        return
    yield "", cls(*args, **kwargs)
    bound = inspect.signature(cls.__init__).bind(reward, *args, **kwargs)
    bound.apply_defaults()
    for name, value in list(bound.arguments.items())[1:]:
        if name not in reward.speed_options and isinstance(value, (bool, int, float)):
            other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 0.75
            bound.arguments[name] = other
            with suppress(Exception):  # out of range; most are not
                yield f"{name}={value} and {name}={other}", cls(*bound.args[1:], **bound.kwargs)
            bound.arguments[name] = value


def _argument(name: str, value: Any) -> Any:
    try:
        return described(value)
    except UnknownIdentityError as error:
        raise UnknownIdentityError(f"argument '{name}': {error}") from error


def described(value: Any) -> Any:
    """Return a value as JSON: numbers and texts, files and folders by their content, objects by their ``identity()``.

    Raises:
        UnknownIdentityError: there is something else in it.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Path)):
        return _described_text(str(value))
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((described(item) for item in value), key=repr)
    return _described_object(value)


def _described_object(value: Any) -> Any:
    if isinstance(value, Enum):
        return described(value.value)
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if _names_itself(value):
        return value.identity()
    if _is_record(value):
        content = {field.name: described(getattr(value, field.name)) for field in fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **content}
    kind = value.kind if isinstance(value, Opaque) else type(value).__qualname__
    raise UnknownIdentityError(f"a {kind} does not show what it is")


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, (type, Opaque))


def _names_itself(value: Any) -> bool:
    return not isinstance(value, type) and callable(getattr(value, "identity", None))


def _described_text(text: str) -> Any:
    path = _path(text)
    if path is None:
        return redact(text)
    if path.is_dir() and len(Path(text).parts) == 1:  # a word that is also a folder here: looked at, hardly meant
        files = sorted(file for file in path.rglob("*") if file.is_file())
        stats = [[str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return {"path": text, "sha256": sha256([repr(stats)])}
    return {"path": redact(text), "sha256": sha256_of_files([path])}


def _path(text: str) -> Path | None:
    """Return the file or folder that a text names, if any; ``.`` and ``/`` are no more than signs."""
    if not any(map(str.isalnum, text)):
        return None
    with suppress(OSError, ValueError, ImportError, RuntimeError):  # longer than a name may be, or not one at all
        path = path_in_package(text) if text.startswith(PACKAGE_SCHEME) else Path(text).expanduser()
        return path if path is not None and path.exists() else None
    return None


def _sources(cls: type) -> Iterator[Path]:
    """Yield the Python files that a class and those that it inherits from are written in, and their neighbours."""
    modules = {base.__module__ for base in cls.__mro__} - {"abc", "builtins", "typing", "lit_debias.rewards.reward"}
    for name in sorted(modules):
        module = sys.modules.get(name)
        file = Path(getattr(module, "__file__", None) or "")
        if file.suffix != ".py" or not file.is_file():
            raise UnknownIdentityError(f"the source of module {name} is not at hand")
        yield from sorted(file.parent.glob("*.py")) if getattr(module, "__package__", None) else [file]


def _version(module: str) -> str | None:
    return _versions().get(module.partition(".")[0])


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    """Return the package of each plugin -> the version of its distribution."""
    found = entry_points(group="lit_debias")
    return {point.module.partition(".")[0]: point.dist.version for point in found if point.dist is not None}
