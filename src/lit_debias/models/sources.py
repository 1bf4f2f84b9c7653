"""Where models come from: a local folder, a hub id, or a file inside an installed Python package.

``pkg://PACKAGE/PATH`` names a file or folder inside an installed package. A GGUF file is converted once
to safetensors in the cache (``LIT_DEBIAS_CACHE``, by default ``~/.cache/lit-debias``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from lit_debias.errors import UserError
from lit_debias.models.gguf_file import CONVERTER, convert
from lit_debias.support.atomic import new_folder
from lit_debias.support.hashing import sha256
from lit_debias.support.packages import PACKAGE_SCHEME, path_in_package


def cache_dir() -> Path:
    """Return the folder that holds converted models."""
    return Path(os.environ.get("LIT_DEBIAS_CACHE", Path.home() / ".cache" / "lit-debias"))


@contextmanager
def alone_in_cache() -> Iterator[None]:
    """Let processes add to the cache one after the other, so that all but the first find what they want.

    Where the file system has no locks they go at once: what they add is put in its place whole in either case.
    """
    cache_dir().mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache_dir() / ".lock")
    with suppress(OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_model(source: str) -> None:
    """Raise :class:`UserError` where ``source`` clearly names nothing; loads no weights and asks no network."""
    locate(source)


def locate(source: str) -> str:
    """Return a local path, or ``source`` itself where it can only be a hub id.

    Raises:
        UserError: the package is not installed, the file is not in it, or a local path does not exist.
    """
    if source.startswith(PACKAGE_SCHEME):
        return str(_locate_in_package(source))
    if source and Path(source).expanduser().is_dir():
        return str(Path(source).expanduser())
    is_gguf = source.endswith(".gguf")
    if is_gguf and Path(source).expanduser().is_file():
        return str(Path(source).expanduser())
    if is_gguf or source.count("/") > 1 or source.startswith((".", "~", "/")) or not source:
        raise UserError(
            f"model '{source}': no such file or folder; write one that exists, a hub id like "
            "'Qwen/Qwen2.5-1.5B-Instruct', or pkg://PACKAGE/PATH"
        )
    return source


def _locate_in_package(source: str) -> Path:
    package, _, path = source.removeprefix(PACKAGE_SCHEME).partition("/")
    found = path_in_package(source)
    if found is None:
        raise UserError(f"model '{source}': the Python package '{package}' is not installed; pip install it first")
    if not found.exists():
        raise UserError(f"model '{source}': the package '{package}' holds no '{path}'")
    return found


def resolve(source: str) -> str:
    """Return what ``from_pretrained`` takes: a folder with safetensors, or a hub id.

    Converts a GGUF file on its first use, once for all processes that share a cache.
    """
    located = locate(source)
    return str(_convert_gguf(Path(located))) if located.endswith(".gguf") else located


def _convert_gguf(path: Path) -> Path:
    target = cache_dir() / f"{path.stem}-{_digest(path, path.stat().st_mtime_ns)[:12]}-{CONVERTER}"
    if target.is_dir():
        return target
    if find_spec("gguf") is None:
        raise UserError(f"model '{path}' is a GGUF file; pip install 'lit-debias[embedded]' to read it")
    with alone_in_cache():
        if not target.is_dir():
            with new_folder(target, replace=False) as work:
                convert(path, work)
    return target


@lru_cache(maxsize=8)
def _digest(path: Path, modified: int) -> str:  # noqa: ARG001  # the time makes the cache forget a changed file
    return sha256([path])
