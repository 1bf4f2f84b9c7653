"""Puts a finished file or folder in the place of an old one, such that a crash leaves the one or the other."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextlib.contextmanager
def new_folder(out: Path, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``out`` when the context is left without an error.

    A crash at any moment leaves at ``out`` what was there, or all that is new; an error leaves what was there.

    Args:
        out: The folder.
        replace: False leaves what another process has put there meanwhile.
    """
    out = out.resolve()  # what a link names is replaced, not the link
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield work
        for file in work.rglob("*"):
            to_disk(file)
        work.chmod(0o755)
        _move(work, out) if not replace else replace_folder(out, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move(work: Path, out: Path) -> None:
    """Give a folder the name ``out``, unless there is a folder already."""
    to_disk(work)
    try:
        work.rename(out)
    except OSError:
        if not out.is_dir():
            raise
    to_disk(out.parent)


def replace_folder(out: Path, work: Path) -> None:
    """Put the folder ``work`` in the place of ``out``, which is then gone.

    On Linux the two change places in one step. Elsewhere, or on a file system that cannot do that, the old one is moved
    aside first: a crash between the two steps leaves both whole, the old one as ``work``'s name with ``-old``.
    """
    to_disk(work)
    old = work.with_name(f"{work.name}-old")
    if not out.exists():
        work.rename(out)
    elif _exchange(work, out):
        old = work
    else:
        out.rename(old)
        try:
            work.rename(out)
        except OSError:
            old.rename(out)
            raise
    to_disk(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step; return whether the system could."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library from before 2018
        return False
    return bool(renameat2(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(exchange)) == 0)


@contextlib.contextmanager
def new_file(path: Path, work: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of ``path`` when the context is left without an error.

    A crash at any moment leaves the old file or the new one, never half of it; an error leaves the old one.

    Args:
        path: The file; its folder is made where it is missing.
        work: Where it is written until then, in the same file system: what a killed process leaves there is
            overwritten by the next one, so it suits large files that one process at a time writes. By default a name
            that no other process takes.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = work or path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    try:
        with work.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)
    to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file such that a crash leaves the old one or the new one, never half of it."""
    with new_file(path) as file:
        file.write(text.encode())


def to_disk(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
