"""Keeps out of the terminal what libraries say there and no user can act on."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {
    "TQDM_DELAY": "3",  # bars of libraries show where something takes seconds; most are over when they begin
    "TRANSFORMERS_VERBOSITY": "error",  # what would make a model wrong is checked, and said in one line
    "JSONARGPARSE_DEPRECATION_WARNINGS": "off",  # Lightning calls it by names that are to go
}
NO_BARS = dict.fromkeys(("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1")
"""Where no terminal could show how bars of libraries move."""
PATIENCE_SECONDS = 5.0
"""Where there is no terminal, so long nothing is said of imports."""
ADVICE = (
    "💡",  # advertisements
    "TPU available: False",
    "`Trainer.fit` stopped: `max_",  # the end that the run was given
    "Restoring states from the checkpoint",  # a second line says when it is done
)
"""Beginnings of lines in Lightning's log."""
WARNINGS = (
    "`isinstance.treespec, LeafSpec.` is deprecated",  # Lightning 2.6 with torch 2.13
    "The dirpath has changed from",  # of each run that goes on from another one's checkpoint
)
"""Beginnings of warnings."""


def quiet_libraries() -> None:
    """Silence advice and deprecations of libraries; a variable that the user has set stays.

    To be called before the libraries are imported, since some read the environment at that time.
    """
    bars = {} if sys.stderr.isatty() else NO_BARS
    for name, value in {**ENVIRONMENT, **bars}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a missing optional kernel
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").addFilter(_is_no_advice)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def importing(
    what: str, module: str = "lightning", patience: float = PATIENCE_SECONDS
) -> Iterator[threading.Thread | None]:
    """Within the context libraries are imported: say so on stderr, at once on a terminal, elsewhere if it takes long.

    Args:
        what: The command that waits for it.
        module: Where this one is imported already, nothing is said.
        patience: Seconds after which a line comes where there is no terminal.

    Yields:
        What is to say it later, where that is so.
    """
    if module in sys.modules:
        yield None
        return
    line = f"lit-debias {what}: loading PyTorch, Lightning and transformers"
    timer = threading.Timer(patience, print, [line], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
        yield None
        return
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ADVICE)
