"""Reads tables from what a user has: a folder, a file, or a data set on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset

from lit_debias.errors import UserError

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def load_split(path: str, table: Literal["prompts", "responses"], split: str) -> Dataset | None:
    """Return the rows of one split.

    Args:
        path: A folder with ``SPLIT.parquet`` (or .jsonl, .json, .csv), or with a folder ``table`` that has them, as
            ``lit-debias synthesize`` writes; one such file; or a hub id, ``OWNER/NAME`` or ``OWNER/NAME:CONFIG``.
        table: Which of the two tables.
        split: Name of the split. A file without a column ``split`` is all ``train``.

    Returns:
        The rows; None where a single file has none of this split.

    Raises:
        UserError: there is no such path or split, or a file is malformed or has no rows.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return read_file(_file_of_split(local / table if (local / table).is_dir() else local, split))
    if local.is_file():
        return _rows_of_split(read_file(local), split)
    if _HUB_ID.fullmatch(path) and local.suffix not in SUFFIXES and not path.startswith("."):
        return _from_hub(path, table, split)
    raise UserError(
        f"data '{path}': no such file or folder; write one that exists, or make one with "
        "'lit-debias synthesize --out DIR'"
    )


def _file_of_split(folder: Path, split: str) -> Path:
    files = {file.stem: file for file in sorted(folder.iterdir(), reverse=True) if file.suffix in SUFFIXES}
    if split not in files:
        have = ", ".join(sorted(files)) or f"no file {split}{SUFFIXES[0]} or {split}{SUFFIXES[1]}"
        raise UserError(f"data '{folder}' has no split '{split}'; it has: {have}")
    return files[split]


def _rows_of_split(rows: Dataset, split: str) -> Dataset | None:
    if "split" not in rows.column_names:
        return rows if split == "train" else None
    chosen = [row for row, name in enumerate(rows["split"]) if name == split]
    return rows.select(chosen) if chosen else None


def _from_hub(path: str, table: str, split: str) -> Dataset:
    from datasets import get_dataset_config_names, load_dataset

    name, _, config = path.partition(":")
    try:
        if not config:
            config = table if table in get_dataset_config_names(name) else ""
        return load_dataset(name, config or None, split=split)
    except Exception as error:  # the hub client raises many kinds; all mean that the data cannot be had
        cause = " ".join(str(error).split())
        raise UserError(f"data '{path}' is no file or folder here, and the hub says: {cause:.200}") from error


def read_file(path: Path) -> Dataset:
    """Read a .parquet, .jsonl, .json or .csv file.

    Raises:
        UserError: it has another suffix, is malformed (with the row), or has no rows.
    """
    readers = {".parquet": pyarrow.parquet.read_table, ".csv": pyarrow.csv.read_csv, ".jsonl": _json, ".json": _json}
    if path.suffix not in readers:
        raise UserError(f"data '{path}': cannot read '{path.suffix}'; write one of {', '.join(SUFFIXES)}")
    try:
        content = readers[path.suffix](path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"data '{path}' is malformed: {' '.join(str(error).split())}") from error
    if not content.num_rows:
        raise UserError(f"data '{path}' has no rows")
    return Dataset(content)


def _json(path: Path) -> Any:
    """Read JSON lines, or one JSON array of objects."""
    text = path.read_text(encoding="utf-8-sig")
    rows = _parse(text, f"data '{path}'") if text.lstrip().startswith("[") else _lines(path, text)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(
                f"data '{path}', row {number}: expected an object like {{\"prompt\": ...}}, not {row!r:.40}"
            )
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _lines(path: Path, text: str) -> list[Any]:
    return [
        _parse(line, f"data '{path}', row {number}")
        for number, line in enumerate(text.split("\n"), 1)  # splitlines() would cut at U+2028 inside a string
        if line.strip()
    ]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is no valid JSON: {error}") from error
