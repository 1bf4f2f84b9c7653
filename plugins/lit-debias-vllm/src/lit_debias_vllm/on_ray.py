"""Servers that ``lit-debias ray`` starts: they go by a name, because those that are started again move."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from anyio import to_thread

from lit_debias.plugins import UserError

SCHEME = "ray://"
ALL = f"{SCHEME}servers"
"""Stands for all servers of the run."""
VARIABLE = "LIT_DEBIAS_SERVERS"
"""Environment variable in which ``lit-debias ray`` tells its workers their names."""
SECONDS = 10.0


def expanded(urls: Iterable[str]) -> Iterator[str]:
    """Yield addresses as they were written, and the name of each server where all are meant.

    Raises:
        UserError: there are none, or a single one was written.
    """
    for url in urls:
        if not url.startswith(SCHEME):
            yield url
            continue
        names = os.environ.get(VARIABLE, "").split()
        if url != ALL or not names:
            raise UserError(
                f"VLLMEngine: urls has {url}; {ALL} are the servers that `lit-debias ray` starts for a file with the "
                "section servers, and elsewhere there are none: write addresses such as http://localhost:8000"
            )
        yield from (f"{SCHEME}{name}" for name in names)


async def address_of(url: str) -> str:
    """Return where a server is now.

    Args:
        url: Its address, or its name.

    Raises:
        LookupError: Ray does not say.
    """
    return await to_thread.run_sync(_ask, url.removeprefix(SCHEME)) if url.startswith(SCHEME) else url


def _ask(name: str) -> str:
    import ray

    try:
        return str(ray.get(ray.get_actor(name).address.remote(), timeout=SECONDS))
    except (ValueError, ray.exceptions.RayError) as error:
        raise LookupError(f"Ray does not say where it is ({' '.join(str(error).split()):.160})") from None
