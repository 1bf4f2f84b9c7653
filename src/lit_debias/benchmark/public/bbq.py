"""BBQ (Parrish et al. 2022): questions whose context decides nothing, and their twins with evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lit_debias.benchmark.asking import Model
from lit_debias.benchmark.benchmark import Benchmark, Estimates, Figure
from lit_debias.benchmark.choosing import Question, Tally, choose
from lit_debias.benchmark.files import find, locate, one_of, read_csv, read_jsonl, text, whole, wrong
from lit_debias.benchmark.statistics import ClusterBootstrap

QUESTIONS = "bbq/*.jsonl"
METADATA = "bbq/additional_metadata.csv"
COLUMNS = (
    *("example_id", "question_index", "category", "context_condition", "context", "question", "label", "answer_info"),
    *("ans0", "ans1", "ans2"),
)
NAMES = "names"
UNKNOWN_TARGET = ("", "NA", "NaN", "nan")
"""What stands for a biased answer that nobody wrote down."""


class BBQ(Benchmark[Question, int | None]):
    """BBQ's bias scores over choices by log-probability.

    The metadata's ``target_loc`` says which answer is biased; the 16 items without it are left out. Items that stand a
    proper name for a group are scored apart (``bbq/names/...``). The model is asked context, question and the three
    answers; the answer with the highest mean log-probability of a token counts, so none is unparsed.
    """

    name = "bbq"
    title = "BBQ"
    meaning = "Questions whose context decides nothing (ambiguous) or decides (disambiguated) (Parrish et al. 2022)."
    about: Mapping[str, Figure] = {
        "accuracy_ambiguous": Figure("says unknown where the context decides nothing", "higher", 1.0),
        "accuracy_disambiguated": Figure("right where the context decides", "higher", 1.0),
        "s_amb": Figure("bias score, ambiguous, -1 to 1", "toward", 0.0),
        "s_dis": Figure("bias score, disambiguated, -1 to 1", "toward", 0.0),
    }

    def check(self, folder: str) -> None:
        """Raise UserError where questions or metadata are missing."""
        find(folder, QUESTIONS)
        locate(folder, METADATA)

    def read(self, folder: str) -> list[Question]:
        """Return the questions whose biased answer is known."""
        known = read_csv(locate(folder, METADATA), ("category", "example_id", "target_loc", "label_type"))
        metadata = {(row["category"], whole(row, "example_id")): row for row in known}
        rows = [row for path in find(folder, QUESTIONS) for row in read_jsonl(path, COLUMNS)]
        for row in rows:
            if (row["category"], whole(row, "example_id")) not in metadata:
                raise wrong(row, "example_id", f"write this one of {row['category']} into {METADATA} too")
        questions = [to_question(row, metadata[row["category"], whole(row, "example_id")]) for row in rows]
        return [question for question in questions if question is not None]

    def ask(self, model: Model, items: Sequence[Question]) -> list[int | None]:
        """Return the chosen answers."""
        return choose(model, items)

    def score(self, items: Sequence[Question], answers: Sequence[int | None], bootstrap: ClusterBootstrap) -> Estimates:
        """Return the figures over all label items, over name items, and of each category's label items."""
        found: Estimates = {}
        for part in ("", NAMES, *sorted({item.category for item in items} - {NAMES})):
            inside = [item.category == part if part else item.category != NAMES for item in items]
            ambiguous, clear = (
                Tally(
                    items,
                    answers,
                    [i and item.ambiguous == a for i, item in zip(inside, items, strict=True)],
                    bootstrap,
                )
                for a in (True, False)
            )
            figures = {
                "accuracy_ambiguous": ambiguous.accuracy(),
                "accuracy_disambiguated": clear.accuracy(),
                "s_amb": ambiguous.s_amb(),
                "s_dis": clear.s_dis(),
            }
            found |= {f"{part}/{name}" if part else name: figure for name, figure in figures.items()}
        return found


def to_question(row: dict[str, Any], metadata: dict[str, str]) -> Question | None:
    """Return a row as a question, or None where its metadata does not know the biased answer."""
    if metadata.get("target_loc", "") in UNKNOWN_TARGET:
        return None
    biased = whole(metadata, "target_loc", 2)
    choices = tuple(text(row, f"ans{i}") for i in range(3))
    category = NAMES if metadata["label_type"] == "name" else row["category"]
    return Question(
        # four rows in turn: with and without evidence, negative and non-negative question
        unit=f"{row['category']}/{whole(row, 'example_id') // 4}",
        stratum=f"{row['category']}/{metadata['label_type']}",
        cluster=f"{row['category']}/{row['question_index']}",
        category=category,
        ambiguous=one_of(row, "context_condition", ("ambig", "disambig")) == "ambig",
        text=f"{text(row, 'context')}\n\n{text(row, 'question')}\nAnswer with one of: {'; '.join(choices)}.",
        choices=choices,
        answer=whole(row, "label", 2),
        biased=biased,
        unknown=_unknown(row),
    )


def _unknown(row: dict[str, Any]) -> int:
    """Return the answer that says that nobody knows; ``answer_info`` may be JSON in a text."""
    info = row["answer_info"]
    try:
        about = json.loads(info) if isinstance(info, str) else info
        found = [i for i in range(3) if about[f"ans{i}"][1] == "unknown"]
    except (ValueError, LookupError, TypeError):
        found = []
    if len(found) != 1:
        raise wrong(row, "answer_info", 'write {"ans0": [NAME, GROUP], ...} with the group "unknown" once')
    return found[0]
