"""Names of a package that are imported when they are first asked for, so that ``import lit_debias`` stays quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def importer(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` (PEP 562).

    Args:
        package: Name of the package that offers the names.
        modules: Name -> the module that defines it.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807  # what Python calls it
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(modules[name]), name)

    return __getattr__
