"""Reads the benchmarks' files, plain or gzipped, or their copies on the hub."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any, TextIO

from lit_debias.errors import UserError

Rows = list[dict[str, Any]]
HUB = "hub"
"""Written in place of a folder: the copies on the Hugging Face hub."""


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


def read_csv(path: Path, delimiter: str = ",") -> Rows:
    """Return the rows of a table with a header."""
    with _open(path) as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    with _open(path) as file:
        return json.load(file)


def read_jsonl(path: Path) -> Rows:
    """Return the objects of a file with one JSON object a line."""
    with _open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def from_hub(dataset: str, split: str, config: str | None = None) -> Rows:
    """Return the rows of a data set on the hub.

    Raises:
        UserError: it cannot be had.
    """
    import datasets

    try:
        return list(datasets.load_dataset(dataset, config, split=split))
    except Exception as error:  # offline, moved, gated: the library has a class for each
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"benchmarks: '{dataset}' cannot be had from the hub ({reason}); write a local folder instead of '{HUB}'"
        ) from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
