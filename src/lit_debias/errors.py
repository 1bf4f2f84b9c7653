"""The one exception that a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class UserError(Exception):
    """A mistake that the user can mend: shown as one line, without a traceback, with exit code 2.

    The message says what was wrong, where, and what to write instead.
    """

    code = 2


class LostProcessError(UserError):
    """Another process of the run is gone or late: nothing is to be mended here, and the run can be started again."""

    code = 75  # EX_TEMPFAIL of sysexits.h


class ResumableError(UserError):
    """Something outside of the run has failed, and the run could go on: a fit keeps a checkpoint to resume from."""

    checkpoint: ClassVar[str] = "stopped.ckpt"
    """The file's name."""


def cause_of(error: BaseException) -> str:
    """Return type and message of an exception in one line, whatever code of others has put into it."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # from an exception of the plugin's own making
        message = "its message cannot be read"
    return f"{type(error).__name__}: {message}".removesuffix(": ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, or the list of known words."""
    known = sorted(known)
    if close := closest(word, known):
        return f"; did you mean '{close}'?"
    return f"; known: {', '.join(known)}" if known else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like another one; None where none is."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1)), None)
