"""Runs inside of a vLLM server, so that weights come to it by HTTP where it sees no folder of the trainer.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --worker-extension-cls lit_debias_vllm_server.Receiver ...

Needs nothing but Python: ``pip install --no-deps lit-debias-vllm`` brings it to the server's environment.
"""

from __future__ import annotations

import atexit
import base64
import os
import re
import shutil
import tempfile
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

PREFIX = "lit-debias-received-"
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names of versions, senders and files: none leads out of the folder."""


class Receiver:
    """What vLLM's workers can do beside their own; called through ``/collective_rpc``.

    Of the workers of a machine one writes. Each method returns a dictionary, with ``error`` where something is wrong,
    or None where another worker does it. vLLM wants names that none of its workers has.
    """

    local_rank: int

    def lit_debias_sees(self, file: str) -> dict[str, Any]:
        """Return the digest of a file, None where this machine does not see it."""
        try:
            return {"digest": digest_of(Path(file))}
        except OSError:
            return {"digest": None}

    def lit_debias_has(self, version: str) -> dict[str, Any] | None:
        """Return the folder of a version that is here, None as ``path`` where it is not."""
        if _others_do(self):
            return None
        kept = folder() / _plain(version)
        return {"path": str(kept) if kept.is_dir() else None}

    def lit_debias_receive(
        self, version: str, sender: str, file: str, offset: int, content: str
    ) -> dict[str, Any] | None:
        """Take a part of a file.

        Args:
            version: Names the weights.
            sender: Who sends; two may send the same version at once.
            file: Name within the version's folder.
            offset: Where the part begins, in bytes; 0 begins anew.
            content: The part in base64.
        """
        if _others_do(self):
            return None
        target = _work(version, sender) / _plain(file)
        target.parent.mkdir(exist_ok=True)
        size = target.stat().st_size if offset and target.exists() else 0
        if size != offset:
            return {"error": f"of {file} {size} bytes are here, and the next part begins at {offset}"}
        try:
            with target.open("ab" if offset else "wb") as out:
                out.write(base64.b64decode(content, validate=True))
        except (OSError, ValueError) as error:
            return {"error": f"{file} cannot be written: {error}"}
        return {"size": target.stat().st_size}

    def lit_debias_finish(
        self, version: str, sender: str, digests: dict[str, str], keep: list[str]
    ) -> dict[str, Any] | None:
        """Return the folder of a version whose files are all here, and remove versions that nobody asks for.

        Args:
            version: Names the weights.
            sender: As before.
            digests: File -> SHA-256.
            keep: Versions that are still in use.
        """
        if _others_do(self):
            return None
        work, out = _work(version, sender), folder() / _plain(version)
        here = {file.name: digest_of(file) for file in work.iterdir()} if work.is_dir() else {}
        if here != digests:
            shutil.rmtree(work, ignore_errors=True)
            wrong = sorted(name for name in here.keys() | digests.keys() if here.get(name) != digests.get(name))
            return {"error": f"{', '.join(wrong)} did not arrive as sent"}
        if out.exists():  # another sender was faster
            shutil.rmtree(work)
        else:
            work.rename(out)
        for old in folder().iterdir():
            if old.name not in (version, *keep) and not old.name.startswith("."):
                shutil.rmtree(old, ignore_errors=True)
        return {"path": str(out)}


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    found = sha256()
    with file.open("rb") as content:
        while part := content.read(2**20):
            found.update(part)
    return found.hexdigest()


@lru_cache(maxsize=1)
def folder() -> Path:
    """Return the folder of this process, which goes with it; those of processes that were killed go now."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not Path("/proc", old.name.removeprefix(PREFIX).partition("-")[0]).exists():
            shutil.rmtree(old, ignore_errors=True)
    own = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _others_do(worker: Receiver) -> bool:
    return bool(getattr(worker, "local_rank", 0))


def _work(version: str, sender: str) -> Path:
    return folder() / f".{_plain(version)}.{_plain(sender)}"


def _plain(name: str) -> str:
    if not PLAIN.fullmatch(name):
        raise ValueError(f"'{name}' is no plain name")
    return name
