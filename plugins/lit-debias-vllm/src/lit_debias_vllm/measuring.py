"""Which way of weights to a server samples faster there: a few tokens each way say so."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from lit_debias_vllm import sync
from lit_debias_vllm.sampling import Sampling
from lit_debias_vllm.server import Server, Way
from lit_debias_vllm.versions import Version

SAMPLED = Sampling(n=8, max_tokens=8, temperature=1.0, ends=())
ROUNDS = 2
WORTH = 1.5
"""Merged weights are larger to send, so they must sample so many times faster."""
clock = time.perf_counter


async def faster(server: Server, version: Version, prompt: list[int]) -> tuple[Way, str]:
    """Return the faster way, and in words what was measured. The server has neither the version nor merged weights.

    An adapter on top of merged weights would end a server, so no merged weights are sent: they sample as the base does.

    Args:
        server: It can be brought weights either way.
        version: The policy as it is.
        prompt: Token ids.

    Raises:
        ServerError: the server fails.
    """
    server.way = "adapter"
    await sync.bring(server, version)
    adapter = await _rate(server, sync.model_of(server, version), prompt)
    await sync.forget(server)
    base = await _rate(server, server.model, prompt)
    way: Way = "merged" if base > WORTH * adapter else "adapter"
    return way, f"adapters sample {adapter:.0f} tokens/s there, merged weights {base:.0f}"


async def _rate(server: Server, model: str, prompt: list[int]) -> float:
    """Return tokens a second of the fastest round, after one that may compile."""

    async def ask() -> None:
        await server.complete(SAMPLED.body(model, "lit-debias-measured", prompt, 0))

    await ask()
    seconds = [await _timed(ask) for _ in range(ROUNDS)]
    return SAMPLED.n * SAMPLED.max_tokens / min(seconds)


async def _timed(ask: Callable[[], Awaitable[None]]) -> float:
    start = clock()
    await ask()
    return clock() - start
