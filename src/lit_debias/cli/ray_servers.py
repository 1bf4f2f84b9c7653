"""Servers of a run of ``lit-debias ray``: each is an actor of Ray, which is started again where it fails."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from uuid import uuid4

from lit_debias.cli import keeper
from lit_debias.errors import UserError

SERVERS = "LIT_DEBIAS_SERVERS"
"""Environment variable of the workers: the names of the servers' actors, with spaces between them."""
HERE = "127.0.0.1"


@dataclass(frozen=True)
class Servers:
    """Servers that a run samples with; an engine finds them as ``ray://servers``.

    Args:
        command: Starts one of them, such as ``vllm serve MODEL --enable-lora``; ``--host`` and ``--port`` are added.
        number: How many there are.
        resources: What each of them takes, such as ``{GPU: 1, CPU: 4}``; by default one CPU.
        environment: Variables for them, beside those of Ray's worker.
        restarts: How often each of them is started again after it has ended; -1 is without end.
        timeout: Seconds until all of them answer for the first time.
    """

    command: str
    number: int = 1
    resources: dict[str, float] | None = None
    environment: dict[str, str | int] | None = None
    restarts: int = 3
    timeout: int = 1800

    def __post_init__(self) -> None:
        if self.number < 1 or self.restarts < -1 or self.timeout < 1:
            raise UserError(
                f"servers: number={self.number}, restarts={self.restarts}, timeout={self.timeout}; write at least 1, "
                "-1 and 1"
            )
        given = {word.partition("=")[0] for word in self.words()} & {"--host", "--port"}
        if given or not self.words():
            raise UserError(
                f"servers.command is '{self.command}'; write what starts a server, such as `vllm serve MODEL`, without "
                "--host and --port"
            )

    def words(self) -> list[str]:
        """Return the command and its arguments.

        Raises:
            UserError: a quotation mark is missing.
        """
        try:
            return shlex.split(self.command)
        except ValueError as error:
            raise UserError(f"servers.command: {str(error).lower()} in: {self.command}") from error

    def variables(self) -> dict[str, str]:
        """Return the environment as processes take it."""
        return {name: str(value) for name, value in (self.environment or {}).items()}

    @property
    def taken(self) -> dict[str, float]:
        """What each of them takes."""
        return self.resources or {"CPU": 1}


class ServerProcess:
    """One server, and whether it is well.

    Args:
        command: Starts it, but for host and port.
        environment: Variables beside those of this process.
        folder: Where it runs.
        host: Address that it listens at.
        restarted: Whether it takes the place of one that has ended; nobody waits for it then.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str], folder: str, host: str, restarted: bool = False
    ) -> None:
        self.host, self.port = host, _free_port(host)
        self.awaited = not restarted
        self.reason = ""
        self._ended = threading.Event()
        self._hold, ended = _kept(
            folder, [*command, "--host", host, "--port", str(self.port)], {**os.environ, **environment}
        )
        threading.Thread(target=self._watch, args=(ended,), daemon=True).start()

    def address(self) -> str:
        """Return its address; it may not be well yet."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def ready(self, seconds: float) -> str:
        """Wait until it answers; return nothing, or in a few words why it does not."""
        end = time.monotonic() + seconds
        while not self._is_well():
            if self._ended.wait(0.5) or time.monotonic() > end:
                return self.reason or f"it does not answer in {seconds:g} s"
        self.awaited = False
        return self.reason

    def stop(self) -> None:
        """End it, and wait until nothing of it is left."""
        self.awaited = True
        os.close(self._hold)
        self._ended.wait(keeper.GRACE + 5)

    def _is_well(self) -> bool:
        connection = HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def _watch(self, ended: int) -> None:
        with os.fdopen(ended) as pipe:
            self.reason = pipe.read() or "it was lost"
        self._ended.set()
        if not self.awaited:
            print(f"lit-debias: a server is lost: {self.reason}", file=sys.stderr, flush=True)
            self._leave()

    def _leave(self) -> None:
        os._exit(1)  # Ray starts an actor again whose process fails, and no other


class ServerActor(ServerProcess):
    """A server as an actor of Ray.

    Args:
        command: As of :class:`ServerProcess`.
        environment: As there.
        folder: As there.
        local: Whether all of Ray is this machine: nobody else needs to reach the server then.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: str, local: bool) -> None:
        import ray

        host = HERE if local else ray.util.get_node_ip_address()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray's, of what it calls itself there
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(command, environment, folder, host, restarted)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def _kept(folder: str, command: list[str], environment: Mapping[str, str]) -> tuple[int, int]:
    """Run a command as long as this process lives; return what to close to end it, and where to read that it ended."""
    held, hold = os.pipe()
    ended, end = os.pipe()
    keeping = [sys.executable, keeper.__file__, str(held), str(end), folder, *command]
    subprocess.run(keeping, env=dict(environment), pass_fds=(held, end), check=True)
    os.close(held)
    os.close(end)
    return hold, ended


@contextmanager
def serving(servers: Servers | None, folder: str, local: bool) -> Iterator[list[str]]:
    """Run servers on a cluster within the context; yields the names of their actors once all are well.

    Args:
        servers: Which ones; None is none.
        folder: Where they run, on each machine.
        local: Whether the cluster is this machine alone.

    Raises:
        UserError: one does not start, or not in time.
    """
    if servers is None:
        yield []
        return
    mark = uuid4().hex[:6]
    names = [f"server-{number}-{mark}" for number in range(servers.number)]
    actors = {name: _actor(servers, name, folder, local) for name in names}
    try:
        _wait(actors, servers)
        yield [*actors]
    finally:
        _stop([*actors.values()])


def _actor(servers: Servers, name: str, folder: str, local: bool) -> Any:
    import ray

    others = {what: much for what, much in servers.taken.items() if what not in ("CPU", "GPU")}
    made = ray.remote(ServerActor).options(
        name=name,
        num_cpus=servers.taken.get("CPU", 0),
        num_gpus=servers.taken.get("GPU", 0),
        resources=others,
        max_restarts=servers.restarts,
        max_concurrency=8,  # addresses are asked while somebody waits
    )
    return made.remote(servers.words(), servers.variables(), folder, local)


def _wait(actors: Mapping[str, Any], servers: Servers) -> None:
    import ray

    names = {actor.ready.remote(servers.timeout): name for name, actor in actors.items()}
    waiting, end = [*names], time.monotonic() + servers.timeout
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(end - time.monotonic(), 0))
        if not done:
            raise UserError(
                f"servers: {len(waiting)} of {servers.number} do not answer in {servers.timeout} s; each takes "
                f"{servers.taken}: does the cluster have it? Else write a longer timeout"
            )
        for ref in done:
            _check_started(names[ref], ref)


def _check_started(name: str, ref: Any) -> None:
    import ray

    try:
        wrong = ray.get(ref)
    except ray.exceptions.RayError as error:
        wrong = " ".join(str(error).split())[:200]
    if wrong:
        raise UserError(f"servers: {name} does not start: {wrong}; what it wrote stands above, and in Ray's logs")


def _stop(actors: list[Any]) -> None:
    import ray

    ray.wait([actor.stop.remote() for actor in actors], num_returns=len(actors), timeout=keeper.GRACE + 10)
    for actor in actors:
        ray.kill(actor)
