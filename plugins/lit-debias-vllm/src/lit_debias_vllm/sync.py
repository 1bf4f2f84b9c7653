"""How a version of the policy comes to a server: as an adapter that it loads, or as weights of the base anew."""

from __future__ import annotations

from lit_debias.plugins import ResumableError
from lit_debias_vllm.server import Abilities, Server, ServerError, Way
from lit_debias_vllm.transfer import RECEIVER, path_of
from lit_debias_vllm.versions import Version

ADAPTERS = "--enable-lora and the environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
DEVELOPER = "the environment variable VLLM_SERVER_DEV_MODE=1"


def choose_way(asked: str, abilities: Abilities, merged_allowed: bool = True) -> Way | None:
    """Return how weights come to a server, None where ``auto`` may choose.

    Args:
        asked: ``auto``, ``adapter`` or ``merged``.
        abilities: What the server can do.
        merged_allowed: Whether this process has the server for itself.

    Raises:
        ValueError: the server can do neither; says what it must be started with.
    """
    adapter = abilities.runtime_adapters and abilities.adapters is not False
    merged = abilities.developer_mode and merged_allowed
    if asked == "auto" and adapter and merged:
        return None
    if asked == "merged" or (asked == "auto" and merged):
        if merged:
            return "merged"
        if merged_allowed:
            raise ValueError(f"it does not reload weights; start it with {DEVELOPER}")
        raise ValueError("it is shared by several processes, which sync: merged cannot; write sync: adapter")
    if not adapter:
        raise ValueError(f"it does not load adapters; start it with {ADAPTERS}")
    return "adapter"


async def bring(server: Server, version: Version) -> None:
    """Let a server have a version; does nothing where it has it.

    Raises:
        ServerError: the server fails.
        ResumableError: it cannot read the files, or refuses them.
    """
    if server.way == "adapter":
        await _bring_adapter(server, version)
    else:
        await _bring_merged(server, version)


def model_of(server: Server, version: Version) -> str:
    """Return the name that requests for a version give to the model."""
    return version.name if server.way == "adapter" else server.model


async def _bring_adapter(server: Server, version: Version) -> None:
    if server.version == version.name:
        return
    if await _weight_info(server) not in ("", "default"):  # an adapter on top of them would end the server
        raise ResumableError(
            f"VLLMEngine: merged weights were sent to {server.url} before; start it anew, or write sync: merged"
        )
    path = await path_of(server, version, version.adapter())
    try:
        await server.post("/v1/load_lora_adapter", {"lora_name": version.name, "lora_path": path})
    except ServerError as error:
        if "already been loaded" not in str(error):  # the same weights, as the name says: by another process
            raise _unreadable(server, "adapter", path, error) from None
    server.version = version.name
    server.loaded.append(version.name)
    for old in [name for name in server.loaded if name != version.name]:
        await _unload(server, old)


async def confirm(server: Server, version: Version) -> None:
    """Raise :class:`ServerError` where a server that has just answered has other weights than those of a version.

    Requests name the version only where it is an adapter. A server that was started anew in the meantime, or was sent
    the weights of another run, answers with merged weights as if nothing had been.
    """
    if server.way == "merged" and await _weight_info(server) not in ("", version.name):
        server.version = ""
        raise ServerError("it has other weights than it was sent")


async def forget(server: Server) -> None:
    """Unload all adapters that this process has loaded."""
    for name in [*server.loaded]:
        await _unload(server, name)
    server.version = ""


async def has_merged(server: Server) -> bool:
    """Return whether merged weights were sent to a server, also where it cannot tell."""
    return await _weight_info(server) != "default"


async def _unload(server: Server, name: str) -> None:
    try:
        await server.post("/v1/unload_lora_adapter", {"lora_name": name})
    except ServerError as error:
        if error.status != 404:  # another process has done it, or the server was started anew
            raise
    server.loaded.remove(name)


async def _bring_merged(server: Server, version: Version) -> None:
    if server.version == version.name and await _weight_info(server) == version.name:
        return
    path = await path_of(server, version, version.merged())
    try:
        await server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
    except ServerError as error:
        raise _unreadable(server, "merged weights", path, error) from None
    await server.post("/reset_prefix_cache", {})
    await _weight_info(server, version.name)
    server.version = version.name


async def _weight_info(server: Server, new: str | None = None) -> str:
    """Return the version that a server says it has, after it was told; one that was started anew has forgotten it.

    Empty where its vLLM knows none: weights are then sent for each rollout.
    """
    try:
        if new is not None:
            await server.post("/update_weight_version", {"new_version": new})
        answer = await server.get("/weight_info")
    except ServerError as error:
        if error.status != 404:
            raise
        return ""
    return str(answer.get("weight_version", "")) if isinstance(answer, dict) else ""


def _unreadable(server: Server, what: str, path: str, error: ServerError) -> Exception:
    """Return the error to raise: the server's, where it is out, or the user's, where it does not take the files."""
    if error.status == 0 or error.status == 503:
        return error
    seen = f"its machine must see that folder under the same path (option folder), or be started with {RECEIVER}; "
    return ResumableError(
        f"VLLMEngine: {server.url} does not take the {what} in {path}: {error}; "
        f"{seen if server.carrier == 'folder' else ''}--max-lora-rank must be at least the policy's rank"
    )
