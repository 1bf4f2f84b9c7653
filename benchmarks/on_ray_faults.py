"""What happens to a worker of `python -m benchmarks.on_ray`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Killed(Callback):
    """Kill the process of one rank before a step, unless a file says that it has been done."""

    def __init__(self, rank: int, step: int, file: str) -> None:
        self.rank, self.step, self.file = rank, step, Path(file)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look whether it is time."""
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step) and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
