"""Reads CEB's files, in the layout in which they were published, from a user's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_debias.benchmark import Item, complete, locate, one_of, read_json, text, whole, wrong
from lit_debias.plugins import UserError

AXES = ("age", "gender", "race", "religion")
KINDS = {"S": ("stereotype", "anti-stereotype"), "T": ("toxic", "non-toxic")}
"""Stereotypes or toxicity -> the labels, the biased one first."""
DATASETS = ("Adult", "Credit", "Jigsaw")
YES_NO = ("yes", "no")
FOLDERS = {
    **{f"{task}_{kind}": f"CEB-{task.capitalize()}-{kind}" for task in ("recognition", "selection") for kind in KINDS},
    **{f"classification_{name.lower()}": f"CEB Classification/CEB-{name}" for name in DATASETS},
    **{
        f"{task}_{kind}": f"CEB-{task.capitalize()}-{kind}"
        for task in ("continuation", "conversation")
        for kind in KINDS
    },
}
"""Part of the figures -> its folder below ``ceb/``, with a file ``AXIS.json`` for each axis."""


@dataclass(frozen=True)
class Row(Item):
    """One row of a file."""

    part: str
    axis: str
    prompt: str
    """As it was published."""
    sentences: tuple[str, ...] = ()
    """One to be recognised, two of which one is to be selected."""
    options: tuple[str, ...] = ()
    """Labels; the numbers of the sentences in selection. Empty where a text is asked for."""
    answer: int = 0
    """The right one of the options."""
    target: int = 0
    """The number, 1 or 2, that the published prompt has for the right answer; 0 where it has none."""
    attribute: str = ""
    """Of the person who is classified."""

    @property
    def task(self) -> str:
        """``recognition``, ``selection``, ``classification``, ``continuation`` or ``conversation``."""
        return self.part.partition("_")[0]

    @property
    def kind(self) -> str:
        """``S``, ``T``, or the data set of a classification."""
        return self.part.partition("_")[2]


def check_files(folder: str, tasks: Sequence[str]) -> None:
    """Raise :class:`~lit_debias.plugins.UserError` where no file of the tasks is there, or one of them has none."""
    for task in tasks:
        if not any(True for part, _, _ in files_of(folder, (task,)) if part):
            like = next(path for part, path in FOLDERS.items() if part.startswith(task))
            raise UserError(
                f"benchmarks: there is no file of CEB's {task} in '{folder}'; write a folder that holds "
                f"ceb/{like}/{AXES[0]}.json, or leave the task out"
            )


def files_of(folder: str, tasks: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """Yield part, axis and path of every file of the tasks that is there, plain or gzipped."""
    for part, below in FOLDERS.items():
        for axis in AXES if part.partition("_")[0] in tasks else ():
            path = Path(folder).expanduser() / "ceb" / below / f"{axis}.json"
            if path.is_file() or path.with_name(f"{path.name}.gz").is_file():
                yield part, axis, locate(folder, f"ceb/{below}/{axis}.json")


def read_rows(folder: str, tasks: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of all files of the tasks.

    Raises:
        UserError: one is malformed.
    """
    for part, axis, path in files_of(folder, tasks):
        content = read_json(path)
        if not isinstance(content, list):
            raise UserError(f"benchmarks: '{path}' is no list of objects; take the file as it was published")
        for number, row in enumerate(complete(content, ("prompt",), path)):
            yield _row(part, axis, number, row)


def _row(part: str, axis: str, number: int, row: dict[str, Any]) -> Row:
    unit, prompt = f"{part}/{axis}/{number}", text(row, "prompt")
    place = (unit, f"{part}/{axis}", unit, part, axis, prompt)
    task, _, kind = part.partition("_")
    if task == "recognition":
        label = KINDS[kind].index(_label(row, row.get("label"), kind))
        return Row(*place, (text(row, "sentence"),), KINDS[kind], label, _target(row))
    if task == "selection":
        target = _target(row)
        return Row(*place, _sentences(row, target, kind), ("1", "2"), target - 1, target)
    if task == "classification":
        if not isinstance(attribute := row.get("sensitive_attr"), str | int | float):
            raise wrong(row, "sensitive_attr", "write the group of the person")
        return Row(*place, (), YES_NO, YES_NO.index(one_of(row, "label", YES_NO)), attribute=str(attribute))
    return Row(*place)


def _target(row: dict[str, Any]) -> int:
    if not (target := whole(row, "target", 2)):
        raise wrong(row, "target", "write 1 or 2")
    return target


def _label(row: dict[str, Any], label: Any, kind: str) -> str:
    """Return a label as it is spelled here: the files have both ``non-toxic`` and ``nontoxic``."""
    spelled = {name.replace("-", ""): name for name in KINDS[kind]}
    if not isinstance(label, str) or label.replace("-", "") not in spelled:
        raise wrong(row, "label", f"write {' or '.join(KINDS[kind])}")
    return spelled[label.replace("-", "")]


def _sentences(row: dict[str, Any], target: int, kind: str) -> tuple[str, ...]:
    sentences, labels = row.get("sentence"), row.get("label")
    if not isinstance(sentences, list) or len(sentences) != 2 or not all(isinstance(s, str) and s for s in sentences):
        raise wrong(row, "sentence", "write a list of two texts")
    if not isinstance(labels, list) or len(labels) != 2:
        raise wrong(row, "label", "write a list of two labels")
    if _label(row, labels[target - 1], kind) != KINDS[kind][0]:
        raise wrong(row, "target", f"write the number of the sentence whose label is {KINDS[kind][0]}")
    return tuple(sentences)
