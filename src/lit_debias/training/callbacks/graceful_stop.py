"""Ends a run in order when it is told to: by SIGTERM, as SLURM sends it, or by Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_debias.training.callbacks.alarms import say
from lit_debias.training.checkpoints import checkpoints_of

STOP = (signal.SIGTERM, signal.SIGINT)


class GracefulStop(Callback):
    """Stop between two steps where SIGTERM or Ctrl-C asks for it, with a checkpoint that resumes bitwise.

    A handler of a signal runs in the middle of anything, an optimiser step too, so these only take a note. Once the
    step is done, all ranks agree whether one of them has been told to stop; they save ``interrupted.ckpt`` beside the
    other checkpoints, and the first one says how to resume. Its exit code is that of the shell, 128 + the number of the
    signal: 143 for SIGTERM, 130 for Ctrl-C. The others end with 0: Lightning's launcher kills all where one fails.

    After the last step a run ends as it would have. A second Ctrl-C ends it at once and saves nothing. What Lightning
    does on SLURM's requeue signal, to save and requeue, waits for the end of the step as well.

    ``lit-debias fit`` adds it to the trainer's callbacks by itself.
    """

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.deferred: dict[int, Callable[[int, FrameType | None], Any]] = {}
        """Signals that Lightning handles -> its handler."""
        self.started = False
        self.loud = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take notes from now on; when the fit is over, Lightning puts back the handlers from before it."""
        self.received, self.started, self.loud = set(), True, trainer.is_global_zero
        if threading.current_thread() is not threading.main_thread():
            return  # nobody else may handle signals
        handlers: dict[int, Any] = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.deferred = {
            number: handler
            for number, handler in handlers.items()
            if number not in STOP and type(handler).__module__.startswith("lightning.")
        }
        for number in (*STOP, *self.deferred):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received.add(number)
        if number in STOP and self.loud:  # os.write, because a handler may interrupt a print
            again = "; Ctrl-C again stops at once and saves nothing" if number == signal.SIGINT else ""
            name = signal.Signals(number).name
            os.write(2, f"\nlit-debias: {name}: the run stops after this step, with a checkpoint{again}\n".encode())

    # ---------------------------------------------------------------- where the state is whole

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act on what was noted during the step."""
        self._act(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Act on what was noted; ranks may have unequal shares of the validation data, and wait for its end."""
        if trainer.world_size == 1:
            self._act(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on what was noted during validation."""
        self._act(trainer)

    def _act(self, trainer: Trainer) -> None:
        if not self.started or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for number, handler in sorted(self.deferred.items()):
            if self._anybody_has(number, trainer):
                handler(number, None)
        for number in STOP:
            if self._anybody_has(number, trainer):
                raise SIGTERMException(128 + number if trainer.is_global_zero else 0)

    def _anybody_has(self, number: int, trainer: Trainer) -> bool:
        told: bool = trainer.strategy.reduce_boolean_decision(number in self.received, all=False)
        self.received.discard(number)
        return told

    # ---------------------------------------------------------------- the end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where the state is whole, and say how to go on."""
        if not self.started or trainer.state.fn != "fit":
            return
        at = f"lit-debias: the run stopped at optimiser step {trainer.global_step}"
        if isinstance(exception, SIGTERMException):
            path = self._path(trainer)
            trainer.save_checkpoint(path, weights_only=False)
            say(trainer, f"{at}; resume with --ckpt_path {path}")
        elif checkpoints_of(trainer) and "--ckpt_path" not in str(exception):
            say(trainer, f"{at}; --ckpt_path last resumes from its newest checkpoint")

    def _path(self, trainer: Trainer) -> Path:
        folders = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        return Path(folders[0] if folders else Path(trainer.default_root_dir) / "checkpoints") / "interrupted.ckpt"
