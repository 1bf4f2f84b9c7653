"""Arms of a comparison in processes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_debias.errors import UserError

ROOT = Path(__file__).parents[1]


class ArmError(Exception):
    """A process of an arm did not do its work; the message says why."""


def has_trl(python: str) -> bool:
    """Return whether a Python is there and can import TRL."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('trl') is None)"
    try:
        return subprocess.run([python, "-c", code], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def check_trl(python: str) -> None:
    """Raise :class:`UserError` where TRL cannot be imported."""
    if not has_trl(python):
        raise UserError(
            f"--trl-python {python}: no Python there that can import trl; write one of an environment "
            "with trl==1.16.0, or set PYTHONPATH"
        )


def run_arm(command: Sequence[str], minutes: float, environment: Mapping[str, str] | None = None) -> None:
    """Run an arm's process.

    Raises:
        ArmError: it took longer, or ended with another status than 0.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60 * minutes, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise ArmError(f"not done after {minutes:g} minutes") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ArmError(f"exit status {done.returncode}: {lines[-1]}")
