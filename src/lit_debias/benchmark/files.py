"""Reads the benchmarks' files, plain or gzipped, or their copies on the hub."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_debias.errors import UserError
from lit_debias.support import files
from lit_debias.support.files import parse_json, read_text
from lit_debias.support.text import as_figure

Rows = list[dict[str, Any]]
HUB = "hub"
"""Written in place of a folder: the copies on the Hugging Face hub."""
PUBLISHED = "take a published file as it was published"
WHERE = "__where__"
"""Key of every row: its file and number, as errors name them."""


def locate(folder: str, path: str) -> Path:
    """Return FOLDER/PATH, or FOLDER/PATH.gz where only that is there.

    Raises:
        UserError: neither is there.
    """
    plain = Path(folder).expanduser() / path
    zipped = plain.with_name(f"{plain.name}.gz")
    for candidate in (plain, zipped):
        if candidate.is_file():
            return candidate
    raise UserError(f"benchmarks: {plain} is not there, nor {zipped.name}; write the folder that holds {path}")


def find(folder: str, pattern: str) -> list[Path]:
    """Return the files FOLDER/PATTERN, sorted; of a file that is there plain and gzipped, the plain one.

    Raises:
        UserError: there is none.
    """
    root = Path(folder).expanduser()
    paths = {*root.glob(pattern), *root.glob(f"{pattern}.gz")}
    zipped_first = sorted(paths, key=lambda path: (path.suffix != ".gz", path.name))
    found = {path.name.removesuffix(".gz"): path for path in zipped_first}
    if not found:
        raise UserError(f"benchmarks: there is no {pattern} (or {pattern}.gz) in '{folder}'; write a folder with some")
    return [found[name] for name in sorted(found)]


def read_csv(path: Path, needed: Sequence[str], delimiter: str = ",") -> Rows:
    """Return the rows of a table with a header.

    Raises:
        UserError: it cannot be read, or a row lacks one of the ``needed`` columns.
    """
    lines = io.StringIO(read_text(path, "benchmarks:"), newline="")
    try:
        return complete(csv.DictReader(lines, delimiter=delimiter), needed, path)
    except csv.Error as error:
        raise UserError(f"benchmarks: '{path}' is no table ({error}); {PUBLISHED}") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    return parse_json(read_text(path, "benchmarks:"), f"benchmarks: '{path}'")


def read_jsonl(path: Path, needed: Sequence[str]) -> Rows:
    """Return the objects of a file with one JSON object a line.

    Raises:
        UserError: it cannot be read, a line is none, or lacks one of the ``needed`` keys.
    """
    return complete((record for _, record in files.read_jsonl(path, "benchmarks:")), needed, path)


def complete(rows: Iterable[Any], needed: Sequence[str], path: Path) -> Rows:
    """Return rows with :data:`WHERE`, numbered from 1.

    Raises:
        UserError: one is no mapping, or lacks one of the ``needed`` columns.
    """
    found = []
    for number, row in enumerate(rows, 1):
        for name in needed:
            if not isinstance(row, dict) or row.get(name) is None:
                keys = ", ".join(row) if isinstance(row, dict) else "no keys"
                where = f"benchmarks: '{path}', row {number}"
                raise UserError(f"{where}: there is no '{name}', it has {keys:.80}; write it, or {PUBLISHED}")
        found.append({**row, WHERE: f"benchmarks: '{path}', row {number}"})
    return found


def wrong(row: Mapping[str, Any], name: str, advice: str) -> UserError:
    """Return the error about a value of a row."""
    return UserError(f"{row.get(WHERE, 'benchmarks')}: '{name}' is {row.get(name)!r:.60}; {advice}, or {PUBLISHED}")


def text(row: Mapping[str, Any], name: str) -> str:
    """Return a text of a row.

    Raises:
        UserError: it is empty, or something else.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise wrong(row, name, "write a text")
    return value


def one_of(row: Mapping[str, Any], name: str, known: Collection[str]) -> str:
    """Return a text of a row that is one of several.

    Raises:
        UserError: it is something else.
    """
    value = row.get(name)
    if not isinstance(value, str) or value not in known:
        raise wrong(row, name, f"write {' or '.join(known)}")
    return value


def whole(row: Mapping[str, Any], name: str, most: int | None = None) -> int:
    """Return a whole number of a row, from 0, which may be there as a text or as 2.0.

    Raises:
        UserError: it is something else, or larger than ``most``.
    """
    value = row.get(name)
    try:
        number = None if isinstance(value, bool) or value is None else float(value)
    except (ValueError, TypeError):
        number = None
    if number is None or not number.is_integer() or number < 0 or (most is not None and number > most):
        raise wrong(row, name, f"write a whole number from 0{'' if most is None else f' to {most}'}")
    return int(number)


def number(row: Mapping[str, Any], name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number of a row, which may be there as a text.

    Raises:
        UserError: it is something else, or outside [``low``, ``high``].
    """
    found = as_figure(row.get(name))
    if found is None or not low <= found <= high:
        bounds = f" from {low:g} to {high:g}" if math.isfinite(high - low) else ""
        raise wrong(row, name, f"write a number{bounds}")
    return found


def from_hub(dataset: str, split: str, config: str | None = None) -> Rows:
    """Return the rows of a data set on the hub.

    Raises:
        UserError: it cannot be had.
    """
    import datasets

    try:
        rows = list(datasets.load_dataset(dataset, config, split=split))
    except Exception as error:  # offline, moved, gated: the library has a class for each
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"benchmarks: '{dataset}' cannot be had from the hub ({reason}); write a local folder instead of '{HUB}'"
        ) from error
    return [{**row, WHERE: f"benchmarks: '{dataset}', row {number}"} for number, row in enumerate(rows, 1)]
