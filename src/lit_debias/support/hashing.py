"""Digests: the same for the same content, in every process and version of Python."""

from __future__ import annotations

import hashlib


def stable_hash(text: str) -> int:
    """Return a number below 2**64 that depends on ``text`` alone, unlike ``hash``, which changes with the process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
