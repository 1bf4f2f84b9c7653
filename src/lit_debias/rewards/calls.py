"""Calls of a reward that end in time: in a thread of this process, or in a process of its own."""

from __future__ import annotations

import os
import pickle
import signal
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from lit_debias.errors import UserError, cause_of
from lit_debias.rewards.asking import Answer, RewardError, answer_of, prepare
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.support.devices import use_in_this_thread

METHOD = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
"""How processes start: not forked from this one, whose CUDA and locks a fork cannot use."""

START_TIMEOUT = 300.0
"""Seconds that a process has to start, import and set up its reward."""


class RewardTimeoutError(RewardError):
    """A call has not returned in time."""


class Call:
    """A function at work in a daemon thread, which dies with the process and keeps nobody from ending."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self.thread = Thread(target=self._work, args=(function,), daemon=True)
        self.thread.start()

    def _work(self, function: Callable[[], Any]) -> None:
        try:
            self.future.set_result(function())
        except BaseException as error:  # SystemExit too must not get lost in the thread
            self.future.set_exception(error)

    def result(self, name: str, seconds: float) -> Any:
        """Return what the function returns, or raise what it raises.

        Raises:
            RewardTimeoutError: it is not done after ``seconds``; the thread goes on.
            RewardError: it tried to end the process.
        """
        self.thread.join(seconds)
        if not self.future.done():
            raise RewardTimeoutError(f"reward '{name}' has not answered within {seconds:g} s")
        error = self.future.exception()
        if error is None or isinstance(error, Exception):
            return self.future.result()
        raise RewardError(f"reward '{name}' raised {type(error).__name__}: {error}") from error


class InProcess:
    """Calls a reward in a thread. One that hangs is left alone, and the reward is not called before it returns."""

    def __init__(self, name: str, reward: Reward) -> None:
        self.name, self.reward = name, reward
        self.device = torch.device("cpu")
        self.call: Call | None = None

    def setup(self, device: torch.device) -> None:
        """Let the reward load what it needs."""
        self.device = device
        prepare(self.name, self.reward, device)

    def score(self, batch: RewardBatch, seconds: float) -> Answer:
        """Return the reward's answer.

        Raises:
            RewardTimeoutError: it takes too long, or an earlier call still does.
            RewardError: it failed, or its answer has the wrong type or length.
        """
        if self.call is not None and not self.call.future.done():
            raise RewardTimeoutError(f"reward '{self.name}' has still not answered an earlier call")
        self.call = Call(lambda: self._score(batch))
        answer: Answer = self.call.result(self.name, seconds)
        return answer

    def _score(self, batch: RewardBatch) -> Answer:
        use_in_this_thread(self.device)
        return answer_of(self.name, self.reward, batch)


class Isolated:
    """Calls a reward in a process of its own, which is started again after it hung, ended or grew too large."""

    def __init__(self, name: str, reward: Reward, max_memory_gib: float | None = None) -> None:
        try:
            self.pickled = pickle.dumps(reward)
        except Exception as error:
            raise UserError(
                f"reward '{name}' cannot be isolated, as it cannot be pickled ({error}); write isolate: false, or "
                "build in setup() what cannot be pickled"
            ) from error
        self.name, self.max_memory_gib = name, max_memory_gib
        self.device = torch.device("cpu")
        self.worker: Worker | None = None

    def setup(self, device: torch.device) -> None:
        """Start the process and let the reward load there what it needs.

        Raises:
            RewardError: it failed.
            UserError: it needs more than ``max_memory_gib`` from the start.
        """
        self.device = device
        _, used = self._start()
        if self._too_large(used):
            self._stop()
            raise UserError(
                f"reward '{self.name}' takes {used:.2f} GiB after setup; write a larger max_memory_gib than "
                f"{self.max_memory_gib:g}"
            )

    def score(self, batch: RewardBatch, seconds: float) -> Answer:
        """Return the reward's answer.

        Raises:
            RewardTimeoutError: it takes too long.
            RewardError: it failed, ended its process, or its answer has the wrong type or length.
        """
        if self.worker is None:
            self._start()
        answer: Answer
        answer, used = self._exchange(batch, seconds)
        if self._too_large(used):
            self._stop()
        return answer

    def _too_large(self, used: float) -> bool:
        return self.max_memory_gib is not None and used > self.max_memory_gib

    def _start(self) -> tuple[Any, float]:
        self.worker = Worker(self.name, self.pickled, self.device)
        return self._exchange(None, START_TIMEOUT)

    def _exchange(self, message: RewardBatch | None, seconds: float) -> tuple[Any, float]:
        """Return the worker's reply and its memory in GiB; a worker that gave none is ended."""
        assert self.worker is not None
        try:
            reply, used = Call(self.worker.asking(message)).result(self.name, seconds)
        except RewardTimeoutError:
            self._stop()
            raise
        except Exception as error:  # above all EOFError
            code = self._stop(patience=10.0)
            raise RewardError(
                f"reward '{self.name}' lost its process, exit code {code} ({type(error).__name__})"
            ) from error
        if isinstance(reply, str):
            if message is None:
                self._stop(patience=10.0)
            raise RewardError(reply)
        return reply, used

    def _stop(self, patience: float = 0.0) -> int | None:
        assert self.worker is not None
        self.worker.process.join(patience)
        self.worker.kill()
        code = self.worker.process.exitcode
        self.worker = None
        return code


class Worker:
    """A process with a reward, and the pipe to it; killed when nobody holds it any more, and at exit."""

    def __init__(self, name: str, pickled: bytes, device: torch.device) -> None:
        context: Any = get_context(METHOD)  # Process is not declared for all contexts
        if METHOD == "forkserver":
            context.set_forkserver_preload([__name__])  # torch and this are imported once, not at each start
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(theirs, name, pickled, device), daemon=True)
        self.process.start()
        theirs.close()  # so that the worker's end is the end of the pipe
        self.kill = weakref.finalize(self, _kill, self.process)

    def asking(self, message: RewardBatch | None) -> Callable[[], Any]:
        """Return a function that sends the message, if there is one, and returns the reply; holds the pipe alone."""
        connection = self.connection

        def ask_worker() -> Any:
            if message is not None:
                connection.send(message)
            return connection.recv()

        return ask_worker


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def serve(connection: Connection, name: str, pickled: bytes, device: torch.device) -> None:
    """Answer batches until the pipe closes: ``(answer or message of the failure, resident GiB)`` each."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the trainer, which finishes its step and needs the scores
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        reward = pickle.loads(pickled)
        prepare(name, reward, device)
    except Exception as error:
        said = error if isinstance(error, RewardError) else f"reward '{name}' failed in setup: {cause_of(error)}"
        connection.send((str(said), 0.0))
        return
    with suppress(EOFError, BrokenPipeError):
        _send(connection, None)
        while True:
            batch = connection.recv()
            try:
                _send(connection, answer_of(name, reward, batch))
            except RewardError as error:
                _send(connection, str(error))


def _send(connection: Connection, reply: Answer | str | None) -> None:
    used = 0.0
    with suppress(OSError):
        used = resident_gib()
    connection.send((reply, used))


def resident_gib() -> float:
    """Return this process's resident memory in GiB.

    Raises:
        OSError: the system has no ``/proc``.
    """
    # not the peak of getrusage, which a process inherits from the one that started it
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
