"""What ``lit-debias doctor --engine`` says of servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lit_debias.plugins import Requirement
from lit_debias_vllm.sampling import Sampling
from lit_debias_vllm.server import Abilities, Server, ServerError
from lit_debias_vllm.sync import ADAPTERS, DEVELOPER, choose_way
from lit_debias_vllm.transfer import RECEIVER

HIGHEST = 2.0
"""The highest temperature that vLLM takes."""
PROCESSED = "--logprobs-mode processed_logprobs"


async def examine(servers: Sequence[Server], sync: str, temperature: float) -> list[list[Requirement]]:
    """Return the lines of each server.

    Args:
        servers: Which ones.
        sync: As the engine's option.
        temperature: Of sampling.
    """
    return [await _examine(server, sync, temperature) for server in servers]


async def _examine(server: Server, sync: str, temperature: float) -> list[Requirement]:
    try:
        await server.greet()
        processed = await _processed(server)
    except ServerError as error:
        return [Requirement(server.url, False, str(error), "start it, or correct its address", required=True)]
    abilities = server.abilities
    assert abilities is not None
    found = f"serves '{server.model}' on {abilities.device or 'an unknown device'}, up to {server.longest} tokens"
    return [
        Requirement(server.url, True, found, required=True),
        *_ways(abilities, sync),
        _logprobs(processed, temperature),
        *_traps(abilities),
    ]


def _ways(abilities: Abilities, sync: str) -> Iterator[Requirement]:
    adapter = abilities.runtime_adapters and abilities.adapters is not False
    rank = f", up to rank {abilities.largest_rank}" if abilities.largest_rank else ""
    yield Requirement("  adapters", adapter, f"loaded by HTTP{rank}" if adapter else "not loaded by HTTP", ADAPTERS)
    yield Requirement(
        "  merged weights",
        abilities.developer_mode,
        "reloaded by HTTP" if abilities.developer_mode else "not reloaded by HTTP",
        DEVELOPER,
    )
    found = "received by HTTP" if abilities.receives else "read from a folder that it must see"
    yield Requirement("  files", abilities.receives, found, f"for servers that do not see it: {RECEIVER}")
    try:
        way = choose_way(sync, abilities)
        told, advice = f"'{way}'" if way else "what samples faster", ""
    except ValueError as error:
        told, advice = "none", str(error)
    yield Requirement("  sync", not advice, f"{sync} is {told} here", advice, required=True)


def _logprobs(processed: bool, temperature: float) -> Requirement:
    found = "of the temperature" if processed else f"before the temperature, which is {temperature:g}"
    return Requirement("  log-probs", processed, found, f"start it with {PROCESSED}", required=temperature != 1)


def _traps(abilities: Abilities) -> Iterator[Requirement]:
    if abilities.device == "cpu" and abilities.chunked_prefill is not None:
        ok = not abilities.chunked_prefill
        advice = "start it with --no-enable-chunked-prefill: seeded requests end a CPU server otherwise"
        yield Requirement("  prefill", ok, "whole" if ok else "in chunks", advice, required=True)
    if abilities.runtime_adapters or abilities.developer_mode:
        advice = "whoever reaches it can load files and call its functions: keep it in a trusted network"
        yield Requirement("  network", False, "it takes weights by HTTP", advice)


async def _processed(server: Server) -> bool:
    """Return whether log-probs are those of the temperature: at a high one the most probable token's is lower."""
    return await _largest(server, HIGHEST) < await _largest(server, 1.0) - 1e-3


async def _largest(server: Server, temperature: float) -> float:
    body = Sampling(1, 1, temperature, ()).body(server.model, "lit-debias-doctor", [1], 0) | {"logprobs": 1}
    reply: Any = await server.complete(body)
    try:
        return float(max(reply["choices"][0]["logprobs"]["top_logprobs"][0].values()))
    except (KeyError, IndexError, TypeError, ValueError):
        raise ServerError("its answer has not the fields of vLLM: it sends no log-probs") from None
