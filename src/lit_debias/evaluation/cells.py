"""What the columns of an evaluation's prompts may hold, and what is made of it."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_debias.errors import UserError, did_you_mean

KINDS = ("open", "leading", "control", "forced_choice")
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
SINGLE = (str, int, float, decimal.Decimal, datetime.date, datetime.time)


class WrongCellError(ValueError):
    """A value that a column cannot hold; the message says what to write."""


def words(value: Any) -> str:
    """Return a text that a model reads or writes."""
    if not isinstance(value, str):
        raise WrongCellError("; write a text, or nothing")
    return value


def name(value: Any) -> str:
    """Return what tells one thing from another as a text; a number is one too."""
    if not isinstance(value, SINGLE):
        raise WrongCellError("; write a text")
    return str(value)


def kind(value: Any) -> str:
    """Return a prompt kind."""
    if value not in KINDS:
        raise WrongCellError(did_you_mean(str(value), KINDS))
    return str(value)


def choices(value: Any) -> list[str]:
    """Return a list of texts, which a CSV file has as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    texts = [str(choice) if type(choice) in (int, float) else choice for choice in value or ()]
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice.strip() for choice in texts):
        raise WrongCellError('; write a list of texts, such as ["yes", "no"]')
    if len(texts) == 1 or len(set(texts)) < len(texts):
        raise WrongCellError("; write two choices or more, each once, or none")
    return texts


def place(value: Any, known: Sequence[str]) -> int:
    """Return a place among the choices, from 0, or -1; the choice itself may stand for it."""
    if isinstance(value, str) and value in known:
        return list(known).index(value)
    try:
        number = int(value) if not isinstance(value, bool) and float(value) == int(value) else None
    except (ValueError, TypeError, OverflowError):
        number = None
    if number is None or not -1 <= number < len(known):
        raise WrongCellError("; write a place among 'choices', from 0, or -1")
    return number


def flag(value: Any) -> bool:
    """Return true or false."""
    found = FLAGS.get(str(value).lower())
    if found is None:
        raise WrongCellError("; write true or false")
    return found


CELLS: dict[str, Callable[[Any], Any]] = {
    "prompt_id": name,
    "twin_id": name,
    "cluster": name,
    "category": name,
    "group": name,
    "prompt_kind": kind,
    "counterfactual_prompt": words,
    "counterfactual_group": name,
    "reference": words,
    "biased": words,
    "choices": choices,
    "ambiguous": flag,
}
"""Column -> what is made of a value."""
PLACES = ("answer", "biased_choice")
"""Columns that hold a place among the choices; what they hold where there are none is something else."""


def read_cells(given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return what is made of the values of a row, of those columns that are known here and not empty.

    Args:
        given: The row as the data has it.
        origin: File and row, for errors.

    Raises:
        UserError: a column holds what it cannot.
    """
    cells = {
        name: read_cell(name, given[name], CELLS[name], origin) for name in CELLS if not is_missing(given.get(name))
    }
    known = cells.get("choices", ())
    places = [name for name in PLACES if known and not is_missing(given.get(name))]
    return cells | {name: read_cell(name, given[name], lambda value: place(value, known), origin) for name in places}


def read_cell(column: str, value: Any, make: Callable[[Any], Any], origin: str) -> Any:
    """Return what is made of a value.

    Raises:
        UserError: the column cannot hold it.
    """
    try:
        return make(value)
    except WrongCellError as error:
        raise UserError(f"{origin}: '{column}' is {value!r:.40}{error}") from error


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty."""
    return value is None or value == "" or value == []
