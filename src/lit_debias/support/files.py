"""Reads the text files that users write: UTF-8, JSON, JSON lines and YAML; a mistake is named with its row."""

from __future__ import annotations

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lit_debias.errors import UserError

FOREIGN = {
    b"\x1f\x8b": "is gzipped; unpack it first: gunzip",
    codecs.BOM_UTF16_LE: "is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8",
    codecs.BOM_UTF16_BE: "is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8",
}
"""First bytes of files that are no UTF-8 -> what to do."""
JsonObject = dict[str, Any]


def read_text(path: Path, what: str) -> str:
    r"""Return the text of a UTF-8 file, gzipped where its name ends with .gz.

    A byte-order mark is left out, and every line ends with ``\n``, whatever it ends with in the file.

    Args:
        path: The file.
        what: Stands before its name in errors, such as ``prose``.

    Raises:
        UserError: it is a folder, is missing or may not be read, or holds something else than UTF-8 text.
    """
    where = f"{what} '{path}'".lstrip()
    if path.is_dir():
        raise UserError(f"{where} is a folder; write the name of a file")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, ValueError, EOFError, zlib.error) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where} cannot be read ({reason}); write the name of a readable file") from error
    return decode(content, where)


def decode(content: bytes, where: str) -> str:
    r"""Return UTF-8 bytes as text, without a byte-order mark and with ``\n`` after every line.

    Args:
        content: What a file holds.
        where: Its name, for errors.

    Raises:
        UserError: it is not UTF-8, or no text.
    """
    for start, remedy in FOREIGN.items():
        if content.startswith(start):
            raise UserError(f"{where} {remedy}")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}, row {_row(content, error.start)}: byte {content[error.start]:#04x} is not UTF-8; save the file "
            "as UTF-8: iconv -f LATIN1 -t UTF-8"
        ) from error
    if "\0" in text:
        row = _row(content, content.index(b"\0"))
        raise UserError(f"{where}, row {row}: there is a NUL character; save the file as UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _row(content: bytes, place: int) -> int:
    return content.count(b"\n", 0, place) + 1


def read_jsonl(path: Path, what: str) -> list[tuple[int, JsonObject]]:
    """Return the objects of a file with one JSON object a line, each with the number of its line.

    Raises:
        UserError: as in :func:`read_text`; a line holds something else than an object, or there is none.
    """
    return list(jsonl_objects(read_text(path, what), f"{what} '{path}'".lstrip()))


def jsonl_objects(text: str, where: str) -> Iterator[tuple[int, JsonObject]]:
    """Yield the objects of lines of JSON, each with the number of its line; blank lines are passed over.

    Args:
        text: As :func:`read_text` returns it.
        where: The name of the file, for errors.

    Raises:
        UserError: a line holds something else than an object, or there is none.
    """
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would cut at U+2028 inside a string
        if line.strip():
            yield number, as_object(parse_json(line, f"{where}, row {number}"), f"{where}, row {number}")
    if not text.strip():
        raise UserError(f"{where} has no rows; write one JSON object a line")


class StrictLoader(yaml.SafeLoader):
    """YAML in which no key stands twice in a mapping; PyYAML itself takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raise ConstructorError where a key stands twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"line {key.start_mark.line + 1}: the key '{key.value}' stands there twice; write it once"
                    raise yaml.constructor.ConstructorError(problem=problem)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> Any:
    """Return what a YAML file holds.

    Raises:
        UserError: as in :func:`read_text`, or it is no YAML, or a key stands twice in a mapping.
    """
    try:
        return StrictLoader(read_text(path, what)).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2026-13-01 is no date
        raise UserError(f"{what} '{path}' is no valid YAML: {' '.join(str(error).split())}") from error


def as_object(value: Any, where: str) -> JsonObject:
    """Return a value that is a JSON object.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, dict):
        raise UserError(f'{where}: expected an object like {{"prompt": ...}}, not {value!r:.40}')
    return value


def parse_json(text: str, where: str) -> Any:
    """Return what strict JSON says: no NaN or infinity, no key twice in an object, no half of a surrogate pair.

    Args:
        text: The JSON.
        where: File and row, for errors.

    Raises:
        UserError: it is none.
    """
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise UserError(f"{where} is no valid JSON: {error.msg} ({place})") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {error.object[error.start]!r} is half of a surrogate pair; write both") from error
    except ValueError as error:
        raise UserError(f"{where} is no valid JSON: {str(error).partition(';')[0]}") from error
    except RecursionError as error:
        raise UserError(f"{where}: values are nested too deeply; write flat columns") from error
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number, write null")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits:.40} is too large a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.40} is there twice")
    return record
