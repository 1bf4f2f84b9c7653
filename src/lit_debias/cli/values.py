"""Advice on values that an option does not take, and on names that Lightning's trainer does not know."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lit_debias.errors import UserError, did_you_mean

EXPECTED = re.compile(r"^(?:- )?Expected (?:an? )?(?P<kind><class '[\w.]+'>|typing\.Literal\[.*\])(?P<rest>.*)$")
VALUE = re.compile(r"(?:Given|Got) value: (?P<value>.*)$")
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "list": "a list",
    "dict": "options as NAME: VALUE",
    "collections.abc.Iterable": "a list",
}


def value_advice(message: str, leaf: str) -> str | None:
    """Return what a value is not, where jsonargparse says which types it tried; None where it says something else.

    Args:
        message: The whole report.
        leaf: Its line with the first type.
    """
    if not EXPECTED.match(leaf):
        return None
    kinds, value = [], ""
    lines = [line.strip() for line in message.splitlines()]
    for line in lines[next(number for number, line in enumerate(lines) if line.endswith(leaf)) :]:
        line = line.removeprefix("- ")
        if match := EXPECTED.match(line[line.find("Expected") :]):
            kinds.append(match["kind"])
        if match := VALUE.search(line):
            value = match["value"].strip("'\"")
            break
    literals = [
        str(one) for kind in kinds if "Literal" in kind for one in ast.literal_eval(kind.partition("Literal")[2])
    ]
    others = [KINDS.get(name, name) for kind in kinds if (name := _name_of(kind))]
    if literals:
        others = [word for word in others if word == "null"]
        return f"'{value:.60}' is none of its values{did_you_mean(value, dict.fromkeys([*literals, *others]))}"
    return f"'{value:.60}' is not {' or '.join(dict.fromkeys(others))}"


def _name_of(kind: str) -> str:
    return kind.removeprefix("<class '").removesuffix("'>") if kind.startswith("<class") else ""


def check_names(options: Mapping[str, Any]) -> None:
    """Refuse names that the trainer does not know, and a GPU where there is none; Lightning's own words vary.

    Args:
        options: The trainer's options.

    Raises:
        UserError: says which names it knows.
    """
    for option, known in _names().items():
        value = options.get(option)
        if isinstance(value, str) and value.lower() not in known:
            raise UserError(f"trainer.{option}: there is no '{value}'{did_you_mean(value, _suitable(option, known))}")
    if options.get("accelerator") == "gpu":
        import torch

        if not torch.accelerator.is_available():
            raise UserError("trainer.accelerator: there is no GPU here that PyTorch can use; write auto or cpu")


def _names() -> dict[str, set[str]]:
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    return {
        "strategy": {"auto", *StrategyRegistry.available_strategies()},
        "accelerator": {"auto", "gpu", *AcceleratorRegistry.available_accelerators()},
        "profiler": {"simple", "advanced", "pytorch", "xla"},
        "gradient_clip_algorithm": {"norm", "value"},
    }


def _suitable(option: str, known: Iterable[str]) -> list[str]:
    """Return the names to propose: of the strategies, those that leave the model whole and start the command anew."""
    if option != "strategy":
        return list(known)
    return [name for name in known if name == "auto" or re.fullmatch(r"ddp(_find_unused_parameters_\w+)?", name)]
