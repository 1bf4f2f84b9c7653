"""The types of columns: numbers of a CSV file, types of Parquet that no table here knows, splits that disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features
from pyarrow import types

from lit_debias.errors import UserError

EXACT = 2**53
"""Every whole number up to here is a float64."""


_AT_ONCE = 1000
"""Rows in memory as Python values."""


def cells(rows: Dataset, column: str) -> Iterator[Any]:
    """Yield what a column holds; ``rows[column]`` itself reads row by row, which takes ten times as long."""
    found = rows[column]
    for start in range(0, len(rows), _AT_ONCE):
        yield from found[start : start + _AT_ONCE]


def as_numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts of a CSV file as numbers, where every one of them says its number as Python writes it.

    So 7, -3, 0.25 and 1e-05 are numbers; a column that holds 007, 0.50, 1e5, +1, NaN, NA, True, None or a date stays
    text, and nothing that tells two values apart is lost. An empty cell is a missing number.
    """
    known = [text for text in texts.to_pylist() if text]
    if not known:
        return pa.chunked_array([pa.nulls(len(texts))])
    for kind, holds in ((pa.int64(), _is_integer), (pa.float64(), _is_number)):
        if all(map(holds, known)):
            read = int if types.is_integer(kind) else float
            return pa.chunked_array([pa.array([read(text) if text else None for text in texts.to_pylist()], kind)])
    return texts


def _is_integer(text: str) -> bool:
    try:
        return str(int(text)) == text and -(2**63) <= int(text) < 2**63
    except ValueError:
        return False


def _is_number(text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    exact = repr(number) == text or (_is_integer(text) and abs(int(text)) <= EXACT)
    return exact and math.isfinite(number)


def known_types(table: pa.Table, where: str) -> pa.Table:
    """Return a table in types that rewards can read.

    A map becomes a list of objects with ``key`` and ``value``, a category its value, a UUID its text, a view a list;
    what a library noted about the types of its own is left out.

    Raises:
        UserError: there is another type, such as a tensor.
    """
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        try:
            known = _known(column)
            Features.from_arrow_schema(pa.schema({field.name: known.type}))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise UserError(
                f"{where}: column '{field.name}' has the type {field.type}; write texts, numbers, true and false, "
                "dates, lists or objects, or leave the column out"
            ) from error
        columns.append(known)
    return pa.table(columns, names=table.column_names)


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if str(column.type) == "extension<arrow.uuid>":
        return pa.chunked_array([pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())])
    wanted = _known_type(column.type)
    if "list_view" in str(column.type):  # pyarrow 26 casts a view that holds a null to a list with too few offsets
        return pa.chunked_array([pa.array(column.to_pylist(), wanted)])
    return column if wanted == column.type else column.cast(wanted)


def _known_type(kind: pa.DataType) -> pa.DataType:
    if types.is_map(kind):
        return pa.list_(pa.struct({"key": _known_type(kind.key_type), "value": _known_type(kind.item_type)}))
    if types.is_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        return pa.list_(_known_type(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(_known_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _known_type(field.type)) for field in kind])
    if types.is_dictionary(kind):
        return _known_type(kind.value_type)
    if types.is_decimal32(kind) or types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    return kind


def aligned(parts: Mapping[str, Dataset], path: str) -> list[Dataset]:
    """Return the parts of a table with one type for each column.

    Whole numbers and numbers are numbers; numbers and texts are texts, since a column of a CSV file is numbers only
    where all of it says so; a column of which a part knows nothing has the type that another part knows.

    Args:
        parts: Name of a split or file -> its rows; a part may lack a column.
        path: The data, for errors.

    Raises:
        UserError: a column has types that are not alike, such as a list and a text.
    """
    wanted: dict[str, tuple[str, pa.DataType]] = {}
    for part, rows in parts.items():
        for field in rows.features.arrow_schema:
            first, kind = wanted.get(field.name, (part, field.type))
            both = _common(kind, field.type)
            if both is None:
                raise UserError(
                    f"data '{path}': column '{field.name}' is {kind} in '{first}' and {field.type} in '{part}'; write "
                    "one kind of value in a column"
                )
            wanted[field.name] = (first, both)
    kinds = {name: kind for name, (_, kind) in wanted.items()}
    try:
        return [_cast(rows, kinds) for rows in parts.values()]
    except (pa.ArrowException, OverflowError) as error:  # a whole number that no other type holds
        raise UserError(f"data '{path}': the parts {', '.join(parts)} have no type in common ({error})") from error


def _cast(rows: Dataset, wanted: Mapping[str, pa.DataType]) -> Dataset:
    found = {field.name: field.type for field in rows.features.arrow_schema}
    if all(wanted[name] == kind for name, kind in found.items()):
        return rows
    table = rows.with_format("arrow")[:]
    return Dataset(pa.table({name: _converted(table[name], wanted[name]) for name in found}))


def _converted(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if column.type == wanted:
        return column
    if types.is_nested(wanted):
        return pa.chunked_array([pa.array([_spelled(value, wanted) for value in column.to_pylist()], wanted)])
    if _is_text(wanted) and _is_figure(column.type):
        return pa.chunked_array([pa.array([_spelled(value, wanted) for value in column.to_pylist()], wanted)])
    return column.cast(wanted)


def _spelled(value: Any, wanted: pa.DataType) -> Any:
    """Return a value whose numbers are texts where texts are wanted, as Python writes them: a CSV file had them so."""
    if isinstance(value, list):
        return [_spelled(item, wanted.value_type) for item in value]
    if isinstance(value, dict):
        return {name: _spelled(item, wanted.field(name).type) for name, item in value.items()}
    return str(value) if _is_text(wanted) and isinstance(value, (int, float)) else value


def _common(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both, None where there is none."""
    if first == second or types.is_null(second):
        return first
    if types.is_null(first):
        return second
    if _is_text(first) and _is_text(second):
        return pa.large_string()
    if _is_figure(first) and _is_figure(second):
        whole = types.is_integer(first) and types.is_integer(second)
        return pa.int64() if whole else pa.float64()
    if {_is_text(first), _is_text(second)} == {True, False} and (_is_figure(first) or _is_figure(second)):
        return pa.string()
    if _is_list(first) and _is_list(second):
        inner = _common(first.value_type, second.value_type)
        return None if inner is None else pa.list_(inner)
    if types.is_struct(first) and types.is_struct(second):
        fields = {field.name: field.type for field in first}
        for field in second:
            both = _common(fields.get(field.name, field.type), field.type)
            if both is None:
                return None
            fields[field.name] = both
        return pa.struct(fields)
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_figure(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind))


def renamed(rows: Dataset, columns: Mapping[str, str], path: str, there: Sequence[str]) -> Dataset:
    """Return rows with the columns that the code and the rewards ask for.

    Args:
        rows: As the data has them.
        columns: Name -> column of the data, whose values it gets; a column may serve several names. All columns keep
            their own names too, but where such a name is given to the values of another one.
        path: The data, for errors.
        there: The data's columns, for errors.

    Raises:
        UserError: there is no such column.
    """
    for name, source in columns.items():
        if source not in rows.column_names:
            raise UserError(f"data '{path}' has no column '{source}' (wanted as '{name}'); it has: {', '.join(there)}")
    if all(name == source for name, source in columns.items()):
        return rows
    table = rows.with_format("arrow")[:]
    sources = {**{name: name for name in rows.column_names}, **columns}
    return Dataset(pa.table({name: table[source] for name, source in sources.items()}))
