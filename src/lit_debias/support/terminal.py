"""Keeps out of the terminal what libraries say there and no user can act on."""

from __future__ import annotations

import logging
import os
import warnings

ENVIRONMENT = {
    "TQDM_DELAY": "3",  # bars of libraries show where something takes seconds; most are over when they begin
    "TRANSFORMERS_VERBOSITY": "error",  # what would make a model wrong is checked, and said in one line
    "JSONARGPARSE_DEPRECATION_WARNINGS": "off",  # Lightning calls it by names that are to go
}
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
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a missing optional kernel
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").addFilter(_is_no_advice)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ADVICE)
