"""Arms of a comparison in processes of their own, and how a process ends with all that it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import psutil  # type: ignore[import-untyped]

from lit_debias.errors import UserError

ROOT = Path(__file__).parents[1]
REASON = re.compile(r"(?:\[rank\d+\]: *|\(\w+ pid=\d+\) )?((?:\w+\.)*\w*(?:Error|Exception): ?\S.*)")
"""The last line of a traceback, behind what torch and vLLM put before it; libraries may say more at their end."""


class ArmError(Exception):
    """A process of an arm did not do its work; the message says why."""


@cache
def has(python: str, *modules: str) -> bool:
    """Return whether a Python is there and can import modules."""
    code = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(name) is None for name in {modules!r}))"
    try:
        return subprocess.run([python, "-c", code], check=False, capture_output=True, cwd=ROOT).returncode == 0
    except OSError:
        return False


def has_trl(python: str) -> bool:
    """Return whether a Python is there and can import TRL."""
    return has(python, "trl")


def check_trl(python: str) -> None:
    """Raise :class:`UserError` where TRL cannot be imported."""
    if not has_trl(python):
        raise UserError(
            f"--trl-python {python}: no Python there that can import trl; write one of an environment "
            "with trl==1.16.0, or set PYTHONPATH"
        )


def run_arm(
    command: Sequence[str], minutes: float, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> None:
    """Run an arm's process; what it started ends with it.

    Args:
        command: Its command line.
        minutes: Its limit.
        environment: Its variables; None gives it those of this process.
        log: Gets what it says, behind what is there already.

    Raises:
        ArmError: it took longer, or ended with another status than 0.
    """
    with said_to(log) as said, started(command, said, environment) as process:
        before = said.tell()
        try:
            status = process.wait(60 * minutes)
        except subprocess.TimeoutExpired as error:
            raise ArmError(f"not done after {minutes:g} minutes") from error
        if status != 0:
            raise ArmError(f"exit status {status}: {reason_in(since(said, before))}")


@contextmanager
def started(
    command: Sequence[str], said: IO[Any], environment: Mapping[str, str] | None = None, patience: float = 0.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Within the context a process runs in a session of its own, without an input; then it and its children end.

    Args:
        command: Its command line.
        said: The file that gets what it says.
        environment: Its variables; None gives it those of this process.
        patience: Seconds that it may take to end by itself.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process, patience)


def end(process: subprocess.Popen[bytes], patience: float = 0.0) -> None:
    """End a process, all that it started, and all of its process group.

    Args:
        process: The leader of a session.
        patience: Seconds that it may take to end by itself.
    """
    below: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
    if patience and process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in below:  # sessions of their own among them
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def end_on_terminate() -> None:
    """Let SIGTERM end this program as an exception does, so that what it has started ends too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def reason_in(text: str) -> str:
    """Return the line that says why a process failed: the last that names an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return next((found[1] for found in map(REASON.match, reversed(lines)) if found), lines[-1])


@contextmanager
def said_to(log: Path | None) -> Iterator[IO[bytes]]:
    """Open a log at its end, or a file that goes away."""
    with tempfile.TemporaryFile() if log is None else log.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        yield file


def since(said: IO[bytes], place: int) -> str:
    """Return what a log has got from a place on."""
    said.seek(place)
    return said.read().decode(errors="replace")
