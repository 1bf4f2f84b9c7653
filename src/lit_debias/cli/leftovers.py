"""Takes away what loggers have made of a run that ended before it began."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

EMPTY = ("config.yaml", "hparams.yaml", "events.out.tfevents.*")
"""Files that stand in a log folder before anything is logged."""


@contextmanager
def no_empty_logs(trainer: Trainer) -> Iterator[None]:
    """Remove the log folders that are made within the context where it ends by an error or Ctrl-C before a step.

    Folders from before, and those that hold anything of a run, stay.
    """
    loggers = [logger for logger in trainer.loggers if isinstance(logger, (CSVLogger, TensorBoardLogger))]
    folders = [Path(logger.log_dir) for logger in loggers] if trainer.is_global_zero else []
    new = [folder for folder in folders if not folder.exists()]
    above = [parent for folder in new for parent in folder.parents if not parent.exists()]
    try:
        yield
    except BaseException:
        if trainer.global_step == 0:
            for folder in new:
                _remove_empty(folder)
            for parent in above:
                with suppress(OSError):
                    parent.rmdir()
        raise


def _remove_empty(folder: Path) -> None:
    files = list(folder.iterdir()) if folder.is_dir() else []
    if all(any(fnmatch(file.name, name) for name in EMPTY) for file in files):
        shutil.rmtree(folder, ignore_errors=True)
