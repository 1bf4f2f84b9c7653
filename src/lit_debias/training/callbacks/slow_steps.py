"""Says once that steps have become much slower than the first ones, and what is likely to be why."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_debias.errors import UserError
from lit_debias.support import threads
from lit_debias.training.callbacks.alarms import say


class SlowSteps(Callback):
    """Say in one line, once a run, that its steps have become ``factor`` times as slow as its first ones.

    The line names what is likely to be the cause: other processes that take the cores, or longer texts and slower
    rewards. Medians are compared, so one slow step rings no bell, and steps of less than a second never do.

    ``lit-debias fit`` adds it to the trainer's callbacks by itself.

    Args:
        factor: How many times as slow.
        first: Steps of this process that are the measure.
        latest: Steps that are held against it.

    Raises:
        UserError: a number makes no sense.
    """

    def __init__(self, factor: float = 5.0, first: int = 5, latest: int = 3) -> None:
        if not factor > 1 or min(first, latest) < 1:
            given = f"factor={factor}, first={first}, latest={latest}"
            raise UserError(f"SlowSteps: {given}; write a factor above 1, and at least 1 step")
        self.factor, self.first, self.latest = factor, first, latest
        self.seconds: list[float] = []
        """Of the first steps, then of the latest ones."""
        self.said = False
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the latest steps with the first ones."""
        self.seconds.append(time.perf_counter() - self._started)
        del self.seconds[self.first : -self.latest]
        if self.said or len(self.seconds) < self.first + self.latest:
            return
        before, now = median(self.seconds[: self.first]), median(self.seconds[-self.latest :])
        if now >= max(1.0, self.factor * before):
            self.said = True
            took = f"steps take {now:.1f} s now, the first ones took {before:.1f} s"
            say(trainer, f"lit-debias: {took}; {likely_cause()}")


def likely_cause() -> str:
    """Return what may have made steps slow, and what to do."""
    crowd = threads.crowd()
    if crowd is None:
        return "no other process wants the cores, so look at completions/mean_length and at what the rewards wait for"
    advice = f"other processes want the cores ({crowd}): end them, or give each run fewer threads by {threads.COUNT}"
    return f"{advice}, and import lit_debias before torch" if threads.came_too_late() else advice
