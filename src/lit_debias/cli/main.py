"""The command line: Lightning's ``fit | validate | test | predict``, and the commands around them."""

from __future__ import annotations

import string
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

from docstring_parser import parse

from lit_debias.cli.errors import is_full_disk, user_error
from lit_debias.cli.help import TRAINER_COMMANDS
from lit_debias.cli.parser import Parser, check_config, config_files
from lit_debias.errors import UserError
from lit_debias.plugins.manager import get_plugin_manager
from lit_debias.support.redaction import redact
from lit_debias.support.terminal import importing, quiet_libraries
from lit_debias.support.text import printable


@dataclass(frozen=True)
class Command:
    """A command that is a plain function: its signature and docstring are its options and help."""

    module: str
    function: str
    help: str
    positional: tuple[str, ...] = ()
    """Parameters that are given without an option: ``name`` takes one, ``name+`` one or more, ``name*`` any number."""

    def load(self) -> Callable[..., Any]:
        """Import the function; only the command that runs pays for its imports."""
        function: Callable[..., Any] = getattr(import_module(self.module), self.function)
        return function


HELP = ("-h", "--help")
COMMANDS = {
    "synthesize": Command("lit_debias.synthetic.synthesis", "synthesize", "write the synthetic data set"),
    "write": Command(
        "lit_debias.synthetic.writing", "write", "add responses written by a language model to the data set"
    ),
    "attack": Command(
        "lit_debias.synthetic.attacks",
        "attack",
        "let a language model write prompts that invite a stereotype, to measure",
    ),
    "evaluate": Command("lit_debias.evaluation", "evaluate", "measure bias and utility, before against after"),
    "convert": Command(
        "lit_debias.cli.convert", "convert", "write a benchmark's pairs as data to train on", ("benchmark",)
    ),
    "matrix": Command(
        "lit_debias.evaluation.matrix", "matrix", "show what each training set does to each benchmark", ("results+",)
    ),
    "explain": Command(
        "lit_debias.cli.explain", "explain", "let a judge say what is biased in responses, and why", ("responses",)
    ),
    "export": Command("lit_debias.export.command", "export", "write an adapter for others, or merged; upload it"),
    "chat": Command(
        "lit_debias.cli.chat", "chat", "show untouched and trained answers to the same prompts", ("prompts*",)
    ),
    "report": Command("lit_debias.report", "report", "draw one self-contained HTML file of a run", ("run+",)),
    "plugins": Command(
        "lit_debias.cli.inspect", "plugins", "list installed rewards, aggregators, engines and benchmarks", ("names*",)
    ),
    "rewards new": Command(
        "lit_debias.cli.scaffold", "new", "write a plugin with one reward, ready to install", ("name",)
    ),
    "rewards check": Command(
        "lit_debias.cli.rewards", "check", "test whether a reward keeps its contract", ("reward",)
    ),
    "rewards score": Command(
        "lit_debias.cli.rewards", "score", "score texts from arguments, a file or a pipe", ("reward", "texts*")
    ),
    "benchmarks new": Command(
        "lit_debias.cli.scaffold", "new_benchmark", "write a plugin with one benchmark, ready to install", ("name",)
    ),
    "benchmarks check": Command(
        "lit_debias.cli.benchmarks", "check", "test whether a benchmark keeps its contract", ("benchmark",)
    ),
    "toxicity train": Command(
        "lit_debias.cli.toxicity", "train", "train a linear model of toxicity on texts of your own", ("data",)
    ),
    "ray": Command("lit_debias.cli.on_ray", "fit_on_ray", "fit on the workers of a Ray cluster"),
    "doctor": Command("lit_debias.cli.inspect", "doctor", "say what this machine can run, and what is missing"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code.

    It is 0 where all is done, 2 after a mistake of the user, and 75 where another process of the run was lost. The
    latter two say why in one line on stderr.
    """
    args = list(sys.argv[1:] if args is None else args)
    quiet_libraries()
    try:
        with _quiet_threads():
            return _run(args)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        print(f"lit-debias: error: {printable(redact(str(mistake)))}", file=sys.stderr)
        return mistake.code


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keep a full disk's tracebacks in threads from the terminal; TensorBoard raises the error in the main one too."""
    hook = threading.excepthook
    threading.excepthook = lambda args: None if is_full_disk(args.exc_value) else hook(args)
    try:
        yield
    finally:
        threading.excepthook = hook


def _run(args: list[str]) -> int:
    name, *rest = args or ["--help"]
    if any(known.startswith(f"{name} ") for known in COMMANDS):  # rewards new, rewards check, ...
        name, rest = (f"{name} {rest[0]}", rest[1:]) if rest and rest[0] not in HELP else ("--help", [])
    if name in HELP:
        print(overview())
        return 0
    if name == "--version":
        from lit_debias import __version__

        print(__version__)
        return 0
    if name not in TRAINER_COMMANDS and name not in COMMANDS:
        from lit_debias.errors import did_you_mean

        raise UserError(f"there is no command '{name}'{did_you_mean(name, [*TRAINER_COMMANDS, *COMMANDS])}")
    for file in config_files(rest):
        check_config(file)
    with importing(name):
        get_plugin_manager()  # imports the plugins, so that their classes have short names
        if name in COMMANDS:
            COMMANDS[name].load()
        else:
            from lit_debias.cli.training import run_trainer
    if name in COMMANDS:
        return run_function(name, rest)
    run_trainer([name, *rest])
    return 0


def overview() -> str:
    """Return the help over all commands."""
    table = TRAINER_COMMANDS | {name: command.help for name, command in COMMANDS.items()}
    lines = [f"  {name:<18}{text}" for name, text in table.items()]
    return "\n".join(
        [
            "usage: lit-debias COMMAND ...",
            "",
            "De-bias language models with multi-reward GRPO.",
            "",
            *lines,
            "",
            "lit-debias COMMAND --help shows a command's options; a YAML file with them goes to -c FILE.",
            "lit-debias fit -c FILE --model.rewards.NAME.help shows the options of a reward in that file.",
        ]
    )


def run_function(name: str, args: list[str]) -> int:
    """Parse ``args`` for a function command and call it; an int that it returns is the exit code."""
    command = COMMANDS[name]
    parser = Parser(prog=f"lit-debias {name}", description=command.help[0].upper() + command.help[1:] + ".")
    parser.add_argument("-c", "--config", action="config", help="YAML file with the options below.")
    function = command.load()
    positional = {name.rstrip("+*"): name.lstrip(string.ascii_letters) or None for name in command.positional}
    helps = {p.arg_name: p.description for p in parse(function.__doc__ or "").params}
    for parameter, nargs in positional.items():
        parser.add_argument(parameter, nargs=nargs, type=str, help=" ".join((helps[parameter] or "").split()))
    parser.add_function_arguments(function, skip={*positional})
    flags = {f"--{p.name}" for p in signature(function).parameters.values() if p.default is False}
    config = parser.parse_args([f"{arg}=true" if arg in flags else arg for arg in args])
    arguments = parser.instantiate(config).as_dict()
    arguments.pop("config", None)
    result = function(**arguments)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
