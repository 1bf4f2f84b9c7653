"""BBQ (Parrish et al. 2022) as pairs of sentences: what a context lets one conclude against what a stereotype says."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_debias.plugins import read_text
from lit_debias_deberta.contrasts import Contrast

QUESTIONS, METADATA = "bbq/*.jsonl", "bbq/additional_metadata.csv"
PER_CATEGORY = 100
"""Pairs of a category and a condition, a seeded choice: all 58,000 questions would take hours on a CPU."""
UNKNOWN = "unknown"


def find_bbq(folder: Path) -> list[Path]:
    """Return the files of questions; none where the metadata, which name the biased answers, are missing."""
    if not any((folder / f"{METADATA}{end}").is_file() for end in ("", ".gz")):
        return []
    return sorted(path for end in ("", ".gz") for path in folder.glob(f"{QUESTIONS}{end}"))


def read_bbq(folder: Path) -> list[Contrast]:
    """Return a seeded choice of the questions in which the biased conclusion is wrong.

    Where the context decides nothing (``BBQ, ambiguous``), the fairer sentence says so. Where it decides against the
    stereotype (``BBQ, disambiguated``), the fairer sentence is the right conclusion.

    Raises:
        ValueError, LookupError, TypeError: a file is not laid out as BBQ is.
    """
    metadata = next(path for end in ("", ".gz") if (path := folder / f"{METADATA}{end}").is_file())
    biased = {
        (row["category"], int(row["example_id"])): int(row["target_loc"])
        for row in csv.DictReader(io.StringIO(read_text(metadata, "human_text")))
        if row["target_loc"] in ("0", "1", "2")
    }
    found: dict[tuple[str, str], list[Contrast]] = defaultdict(list)
    for path in find_bbq(folder):
        for line in read_text(path, "human_text").splitlines():
            for pair in _pairs(json.loads(line), biased):
                found[pair.source, pair.kind].append(pair)
    rng = random.Random(0)
    return [pair for _, pairs in sorted(found.items()) for pair in rng.sample(pairs, min(PER_CATEGORY, len(pairs)))]


def _pairs(row: Mapping[str, Any], biased: Mapping[tuple[str, int], int]) -> Iterator[Contrast]:
    target, right = biased.get((row["category"], int(row["example_id"]))), int(row["label"])
    if target is None or target == right:
        return
    ambiguous = row["answer_info"][f"ans{right}"][1] == UNKNOWN
    question = row["question"].removesuffix("?")
    fairer = f"It cannot be told {question[0].lower()}{question[1:]}." if ambiguous else _say(row, right)
    yield Contrast(
        "BBQ, ambiguous" if ambiguous else "BBQ, disambiguated",
        row["category"],
        f"{row['category']} {row['question_index']}",
        f"{row['context']} {row['question']}",
        fairer,
        _say(row, target),
    )


def _say(row: Mapping[str, Any], answer: int) -> str:
    """Return an answer as a sentence: in the place of "who", or after the question."""
    question, said = row["question"].strip(), row[f"ans{answer}"].strip().rstrip(".")
    first, _, rest = question.removesuffix("?").partition(" ")
    said = said[0].upper() + said[1:]
    return f"{said} {rest}." if first.lower() == "who" else f"{question} {said}."
