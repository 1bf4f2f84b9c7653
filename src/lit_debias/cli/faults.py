"""Says in one line where a class that others wrote fails while it is built."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TypeVar

from lit_debias.errors import UserError, cause_of

Built = TypeVar("Built")
OURS = ("lit_debias", "lightning", "jsonargparse", "torch", "transformers", "peft")
"""Packages whose classes have words of their own for what they refuse."""


def build(class_type: type[Built], *args: object, **kwargs: object) -> Built:
    """Return an instance, as the parser builds one for a ``class_path``.

    Raises:
        UserError: a class of others raised something: which class, what, and in which line of its file.
    """
    try:
        return class_type(*args, **kwargs)
    except Exception as error:
        package = class_type.__module__.partition(".")[0]
        if isinstance(error, UserError) or package in (*OURS, *sys.stdlib_module_names):
            raise
        raise UserError(f"{class_type.__name__} cannot be built: {cause_of(error)}{_place(error)}") from error


def _place(error: Exception) -> str:
    """Return file and line of the last call within the file that was called first; empty where nothing was called."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first one is the call above
    within = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({Path(within[-1].filename).name}, line {within[-1].lineno})" if within else ""
