"""Reads tables from what a user has: a folder, a file, or a data set on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset

from lit_debias.errors import UserError
from lit_debias.files import as_record, jsonl_records, parse_json, read_text

ORIGIN = "__origin__"
"""Column of every table that is read here: file and row, as errors name them."""
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
        The rows, with a column :data:`ORIGIN` more; None where a single file has none of this split.

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
        rows = load_dataset(name, config or None, split=split)
    except Exception as error:  # the hub client raises many kinds; all mean that the data cannot be had
        cause = " ".join(str(error).split())
        raise UserError(f"data '{path}' is no file or folder here, and the hub says: {cause:.200}") from error
    return _numbered(rows, f"data '{path}', split '{split}'")


def read_file(path: Path) -> Dataset:
    """Read a .parquet, .jsonl, .json or .csv file.

    Returns:
        The rows, with a column :data:`ORIGIN` more. Rows of JSON lines are numbered by line, those of CSV from 2, after
        the header, all others from 1.

    Raises:
        UserError: it has another suffix, is malformed (with the row), or has no rows.
    """
    readers = {".parquet": _parquet, ".csv": _csv, ".jsonl": _json, ".json": _json}
    where = f"data '{path}'"
    if path.suffix not in readers:
        raise UserError(f"{where}: cannot read '{path.suffix}'; write one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{where}: no such file; write one that exists")
    try:
        content, numbers = readers[path.suffix](path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{where} is malformed: {' '.join(str(error).split())}") from error
    if not content.num_rows:
        raise UserError(f"{where} has no rows")
    names = content.column_names
    if len(set(names)) < len(names):
        raise UserError(f"{where} has two columns '{max(names, key=names.count)}'; give each a name of its own")
    return _numbered(Dataset(content), where, numbers)


def _numbered(rows: Dataset, where: str, numbers: Sequence[int] | None = None) -> Dataset:
    numbers = range(1, len(rows) + 1) if numbers is None else numbers
    if ORIGIN in rows.column_names:
        rows = rows.remove_columns(ORIGIN)
    return rows.add_column(ORIGIN, [f"{where}, row {number}" for number in numbers])


def _parquet(path: Path) -> tuple[pa.Table, None]:
    return pyarrow.parquet.read_table(path), None


def _csv(path: Path) -> tuple[pa.Table, Sequence[int]]:
    text = read_text(path, "data")
    if text.count('"') % 2:  # the reader would take the rest of the file for one value
        raise UserError(f"data '{path}': a quote is not closed; write two for one within a value")
    # one thread: only then does an error say the row
    read, parse = pyarrow.csv.ReadOptions(use_threads=False), pyarrow.csv.ParseOptions(newlines_in_values=True)
    content = pyarrow.csv.read_csv(pa.BufferReader(text.encode()), read, parse)
    return content, range(2, content.num_rows + 2)


def _json(path: Path) -> tuple[pa.Table, list[int]]:
    """Read JSON lines, or one JSON array of objects."""
    where, text = f"data '{path}'", read_text(path, "data")
    if text.lstrip().startswith("["):
        values = enumerate(parse_json(text, where), 1)
        records = [(number, as_record(value, f"{where}, row {number}")) for number, value in values]
    else:
        records = list(jsonl_records(text, where))
    names = dict.fromkeys(name for _, record in records for name in record)
    columns = {name: _column(name, [(number, record.get(name)) for number, record in records], where) for name in names}
    return pa.table(columns), [number for number, _ in records]


def _column(name: str, cells: Sequence[tuple[int, Any]], where: str) -> pa.Array:
    """Return a column of values of one kind.

    Raises:
        UserError: there is a value of another kind, or a number too large for a table.
    """
    known = [(number, _kind(value), value) for number, value in cells if value is not None]
    for number, kind, value in known:
        if kind != known[0][1]:
            raise UserError(
                f"{where}, row {number}: '{name}' is {value!r:.40}, {kind}, and in row {known[0][0]} it is "
                f"{known[0][1]}; write one kind of value in a column"
            )
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise UserError(f"{where}, row {number}: '{name}' is {value!r:.40}, too large a number; write it as a text")
    try:
        return pa.array([value for _, value in cells])
    except (pa.ArrowException, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: the values of '{name}' make no column ({reason:.100}); write texts") from error


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")
