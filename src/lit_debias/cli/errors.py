"""The user's mistake behind an exception, as one line: what was wrong, where, what to write instead."""

from __future__ import annotations

import errno
import inspect
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import TypeGuard

from lit_debias.cli.classes import class_advice
from lit_debias.cli.values import value_advice
from lit_debias.errors import UserError, closest, did_you_mean
from lit_debias.plugins.manager import ALLOW_VARIABLE
from lit_debias.plugins.official import missing_plugin

NOISE = (
    *("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>"),
    "Expected a path but",  # of a text where options are wanted, which may be a file with them
)
OPTIONS_GIVEN = re.compile(r"Given value: \[?(?:\{'class_path'|Namespace\(class_path=)")
UNION = "Does not validate against any of the Union subtypes"
"""Begins what jsonargparse says where neither a name nor a class fits, also because the class could not be built."""
KEY = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)')
CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)':\s*(?P<rest>.*)")
UNKNOWN_OPTION = re.compile(r"Option '(?P<option>[^']+)' is not accepted")
BARRED = re.compile(r"import of (?P<module>\S+) halted; None in sys.modules")
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\S+)")
UNKNOWN_KEY = re.compile(r"(?:does not accept option '|unrecognized arguments: --|Key '|^Option ')(?P<key>[\w.-]+)")
STRAY = re.compile(r"unrecognized arguments: (?P<words>[^-].*)")
NO_MODULE = re.compile(r"No module named '(?P<module>[^']+)'|module '[^']+' has no attribute '[^']+'")
CALLABLE = re.compile(
    r".*expects a function or a callable class: (?P<rest>.*)\. Got value: .*?class_path='(?P<path>[^']+)'"
)
ABSTRACT = re.compile(r"Expected an instantiatable class, but (?P<path>\S+) is abstract")
REQUIRED = re.compile(r"arguments are required: (?P<names>.+)")


def one_line(message: str, known: Iterable[str] = ()) -> str:
    """Return the most telling part of a report.

    Args:
        message: What jsonargparse says.
        known: The parser's options, to look for one that was meant.
    """
    if message.startswith("Problems parsing config"):  # YAML's own report, whose lines belong together
        return " ".join(message.split())
    keys: list[str] = []
    class_path = owner = ""
    leaf = " ".join(message.split())
    for line in _telling_lines(message):
        if match := KEY.match(line):
            keys.append(match["key"])
            owner, class_path = class_path, ""  # what follows is about a value inside the class
        elif match := CLASS.match(line):
            class_path = match["path"]
        else:
            leaf = line
            break
    if match := CALLABLE.match(leaf):
        leaf, class_path = match["rest"], match["path"]
    where = f"{'.'.join(keys)}: " if keys else ""
    return where + (
        _class_advice(leaf, message, class_path, owner, keys[-1] if keys else "")
        or value_advice(message, leaf)
        or _advice(leaf, class_path, known)
    )


def _telling_lines(message: str) -> Iterator[str]:
    # where a text would fit as well, a class with options is meant to be one
    noise = (*NOISE, "Expected a <class 'str'>") if OPTIONS_GIVEN.search(message) else NOISE
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        while match := KEY.match(text) or CLASS.match(text):
            yield match[0].removesuffix(match["rest"])
            text = match["rest"]
        if text and not text.startswith(noise):
            yield text


def _class_advice(leaf: str, message: str, class_path: str, owner: str, key: str) -> str | None:
    if match := BARRED.search(leaf):
        return f"'{match['module']}' is a plugin that {ALLOW_VARIABLE} does not name; name its entry point there"
    if match := UNKNOWN_CLASS.search(message if leaf == "Expected a <class 'list'>" else leaf):
        return class_advice(match["name"], owner, key)  # a class, or a list of them, would fit
    if match := ABSTRACT.match(leaf):
        return (
            f"no class_path names a class, and {match['path'].rpartition('.')[2]} is abstract; write class_path: NAME"
        )
    if class_path and (match := NO_MODULE.match(leaf)):
        missing = f"'{class_path}': there is no module '{match['module']}'; install it, or put its folder on PYTHONPATH"
        return missing_plugin(class_path) or (missing if match["module"] else class_advice(class_path, owner, key))
    return None


def _advice(leaf: str, class_path: str, known: Iterable[str]) -> str:
    short = class_path.rpartition(".")[2]
    if class_path and (match := UNKNOWN_OPTION.search(leaf)):
        return f"{short} takes no option '{match['option']}'{_option_meant(match['option'], class_path)}"
    if match := STRAY.search(leaf):
        word = match["words"].split()[0]
        if word.endswith((".yaml", ".yml")):
            return f"'{word}' stands alone; write -c {word}"
        return f"'{word}' belongs to no option; write --OPTION {word}, or take it out"
    if match := UNKNOWN_KEY.search(leaf):
        return f"there is no option '{match['key']}'{_key_meant(match['key'], known)}"
    if match := REQUIRED.search(leaf):
        names = match["names"].replace("fit.", "").strip()
        if names.split(", ")[0] == "optimizer":
            return (
                f"it is a function that does not say what it returns, so no options reach it ({names}); write a "
                "class, such as torch.optim.lr_scheduler.OneCycleLR with max_lr and total_steps"
            )
        return (
            f"{short + ' needs' if short else 'missing'}: {names}; write it in the file given with -c, or as an option"
        )
    return f"{short}: {leaf}" if short else leaf


def _option_meant(option: str, class_path: str) -> str:
    known = _options(class_path)
    return _key_meant(option, {*known, "class_path", "init_args"}) or did_you_mean(option, known)


def _key_meant(key: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a key like ``trainer.max_stps`` by its first part that is not there."""
    parts, names = key.split("."), [name.split(".") for name in known]
    for depth, part in enumerate(parts):
        there = {name[depth] for name in names if name[:depth] == parts[:depth] and len(name) > depth}
        if part not in there:
            close = closest(part, there)
            return f"; did you mean '{'.'.join([*parts[:depth], close, *parts[depth + 1 :]])}'?" if close else ""
    return ""


def _options(class_path: str) -> set[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return set(inspect.signature(getattr(import_module(module), name).__init__).parameters) - {"self"}
    except (ImportError, AttributeError, ValueError):
        return set()


DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def user_error(error: BaseException | None) -> UserError | None:
    """Return the user's mistake behind an exception; libraries wrap what a constructor raises."""
    full: UserError | None = None
    seen: set[int] = set()  # one that was raised again may stand in its own context
    while error is not None and not isinstance(error, UserError) and id(error) not in seen:
        seen.add(id(error))
        if is_full_disk(error):
            where = error.filename or "the run's files (the error does not say which)"
            full = UserError(f"cannot write {where}: {error.strerror}; free some space and run it again")
        if isinstance(error, ValueError) and str(error).startswith(UNION):  # its cause is why a text does not fit
            full = full or UserError(one_line(str(error)))
        error = error.__cause__ or error.__context__
    return error if isinstance(error, UserError) else full


def is_full_disk(error: BaseException | None) -> TypeGuard[OSError]:
    """Return whether an exception says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in DISK_FULL
