"""Digests: the same for the same content, in every process and version of Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK = 2**20
"""Bytes that are read at once: a file need not fit into memory."""


def sha256(parts: Iterable[str | bytes | memoryview | Path]) -> str:
    """Return the SHA-256 over parts one after the other, as 64 hexadecimal digits.

    Args:
        parts: Texts, which count as UTF-8; bytes; and paths, each of which stands for what its file holds.
    """
    digest = hashlib.sha256()
    for part in parts:
        for block in _blocks(part):
            digest.update(block)
    return digest.hexdigest()


def _blocks(part: str | bytes | memoryview | Path) -> Iterator[bytes | memoryview]:
    if not isinstance(part, Path):
        yield part.encode() if isinstance(part, str) else part
        return
    with part.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the names, sizes and contents of files, and of the files in folders."""
    return sha256(
        part
        for path in paths
        for file in (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
        for part in (f"{file.name}\0{file.stat().st_size}\0", file)
    )


def stable_hash(text: str) -> int:
    """Return a number below 2**64 that depends on ``text`` alone, unlike ``hash``, which changes with the process."""
    return int(sha256([text])[:16], 16)
