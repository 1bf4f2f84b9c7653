"""Files inside installed Python packages, by names like ``pkg://PACKAGE/PATH``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

PACKAGE_SCHEME = "pkg://"


def path_in_package(name: str) -> Path | None:
    """Return the path that ``pkg://PACKAGE/PATH`` stands for, be it there or not; None without such a package."""
    package, _, path = name.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / path
