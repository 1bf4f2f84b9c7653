"""What tells the scores of one checkpoint on disk from those of another."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from lit_debias.plugins import sha256


def fingerprint(files: Iterable[Path], *how: str) -> str:
    """Return the SHA-256 over the names and contents of files, and over what else decides a score."""
    content: list[str | Path] = [json.dumps(how)]
    for file in sorted(files):
        content += [json.dumps([file.name, file.stat().st_size]), file]
    return sha256(content)
