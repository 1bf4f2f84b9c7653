"""What the commands that check a class by its contract share: how it is built, and how findings are shown."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_debias.cli.parser import Parser
from lit_debias.errors import UserError, cause_of
from lit_debias.rewards.contract import Finding
from lit_debias.support.text import printable


def build_object(kind: str, name: str, base: type, class_path: str, init_args: Mapping[str, Any] | None) -> Any:
    """Return an object with its options, which are checked as they are in a configuration file.

    Args:
        kind: ``reward`` or ``benchmark``, for errors.
        name: What the user calls it, for errors.
        base: What it is an instance of.
        class_path: Its class, by its short name or path.
        init_args: Its options.

    Raises:
        UserError: there is no such class, or an option is wrong.
    """
    parser = Parser(prog=f"lit-debias {kind}s")
    parser.add_argument(f"--{kind}", type=base)
    config = parser.parse_object({kind: {"class_path": class_path, "init_args": dict(init_args or {})}})
    try:
        return getattr(parser.instantiate(config), kind)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{kind} '{name}' cannot be built: {cause_of(error)}") from error


def show_findings(findings: Sequence[Finding], title: str, json: bool) -> int:
    """Print findings as a table or as JSON; return the exit code, 1 where a rule is broken."""
    if json:
        print(json_module.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("", "check", "what was found", title=title)
        marks = {True: "[green]ok[/]", False: "[red]broken[/]", None: "-"}
        for finding in findings:
            table.add_row(marks[finding.passed], finding.check, escape(printable(finding.detail)))
        Console().print(table)
    return int(any(finding.passed is False for finding in findings))
