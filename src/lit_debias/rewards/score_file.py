"""Scores on disk, so that another run does not compute them again."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from lit_debias.errors import UserError
from lit_debias.support.hashing import sha256

Key = tuple[str | int, ...]
"""What was scored: texts, and what else tells two scores apart."""
KeptScores = tuple[Any, ...]
"""Its D scores; or what else was paid for, as JSON, such as a judge's explanation."""

K = TypeVar("K", bound=Key)
T = TypeVar("T")
NAME = "scores.sqlite"
BUSY = 60.0
"""Seconds that one process waits for another."""
_log = logging.getLogger(__name__)


class ScoreFile:
    """``scores.sqlite`` in a folder; several processes, models and devices can share it. It is never emptied.

    It can cost time, never a run: a file that is no database any more is replaced, one that cannot be read or written
    is left alone, and a log line says so.

    Args:
        folder: Made where it is missing.
        fingerprint: What the scores depend on beside their keys, such as a hash of the model's files.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache_dir '{folder}': {error.strerror}; write a folder that can be made") from error
        self.path, self.fingerprint = folder / NAME, fingerprint

    def get(self, keys: Iterable[K]) -> dict[K, KeptScores]:
        """Return the scores of the keys that are there."""
        names = {self._name(key): key for key in keys}

        def read(connection: sqlite3.Connection) -> dict[K, KeptScores]:
            query = "SELECT scores FROM scores WHERE name = ?"
            found = {key: connection.execute(query, (name,)).fetchone() for name, key in names.items()}
            return {key: tuple(json.loads(row[0])) for key, row in found.items() if row}

        return (self._run(read) or {}) if names else {}

    def put(self, rows: Mapping[K, KeptScores]) -> None:
        """Keep scores, all or none of them."""
        content = [(self._name(key), json.dumps(row)) for key, row in rows.items()]
        if content:
            self._run(lambda connection: connection.executemany("REPLACE INTO scores VALUES (?, ?)", content))

    def _name(self, key: Key) -> bytes:
        return bytes.fromhex(sha256([json.dumps([self.fingerprint, *key])]))

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Return what ``work`` does, or None where the file does not let it."""
        try:
            try:
                return self._attempt(work)
            except (sqlite3.DatabaseError, ValueError) as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, read-only, full: nothing is wrong with it
                    raise
                _log.warning("'%s' was damaged (%s) and is replaced by an empty one", self.path, error)
                for path in (self.path, self.path.with_name(f"{NAME}-journal")):
                    path.unlink(missing_ok=True)
                return self._attempt(work)
        except (sqlite3.Error, OSError) as error:
            _log.warning("scores are not kept in '%s': %s", self.path, error)
            return None

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        # a connection for each call: no state to share with threads and forks, and a replaced file is seen
        with closing(sqlite3.connect(self.path, timeout=BUSY)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS scores (name BLOB PRIMARY KEY, scores TEXT NOT NULL)")
            return work(connection)
