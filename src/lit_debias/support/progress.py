"""Progress of long work: a bar on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 20.0
"""Where no terminal shows a bar, a line follows the one before after so long."""

Advance = Callable[[int], None]
"""Is told how much more is done."""


def ignore(done: int) -> None:
    """Take no notice of how much is done."""


class Lines:
    """Lets a line through once the one before is old enough; none on a terminal, whose bar moves."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def due(self, console: Console) -> bool:
        """Return whether a line is to be printed now; the next one then is not until later."""
        now = time.monotonic()
        if console.is_terminal or now - self._said_at < QUIET_SECONDS:
            return False
        self._said_at = now
        return True


@contextmanager
def bars(console: Console) -> Iterator[Callable[[str, int], Advance]]:
    """Yield what starts a bar of a name and a total, and returns what moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def start(name: str, total: int) -> Advance:
            task, lines = progress.add_task(name, total=total), Lines()

            def advance(done: int) -> None:
                progress.advance(task, done)
                if lines.due(console):
                    console.print(f"{name}: {progress.tasks[task].completed:.0f}/{total}", markup=False)

            return advance

        yield start
