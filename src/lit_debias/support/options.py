"""Functions whose options are the fields of a record."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import cleandoc, signature
from textwrap import indent
from typing import ParamSpec, TypeVar, get_type_hints

from docstring_parser import parse_from_object

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def options_of(record: Callable[P, S]) -> Callable[[Callable[[S], R]], Callable[P, R]]:
    """Let a function of a record be called with the record's fields, as keywords or in their order.

    Its signature is that of the record, and its docstring gets a section ``Args`` of the fields' docstrings, so that
    help, command line and reference show what the record says.
    """

    def decorate(function: Callable[[S], R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(record(*args, **kwargs))

        returns = signature(function).return_annotation
        vars(called)["__signature__"] = signature(record).replace(return_annotation=returns)
        called.__annotations__ = get_type_hints(record) | {"return": get_type_hints(function)["return"]}
        called.__doc__ = _with_arguments(cleandoc(function.__doc__ or ""), record)
        return called

    return decorate


def _with_arguments(text: str, record: Callable[..., object]) -> str:
    """Return a docstring with a section of the record's fields before what it returns."""
    fields = [f"{field.arg_name}: {field.description}" for field in parse_from_object(record).params]
    lines = "\n".join(indent(field.replace("\n", "\n    "), "    ") for field in fields)
    about, mark, rest = text.partition("\nReturns:")
    return f"{about}\nArgs:\n{lines}\n{mark}{rest}"
