"""How the files of a version come to a server: it sees their folder, or they are sent to it."""

from __future__ import annotations

import base64
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from lit_debias_vllm.server import EXTENSION, Carrier, Server, ServerError
from lit_debias_vllm.versions import Version

PART = 8 * 2**20
"""Bytes of a file that one request carries."""
RECEIVER = f"--worker-extension-cls {EXTENSION}.Receiver and the environment variable VLLM_SERVER_DEV_MODE=1"
Transfer = Literal["auto", "folder", "http"]


async def choose_carrier(asked: Transfer, server: Server, version: Version) -> Carrier:
    """Return how files come to a server.

    Where ``auto`` may choose, a server that can be asked reads a file that nobody else knows.

    Args:
        asked: As the engine's option.
        server: It has been greeted.
        version: Whose folder it should see.

    Raises:
        ServerError: the server fails.
        ValueError: it cannot be sent anything.
    """
    assert server.abilities is not None
    receives = server.abilities.receives
    if asked == "http" and not receives:
        raise ValueError(f"it receives no weights by HTTP; start it with {RECEIVER}")
    if asked == "folder" or not receives:
        return "folder"
    return "folder" if asked == "auto" and await _sees(server, version.folder) else "http"


async def path_of(server: Server, version: Version, files: Path) -> str:
    """Return where a server finds the files of a version; sends them where it does not see them.

    Raises:
        ServerError: the server fails, or they do not arrive as sent.
    """
    if server.carrier == "folder":
        return str(files)
    return await _send(server, version.name, files)


async def _sees(server: Server, folder: Path) -> bool:
    file = folder / f".seen-{secrets.token_hex(8)}"
    content = secrets.token_bytes(16)
    file.write_bytes(content)
    file.chmod(0o644)
    try:
        found = await _call(server, "sees", file=str(file))
    finally:
        file.unlink()
    return all(each["digest"] == sha256(content).hexdigest() for each in found)


async def _send(server: Server, name: str, files: Path) -> str:
    has = await _call(server, "has", version=name)
    if len(has) > 1:
        raise ServerError("it has workers on several machines, which find files in a folder alone; see option folder")
    if has[0]["path"]:
        return str(has[0]["path"])
    sender, digests = secrets.token_hex(8), {}
    for file in sorted(files.iterdir()):
        digests[file.name] = await _send_file(server, file, version=name, sender=sender)
    kept = [version for version in server.loaded if version != name]
    [finished] = await _call(server, "finish", version=name, sender=sender, digests=digests, keep=kept)
    return str(finished["path"])


async def _send_file(server: Server, file: Path, **names: str) -> str:
    """Return the digest of what was sent."""
    digest, offset = sha256(), 0
    with file.open("rb") as content:
        while (part := content.read(PART)) or not offset:
            digest.update(part)
            told = base64.b64encode(part).decode()
            await _call(server, "receive", file=file.name, offset=offset, content=told, **names)
            offset += len(part)
            if not part:
                break
    return digest.hexdigest()


async def _call(server: Server, method: str, **arguments: Any) -> list[dict[str, Any]]:
    """Return what the workers say that have something to say.

    Raises:
        ServerError: the server fails, or a worker says what is wrong.
    """
    reply = await server.post("/collective_rpc", {"method": f"lit_debias_{method}", "kwargs": arguments})
    try:
        found = [each for each in reply["results"] if each is not None]
        errors = [each["error"] for each in found if "error" in each]
    except (KeyError, TypeError):
        raise ServerError("its answer is not that of lit_debias_vllm_server") from None
    if errors or not found:
        raise ServerError(f"weights do not arrive there: {errors[0] if errors else 'no worker answers'}")
    return found
