"""The parser of every command: one-line errors, and no secrets in what is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, add_instantiator

from lit_debias.cli.faults import build
from lit_debias.errors import UserError
from lit_debias.support.redaction import check_no_secrets

OWN_CLASS = re.compile(r"""(class_path["']?:\s*["']?)(lit_debias(?:\.\w+)+)""")
add_instantiator(build, object, subclasses=True, prepend=False)  # what Lightning has for its own classes comes first


def config_files(args: Sequence[str]) -> list[Path]:
    """Return the files that ``-c`` and ``--config`` name, those that are there."""
    pairs = [*pairwise(args), *(arg.split("=", 1) for arg in args if "=" in arg)]
    return [Path(value) for flag, value in pairs if flag in ("-c", "--config") and os.path.isfile(value)]


def check_config(file: Path) -> None:
    """Raise :class:`UserError` where a configuration is not YAML with options; jsonargparse names no file."""
    from lit_debias.support.files import read_yaml

    if not isinstance(read_yaml(file, "configuration"), dict):
        raise UserError(f"configuration '{file}' holds no options; write them as NAME: VALUE")


def with_present_paths(content: str) -> str:
    """Return a configuration in which a class of ours whose module has moved since goes by its short name."""
    return OWN_CLASS.sub(lambda found: found[1] + _present(found[2]), content)


def _present(class_path: str) -> str:
    module, _, name = class_path.rpartition(".")
    try:
        return class_path if hasattr(import_module(module), name) else name
    except ImportError:
        return name


class Parser(ArgumentParser):
    """A parser whose errors are one line, and whose results hold no secrets: they are kept in files."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Return the arguments; raise :class:`UserError` where one is a key or password."""
        config = super().parse_args(*args, **kwargs)
        check_no_secrets(config.as_dict())
        return config

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Return the arguments of a configuration file, be it of an older version."""
        config: Namespace = super().parse_string(with_present_paths(content), *args, **kwargs)
        return config

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        """Return the arguments as YAML, for ``--print_config`` and ``config.yaml``, as :meth:`parse_args`."""
        check_no_secrets(namespace.as_dict())
        return str(super().dump(namespace, *args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise :class:`UserError` with what is wrong, where, and what to write instead."""
        if not self.exit_on_error:  # a parser inside another one: jsonargparse adds where it is
            return super().error(message, ex)
        from lit_debias.cli.errors import one_line

        raise UserError(one_line(message, self._known_keys())) from ex

    def _known_keys(self) -> set[str]:
        """Return the options, those of all commands among them: an error in a file comes from the parser above."""
        commands = self._subcommands_action.choices.values() if self._subcommands_action else ()
        return {key for one in (self, *commands) for key in vars(one.get_defaults(skip_validation=True).as_flat())}
