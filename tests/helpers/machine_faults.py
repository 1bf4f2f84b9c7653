"""Callbacks for runs that something happens to; a configuration names them by their class path."""

import os
import signal

from lightning import Callback


class PowerCut(Callback):
    """Kills process and launcher of one rank before a step, as a machine that loses its power does."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            for process in (os.getppid(), os.getpid()):
                os.kill(process, signal.SIGKILL)


class Preempted(Callback):
    """Gets SLURM's signal in the middle of the second step, and is gone before the fourth one."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 1:
            signal.raise_signal(signal.SIGUSR1)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            raise KeyboardInterrupt
