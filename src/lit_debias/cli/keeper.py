"""Runs a command until it ends, or until the process that wants it is gone, and leaves nothing of it behind.

``python keeper.py HOLD ENDED FOLDER COMMAND ...``: the wanting process holds the other end of the pipe HOLD, and reads
from ENDED how the command has ended. Ray kills an actor's own children with it, so this process makes itself nobody's
child: it lives on to end the command, whose further processes would keep a GPU. It imports nothing of the package.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

GRACE = 15.0
"""Seconds that a command has to end by itself."""


def keep(hold: int, folder: str, command: list[str]) -> str:
    """Run a command in a process group of its own; return how it ended.

    Args:
        hold: File descriptor that ends when nobody wants the command any more.
        folder: Where it runs.
        command: With its arguments.
    """
    try:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        return f"it cannot be started: {error}"
    while process.poll() is None:
        if select.select([hold], [], [], 0.2)[0]:
            return _end(process)
    _kill_group(process)
    return f"it ended with exit code {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> str:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    _kill_group(process)
    return "it was ended"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    """Become nobody's child, and keep a command."""
    hold, ended, folder, *command = sys.argv[1:]
    if os.fork():
        os._exit(0)
    os.setsid()
    how = keep(int(hold), folder, command)
    with suppress(BrokenPipeError):  # nobody wants to know
        os.write(int(ended), how.encode())


if __name__ == "__main__":
    main()
