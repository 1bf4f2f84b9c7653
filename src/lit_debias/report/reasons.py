"""What a judge said of the answers, and why: the part of the page that shows ``explanations.jsonl``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_debias.errors import UserError
from lit_debias.evaluation import explanations
from lit_debias.evaluation.explanations import Explained
from lit_debias.evaluation.records import Record
from lit_debias.report.sources import Evaluation
from lit_debias.rewards.explanation import Explanation
from lit_debias.support.text import counted

PER_TYPE = 2
"""Examples of each type of bias."""
DRAWS = 1000


@dataclass(frozen=True)
class Example:
    """An answer that the judge finds biased."""

    arm: str
    prompt: str
    parts: list[tuple[str, bool]]
    """The answer in pieces, and whether each is a keyword."""
    why: Explanation


@dataclass(frozen=True)
class Reasons:
    """The part of the page."""

    judge: str
    template: str
    """The first signs of the template's SHA-256."""
    arms: list[str]
    figures: list[tuple[str, list[dict[str, Any] | None]]]
    """What it is, and the estimate of each arm."""
    examples: dict[str, list[Example]]
    """Type of bias -> answers, those of the verdict's arm first."""


def reasons(evaluation: Evaluation, records: Mapping[str, Sequence[Record]], notes: list[str]) -> Reasons | None:
    """Return what lies beside the results; None where there is nothing, or nothing that belongs to them, with a note.

    Args:
        evaluation: Whose answers were explained.
        records: Arm -> its answers.
        notes: Get a line where explanations are left out.
    """
    path = evaluation.file.parent / explanations.NAME
    if not path.is_file():
        return None
    try:
        rows = explanations.load(path)
    except UserError as error:
        notes.append(str(error))
        return None
    said = {(arm, one.prompt, one.completion) for arm, some in records.items() for one in some}
    current = [row for row in rows if (row.arm, row.prompt, row.response) in said]
    if len(current) < len(rows):
        lost = counted(len(rows) - len(current), "explanation is", "explanations are")
        notes.append(f"{lost} of answers that are not those behind these figures; run `lit-debias explain` again")
    return _part(evaluation, current) if current else None


def _part(evaluation: Evaluation, rows: Sequence[Explained]) -> Reasons:
    by_arm = explanations.by_arm(rows)
    arms = [arm for arm in evaluation.arms if arm in by_arm]
    found = {arm: {k: e.as_dict() for k, e in explanations.figures(by_arm[arm], DRAWS, 0).items()} for arm in arms}
    names = dict.fromkeys(name for of_arm in found.values() for name in of_arm)
    order = sorted(names, key=lambda name: list(explanations.LABELS).index(name.partition("/")[0]))
    return Reasons(
        judge=rows[0].judge,
        template=rows[0].template_sha256[:12],
        arms=arms,
        figures=[(explanations.label(name), [found[arm].get(name) for arm in arms]) for name in order],
        examples=_examples(evaluation.arm, rows),
    )


def _examples(first: str, rows: Sequence[Explained]) -> dict[str, list[Example]]:
    """Return type of bias -> answers; one of several types stands where the fewest others do."""
    found: dict[str, list[Example]] = {}
    for row in sorted(rows, key=lambda row: row.arm != first):
        why = row.explanation
        if why is not None and why.types:
            of_type = min((found.setdefault(name, []) for name in why.types), key=len)
            if len(of_type) < PER_TYPE:
                of_type.append(Example(row.arm, row.prompt, marked(row.response, why.keywords), why))
    return {name: some for name, some in sorted(found.items()) if some}


def marked(text: str, keywords: Sequence[str]) -> list[tuple[str, bool]]:
    """Return a text in pieces, each with whether it is one of the keywords, whatever their case."""
    if not keywords:
        return [(text, False)]
    longest_first = "|".join(re.escape(word) for word in sorted(keywords, key=len, reverse=True))
    pieces = re.split(f"({longest_first})", text, flags=re.IGNORECASE)
    return [(piece, number % 2 == 1) for number, piece in enumerate(pieces) if piece]
