"""Deals prompts out to servers: the groups of one that fails go to another, and it is asked again when it is well."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

import aiohttp
import anyio
import stamina
from anyio import CancelScope
from anyio.from_thread import start_blocking_portal
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from lit_debias.plugins import NO_KEY, ResumableError, api_key
from lit_debias_vllm.server import HEALTH_SECONDS, Server, ServerError, addresses

FAILURES = 3
"""After so many in one rollout a server is left out of it."""
LOOKING_SECONDS = 0.02
"""How often a rollout asks whether it has enough groups."""
_log = logging.getLogger(__name__)
logging.getLogger("stamina").setLevel(logging.ERROR)  # a line for each attempt says nothing beside the lines of ours

Ready = Callable[[Server], Awaitable[None]]
"""Brings a server to where it can be asked; raises :class:`ServerError` where that fails."""
Ask = Callable[[Server, int], Awaitable[Any]]
"""Asks a server for the group of a prompt, by its number."""
Deliver = Callable[[int, Any], None]
"""Gets the number of a prompt and the answer to it."""
IsEnough = Callable[[], bool]
"""Says that no further group is needed."""


def never() -> bool:
    """Return False: every group is needed."""
    return False


class Stop(Protocol):
    """Ends what all servers do, because of an error or because all is done."""

    def __call__(self, error: Exception | None = None) -> None:
        """Stop."""


class Pool:
    """The servers of this process.

    Args:
        servers: At least one.
        ready: Brings a server to where it can be asked; called before each use, so it is quick where nothing is to do.
        timeout: Seconds that one request may take.
        patience: Seconds to wait for a server that is not well, before the rollout goes on without it.
        api_key_env: Environment variable that holds the servers' key.
    """

    def __init__(
        self, servers: Sequence[Server], ready: Ready, timeout: float, patience: float, api_key_env: str
    ) -> None:
        self.servers, self.ready = list(servers), ready
        self.timeout, self.patience, self.api_key_env = timeout, patience, api_key_env

    def call(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Return what a coroutine returns that may send requests; also where an event loop runs already."""
        with start_blocking_portal() as portal:
            return portal.call(self._connected, function, *arguments)

    async def _connected(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        key = api_key(self.api_key_env)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=HEALTH_SECONDS),
            headers={} if key == NO_KEY else {"Authorization": f"Bearer {key}"},
        ) as session:
            for server in self.servers:
                server.session = session
            return await function(*arguments)

    def meet(self) -> None:
        """Make servers ready, all that are well and at least one.

        Raises:
            ResumableError: none is well in time.
        """
        self.call(self._meet)

    async def _meet(self) -> None:
        async for attempt in stamina.retry_context(NoServerError, **self.retrying()):
            with attempt:
                await together(self.servers, lambda server, _: self.make_ready(server))
                if all(server.trouble for server in self.servers):
                    raise NoServerError(self.servers)

    async def make_ready(self, server: Server) -> bool:
        """Return whether a server can be asked now."""
        was = server.trouble
        try:
            await self.ready(server)
        except ServerError as error:
            server.fail(error)
            if not was:
                _log.warning("VLLMEngine: %s is left out for now: %s", server.url, error)
            return False
        server.trouble = ""
        if was:
            _log.warning("VLLMEngine: %s samples again", server.url)
        return True

    def run(self, groups: int, ask: Ask, deliver: Deliver, is_enough: IsEnough = never) -> None:
        """Let servers sample every group once.

        Args:
            groups: How many.
            ask: Asks a server for one of them.
            deliver: Gets the number of each and its answer, as they come.
            is_enough: Asked now and then; True ends all requests whose answers are not here.

        Raises:
            ResumableError: no server is left.
        """
        with self.under_way(groups, ask, deliver, is_enough) as ended:
            ended.result()

    @contextmanager
    def under_way(
        self, groups: int, ask: Ask, deliver: Deliver, is_enough: IsEnough = never
    ) -> Iterator[Future[float]]:
        """Begin :meth:`run` in a thread of its own, which ends with the context whether it is done or not.

        Yields when the last group came, as ``time.perf_counter`` has it.
        """
        run = Run(self, groups, ask, deliver, is_enough)

        async def ended() -> float:
            await run.all_groups()
            return time.perf_counter()

        with start_blocking_portal() as portal:
            future = portal.start_task_soon(self._connected, ended)
            try:
                yield future
            finally:
                future.cancel()

    def retrying(self) -> dict[str, Any]:
        """Return how servers that are not well are asked again, as stamina takes it."""
        return {"attempts": None, "timeout": self.patience, "wait_initial": 0.5, "wait_max": 10.0}


class NoServerError(ResumableError):
    """No server is left that samples."""

    def __init__(self, servers: list[Server]) -> None:
        what = "; ".join(addresses(servers))
        super().__init__(f"VLLMEngine: no server answers ({what}); start one, or look at its log")


async def together(
    servers: Sequence[Server],
    work: Callable[[Server, Stop], Awaitable[object]],
    beside: Callable[[Stop], Awaitable[object]] | None = None,
) -> None:
    """Do something with all servers at a time, until each has ended or one calls for a stop; raises what one raises."""
    failures: list[Exception] = []
    working = len(servers)

    async with anyio.create_task_group() as tasks:

        def stop(error: Exception | None = None) -> None:
            failures.extend(filter(None, [error]))
            tasks.cancel_scope.cancel()

        async def guarded(server: Server) -> None:
            try:
                await work(server, stop)
            except Exception as error:  # the group would wrap it
                stop(error)
            nonlocal working
            working -= 1
            if not working:
                stop()

        async def watched() -> None:
            if beside is not None:
                await beside(stop)

        tasks.start_soon(watched)
        for server in servers:
            tasks.start_soon(guarded, server)
    if failures:
        raise failures[0]


class Run:
    """One rollout on its way.

    Args:
        pool: The servers.
        groups: How many.
        ask: Asks a server for one of them.
        deliver: Gets the number of each and its answer.
        is_enough: Says that no further group is needed.
    """

    def __init__(self, pool: Pool, groups: int, ask: Ask, deliver: Deliver, is_enough: IsEnough) -> None:
        self.pool, self.ask, self.deliver, self.is_enough = pool, ask, deliver, is_enough
        self.left = groups
        self.lanes = math.ceil(groups / len(pool.servers))
        self._send: MemoryObjectSendStream[int]
        self._waiting: MemoryObjectReceiveStream[int]

    async def all_groups(self) -> None:
        """Have every group sampled.

        Raises:
            ResumableError: no server is left.
        """
        self._send, self._waiting = anyio.create_memory_object_stream[int](math.inf)
        with self._send, self._waiting:
            for number in range(self.left):
                self._send.send_nowait(number)
            await together(self.pool.servers, self._serve, self._watch)
        if self.left:
            raise NoServerError(self.pool.servers)

    async def _watch(self, stop: Stop) -> None:
        """End all requests once nobody waits for them; servers stop computing when their connection closes."""
        while not self.is_enough():
            await anyio.sleep(LOOKING_SECONDS)
        self.left = 0
        stop()

    async def _serve(self, server: Server, stop: Stop) -> None:
        """Let a server sample until nothing is left, or it has failed too often."""
        for _ in range(FAILURES):
            if not await self._wait_for(server):
                return
            async with anyio.create_task_group() as lanes:
                for _ in range(self.lanes):
                    lanes.start_soon(self._lane, server, lanes.cancel_scope, stop)

    async def _wait_for(self, server: Server) -> bool:
        """Return True once a server can be asked, False where that does not happen in time."""
        try:
            async for attempt in stamina.retry_context(ServerError, **self.pool.retrying()):
                with attempt:
                    if not await self.pool.make_ready(server):
                        raise ServerError(server.trouble)
        except ServerError:
            return False
        return True

    async def _lane(self, server: Server, lanes: CancelScope, stop: Stop) -> None:
        """Ask for one group after the other; the first failure ends all lanes of this server."""
        async for number in self._waiting:
            try:
                await self._sample(server, number)
            except ServerError as error:
                _log.warning("VLLMEngine: %s fails: %s; its groups go to others", server.url, error)
                server.fail(error)
                lanes.cancel()
            except Exception as error:
                stop(error)
            if not self.left:
                stop()

    async def _sample(self, server: Server, number: int) -> None:
        done = False
        try:
            answer = await self.ask(server, number)
            done = True
        finally:
            if not done:
                self._send.send_nowait(number)
        self.deliver(number, answer)
        self.left -= 1
