"""Reads tables from what a user has: a folder, a file, or a data set on the Hugging Face hub."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset, concatenate_datasets

from lit_debias.data.columns import aligned, as_numbers, cells, known_types
from lit_debias.errors import UserError
from lit_debias.support.files import as_object, jsonl_objects, parse_json, read_text

ORIGIN = "__origin__"
"""Column of every table that is read here: file and row, as errors name them."""
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
Table = Literal["prompts", "responses", "preferences"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
_SAVED = "state.json"
"""In a folder of ``Dataset.save_to_disk``."""
_ABOUT_DATA = ("dataset_info", "dataset_infos", "dataset_dict", "state")
"""JSON files that hold no rows."""


def load_split(path: str, table: Table, split: str, texts: Collection[str] = ()) -> Dataset | None:
    """Return the rows of one split.

    Args:
        path: A folder with ``SPLIT.parquet`` (or .jsonl, .json, .csv), or with its parts
            ``SPLIT-00000-of-00002.parquet``, or with a folder ``table`` or ``data`` that has them, as
            ``lit-debias synthesize`` and the hub do; a folder of ``save_to_disk``; one such file; or a hub id,
            ``OWNER/NAME`` or ``OWNER/NAME:CONFIG``.
        table: Which of the two tables.
        split: Name of the split. A file without a column ``split`` is all ``train``.
        texts: Columns that a CSV file has as texts, whatever they look like.

    Returns:
        The rows, with a column :data:`ORIGIN` more; None where the data have no such split.

    Raises:
        UserError: there is no such path, or a file is malformed or has no rows.
    """
    local = _local(path, table)
    if local is None:
        return _from_hub(path, table, split)
    if _is_one_table(local):
        return _rows_of_split(_read(local, texts), split)
    files = _files_of_splits(local)
    if split not in files:
        return None
    parts = {part.name: _read(part, texts) for part in files[split]}
    return concatenate_datasets(aligned(parts, str(local)))


def split_names(path: str, table: Table) -> list[str]:
    """Return the names of the splits that :func:`load_split` knows, sorted.

    Raises:
        UserError: there is no such path, or it cannot be read.
    """
    local = _local(path, table)
    if local is None:
        return _splits_on_hub(path, table)
    if not _is_one_table(local):
        return sorted(_files_of_splits(local))
    rows = _read(local, ())
    return sorted({str(name) for name in cells(rows, "split")}) if "split" in rows.column_names else ["train"]


def files_of(path: str, table: Table, splits: Sequence[str]) -> list[Path]:
    """Return the files or folders that hold splits, in their order; empty for a data set on the hub."""
    local = _local(path, table)
    if local is None:
        return []
    return [local] if _is_one_table(local) else [file for split in splits for file in _files_of_splits(local)[split]]


def _local(path: str, table: Table) -> Path | None:
    """Return the file, or the folder of files; None where the path can only be a hub id."""
    local = Path(path).expanduser()
    if local.is_dir():
        inside = table if (local / table).is_dir() else "data"
        here = _is_one_table(local) or (inside == "data" and _files_of_splits(local))
        return local if here or not (local / inside).is_dir() else local / inside
    if local.is_file():
        return local
    if _HUB_ID.fullmatch(path) and local.suffix not in SUFFIXES and not path.startswith("."):
        return None
    raise UserError(
        f"data '{path}': no such file or folder; write one that exists, or make one with "
        "'lit-debias synthesize --out DIR'"
    )


def _is_one_table(local: Path) -> bool:
    return local.is_file() or (local / _SAVED).is_file()


def _files_of_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split in a folder.

    Raises:
        UserError: a split is there twice, or lacks a part.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if (file / _SAVED).is_file() or (file.suffix in SUFFIXES and file.stem not in _ABOUT_DATA):
            shard = _SHARD.fullmatch(file.stem)
            found.setdefault(shard[1] if shard else file.stem, []).append(file)
    for split, files in found.items():
        shards = [_SHARD.fullmatch(file.stem) for file in files]
        numbers = [(int(shard[2]), int(shard[3])) for shard in shards if shard]
        if numbers and numbers != [(number, numbers[0][1]) for number in range(numbers[0][1])]:
            raise UserError(f"data '{folder}': split '{split}' lacks parts; it has {', '.join(f.name for f in files)}")
        if len(files) > max(1, len(numbers)):
            names = ", ".join(file.name for file in files)
            raise UserError(f"data '{folder}' has the split '{split}' twice: {names}; leave one of them")
    return found


def _rows_of_split(rows: Dataset, split: str) -> Dataset | None:
    if "split" not in rows.column_names:
        return rows if split == "train" else None
    chosen = [row for row, name in enumerate(cells(rows, "split")) if str(name) == split]
    return rows.select(chosen) if chosen else None


def default_splits(known: Sequence[str], preferred: Iterable[Sequence[str]]) -> tuple[str, ...] | None:
    """Return the splits that are read where nobody named any.

    Args:
        known: Those that the data have.
        preferred: Choices in their order.

    Returns:
        The first choice that is there whole, else the only split; None where there are several.
    """
    alone = tuple(known) if len(known) == 1 else None
    return next((tuple(names) for names in preferred if set(names) <= set(known)), alone)


def _from_hub(path: str, table: Table, split: str) -> Dataset | None:
    from datasets import load_dataset

    try:
        rows = load_dataset(*_on_hub(path, table), split=split)
    except Exception as error:  # the hub client raises many kinds; all mean that the data cannot be had
        if _lacks_on_hub(path, table, split):
            return None
        raise _unreachable(path, error) from error
    return _plain(rows, f"data '{path}', split '{split}'")


def _lacks_on_hub(path: str, table: Table, split: str) -> bool:
    with suppress(UserError):
        return split not in _splits_on_hub(path, table)
    return False


def _splits_on_hub(path: str, table: Table) -> list[str]:
    from datasets import get_dataset_split_names

    try:
        return sorted(get_dataset_split_names(*_on_hub(path, table)))
    except Exception as error:  # as above
        raise _unreachable(path, error) from error


def _on_hub(path: str, table: Table) -> tuple[str, str | None]:
    """Return the name of a data set, and its configuration: that of the table where there is one."""
    from datasets import get_dataset_config_names

    name, _, config = path.partition(":")
    if not config:
        config = table if table in get_dataset_config_names(name) else ""
    return name, config or None


def _unreachable(path: str, error: Exception) -> UserError:
    cause = " ".join(str(error).split())
    return UserError(f"data '{path}' is no file or folder here, and the hub says: {cause:.200}")


def _read(path: Path, texts: Collection[str]) -> Dataset:
    return read_file(path, texts) if path.is_file() else _read_saved(path)


def _read_saved(folder: Path) -> Dataset:
    """Read a folder of ``Dataset.save_to_disk``."""
    where = f"data '{folder}'"
    try:
        rows = Dataset.load_from_disk(str(folder))
    except Exception as error:  # whatever a file of it lacks
        raise UserError(f"{where} is malformed: {' '.join(str(error).split()):.200}") from error
    if not len(rows):
        raise UserError(f"{where} has no rows")
    return _plain(rows, where)


def _plain(rows: Dataset, where: str) -> Dataset:
    """Return the rows of a data set as a file would have them, without features that decode images or sound."""
    return _numbered(Dataset(known_types(rows.with_format("arrow")[:], where)), where)


def read_file(path: Path, texts: Collection[str] = ()) -> Dataset:
    """Read a .parquet, .jsonl, .json or .csv file.

    Args:
        path: The file.
        texts: Columns that a CSV file has as texts; the others are numbers where :func:`as_numbers` says so.

    Returns:
        The rows, with a column :data:`ORIGIN` more. Rows of JSON lines are numbered by line, those of CSV from 2, after
        the header, all others from 1.

    Raises:
        UserError: it has another suffix, is malformed (with the row), or has no rows.
    """
    readers = {".parquet": _parquet, ".jsonl": _json, ".json": _json}
    where = f"data '{path}'"
    if path.suffix not in SUFFIXES:
        raise UserError(f"{where}: cannot read '{path.suffix}'; write one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{where}: no such file; write one that exists")
    try:
        content, numbers = _csv(path, texts) if path.suffix == ".csv" else readers[path.suffix](path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{where} is malformed: {' '.join(str(error).split())}") from error
    if not content.num_rows:
        raise UserError(f"{where} has no rows")
    names = content.column_names
    if len(set(names)) < len(names):
        raise UserError(f"{where} has two columns '{max(names, key=names.count)}'; give each a name of its own")
    return _numbered(Dataset(known_types(content, where)), where, numbers)


def _numbered(rows: Dataset, where: str, numbers: Sequence[int] | None = None) -> Dataset:
    numbers = range(1, len(rows) + 1) if numbers is None else numbers
    if ORIGIN in rows.column_names:
        rows = rows.remove_columns(ORIGIN)
    return rows.add_column(ORIGIN, [f"{where}, row {number}" for number in numbers])


def _parquet(path: Path) -> tuple[pa.Table, None]:
    return pyarrow.parquet.read_table(path), None


def _csv(path: Path, texts: Collection[str]) -> tuple[pa.Table, Sequence[int]]:
    text = read_text(path, "data")
    if text.count('"') % 2:  # the reader would take the rest of the file for one value
        raise UserError(f"data '{path}': a quote is not closed; write two for one within a value")
    _check_commas(text, path)
    # one thread: only then does an error say the row
    read, parse = pyarrow.csv.ReadOptions(use_threads=False), pyarrow.csv.ParseOptions(newlines_in_values=True)
    as_texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_header(text), pa.string()))
    content = pyarrow.csv.read_csv(pa.BufferReader(text.encode()), read, parse, as_texts)
    names = content.column_names
    columns = [
        column if name in texts else as_numbers(column) for name, column in zip(names, content.columns, strict=True)
    ]
    return pa.table(columns, names=names), range(2, content.num_rows + 2)


def _check_commas(text: str, path: Path) -> None:
    """Raise :class:`UserError` where another sign than a comma stands between the columns, as spreadsheets write it."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    for sign, name in {";": "semicolons", "\t": "tabs", "|": "bars"}.items():
        if header.count(sign) > header.count(","):
            written = repr(sign).replace("'", '"')
            raise UserError(
                f"data '{path}': {name} stand between its columns; write commas: "
                f'python -c \'import pandas; pandas.read_csv("{path}", sep={written}).to_csv("{path}", index=False)\''
            )


def _header(text: str) -> Iterable[str]:
    return next((row for row in csv.reader(io.StringIO(text)) if row), ())


def _json(path: Path) -> tuple[pa.Table, list[int]]:
    """Read JSON lines, or one JSON array of objects."""
    where, text = f"data '{path}'", read_text(path, "data")
    if text.lstrip().startswith("["):
        values = enumerate(parse_json(text, where), 1)
        records = [(number, as_object(value, f"{where}, row {number}")) for number, value in values]
    else:
        records = list(jsonl_objects(text, where))
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
