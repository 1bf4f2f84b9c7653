"""Which measures the columns of the data, the judges and the models allow, and why the others are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lit_debias.conversations import files_in
from lit_debias.data.tables import Row
from lit_debias.evaluation.measures import MEASURES, SMALLEST_GROUP
from lit_debias.evaluation.prompts import BIAS_KINDS, DEFAULTS, GENERATED_KINDS, NOBODY
from lit_debias.support.text import counted


@dataclass(frozen=True)
class Asked:
    """What an arm was asked, and by whom it was read."""

    rows: Sequence[Row]
    """Prompts, with the twins that the data only mentions."""
    readers: Collection[str]
    """Options that were given, of ``judges``, ``rewards``, ``perplexity_model`` and ``similarity_model``."""

    @property
    def of_data(self) -> list[Row]:
        """The rows that are in the data, without the twins that it only mentions."""
        return list({row["origin"]: row for row in reversed(self.rows)}.values())[::-1]

    def of_kinds(self, kinds: Collection[str]) -> list[Row]:
        """Return the rows of the data of some prompt kinds."""
        return [row for row in self.of_data if row["prompt_kind"] in kinds]

    def has(self, *columns: str, kinds: Collection[str] = GENERATED_KINDS) -> list[Row]:
        """Return the rows of the data in which no one of the columns is empty."""
        return [row for row in self.of_kinds(kinds) if all(row[name] != DEFAULTS[name] for name in columns)]


OF_PICTURES = ("min_skew", "max_skew")
"""Measures of prompts that show pictures."""
Need = Callable[[Asked], str | None]
"""Returns what is missing, in words; None where nothing is."""


def _shown(asked: Asked) -> str | None:
    return None if asked.of_kinds(BIAS_KINDS) else "no prompt is open or leading (column 'prompt_kind')"


def _answered(asked: Asked) -> str | None:
    return None if asked.of_kinds(GENERATED_KINDS) else "every prompt is a forced choice (column 'prompt_kind')"


def _control(asked: Asked) -> str | None:
    return None if asked.of_kinds(("control",)) else "no prompt is a control (column 'prompt_kind')"


def _groups(asked: Asked) -> str | None:
    sizes = Counter(row["group"] for row in asked.rows if row["prompt_kind"] in BIAS_KINDS and row["group"] != NOBODY)
    if not sizes:
        return "no prompt has a 'group'"
    if len(sizes) == 1:
        return "all prompts have the same 'group'"
    return None if max(sizes.values()) >= SMALLEST_GROUP else f"no 'group' has {SMALLEST_GROUP} prompts"


def _twins(asked: Asked) -> str | None:
    return None if _with_twin(asked) else "no two prompts share a 'twin_id', and none has a 'counterfactual_prompt'"


def _pairs(asked: Asked) -> str | None:
    for name in ("reference", "biased"):
        if not asked.has(name, kinds=BIAS_KINDS):
            return f"no open or leading prompt has a '{name}'"
    return None if asked.has("reference", "biased", kinds=BIAS_KINDS) else "no prompt has both 'reference' and 'biased'"


def _reference(asked: Asked) -> str | None:
    return None if asked.has("reference") else "no prompt that is answered has a 'reference'"


def _choices(place: str, ambiguous: bool) -> Need:
    def missing(asked: Asked) -> str | None:
        choosing = [row for row in asked.of_data if row["choices"]]
        if not choosing:
            return "no prompt has 'choices'"
        if any(row[place] >= 0 and row["ambiguous"] == ambiguous for row in choosing):
            return None
        return f"no prompt with 'choices' that is {'' if ambiguous else 'not '}'ambiguous' says '{place}'"

    return missing


def _reader(option: str, words: str) -> Need:
    return lambda asked: None if option in asked.readers else f"no {words} is named (--{option})"


def _groups_choose(asked: Asked) -> str | None:
    shown = [row for row in asked.of_data if shows_pictures(row) and row["choices"]]
    if not shown:
        return "no prompt that shows pictures has 'choices'"
    groups = {row["group"] for row in shown} - {NOBODY}
    return None if len(groups) > 1 else "prompts that show pictures and have 'choices' are of less than two groups"


def shows_pictures(row: Row) -> bool:
    """Return whether a prompt shows pictures."""
    return bool(files_in(row["messages"] or ""))


_judge = _reader("judges", "judge")
NEEDS: Mapping[str, tuple[Need, ...]] = {
    **dict.fromkeys(("bias_intensity", "bias_rate"), (_shown, _judge)),
    "worst_group": (_shown, _groups, _judge),
    **dict.fromkeys(("preference", "preference_margin"), (_pairs,)),
    "biased_choice": (_choices("biased_choice", ambiguous=True),),
    **dict.fromkeys(OF_PICTURES, (_groups_choose,)),
    **dict.fromkeys(("gap_intensity", "gap_distribution"), (_shown, _twins, _judge)),
    **dict.fromkeys(("gap_length", "gap_refusal"), (_shown, _twins)),
    **dict.fromkeys(("perplexity", "distinct_1", "distinct_2", "repetition", "numerals"), (_answered,)),
    **dict.fromkeys(("length", "truncated", "refusal"), (_answered,)),
    "perplexity_other": (_answered, _reader("perplexity_model", "other language model")),
    "prose_perplexity": (),
    "accuracy": (_choices("answer", ambiguous=False),),
    "similarity": (_reference, _reader("similarity_model", "sentence encoder")),
    "refusal_control": (_control,),
    "reward": (_answered, _reader("rewards", "reward")),
}
"""Measure -> what it needs; the first that is missing is the reason."""


NOTHING = "nothing came out that could be counted"
"""Why a measure is missing that has all it needs: a judge had no opinion, say."""


def not_measured(asked: Asked, measured: Iterable[str]) -> dict[str, str]:
    """Return the measures that are missing -> why, in the order of :data:`MEASURES`.

    Args:
        asked: What the arms were asked.
        measured: Names in the results, such as ``bias_intensity/judge``.
    """
    there = {name.partition("/")[0] for name in measured}
    if not any(map(shows_pictures, asked.rows)):
        there |= set(OF_PICTURES)  # nobody misses them
    return {name: obstacle(asked, name) or NOTHING for name in MEASURES if name not in there}


def obstacle(asked: Asked, measure: str) -> str | None:
    """Return what a measure lacks, in words; None where it has all it needs."""
    return next(filter(None, (need(asked) for need in NEEDS[measure])), None)


def notes(asked: Asked, all_rows: Sequence[Row]) -> list[str]:
    """Return what a reader of the figures should know about them.

    Args:
        asked: What the arms were asked.
        all_rows: What was there to be drawn.
    """
    found = []
    twins, everything = (len({row["twin_id"] for row in some}) for some in (asked.rows, all_rows))
    if twins < everything:
        paired = [count > 1 for count in Counter(row["twin_id"] for row in asked.rows).values()]
        together = ", each with its twin" if all(paired) else ", twins together" if any(paired) else ""
        found.append(
            f"a part of the data: {twins} of {counted(everything, 'prompt')}{together}, taken in turn from every "
            "category and prompt kind, so the mixture is not that of the data"
        )
    if "judges" not in asked.readers:
        found.append("no judge: bias of generations was not measured")
    clusters = {row["cluster"] for row in asked.rows if row["cluster"]}
    if clusters:
        found.append(f"intervals: the bootstrap draws the prompts of a 'cluster' together, {len(clusters)} of them")
    return found + coverage(asked)


def coverage(asked: Asked) -> list[str]:
    """Return notes on measures that rest on a part of the prompts, because others lack a column."""
    shown, answered = asked.of_kinds(BIAS_KINDS), asked.of_kinds(GENERATED_KINDS)
    parts = [
        ("preference", len(asked.has("reference", "biased", kinds=BIAS_KINDS)), shown, "'reference' or 'biased'"),
        ("similarity", len(asked.has("reference")), answered, "'reference'"),
        ("worst group", len(asked.has("group", kinds=BIAS_KINDS)), shown, "'group'"),
        ("twins", _with_twin(asked), shown, "a twin"),
    ]
    if "similarity_model" not in asked.readers:
        parts = [part for part in parts if part[0] != "similarity"]
    if _groups(asked) or "judges" not in asked.readers:
        parts = [part for part in parts if part[0] != "worst group"]
    return [
        f"{name}: on {count} of {counted(len(rows), 'prompt')} of the data, the others lack {what}"
        for name, count, rows, what in parts
        if 0 < count < len(rows)
    ]


def by_reason(missing: Mapping[str, str]) -> dict[str, list[str]]:
    """Return reason -> labels of the measures that it keeps away."""
    found: dict[str, list[str]] = {}
    for name, reason in missing.items():
        found.setdefault(reason, []).append(MEASURES[name].label if name in MEASURES else name)
    return found


def _with_twin(asked: Asked) -> int:
    """Return how many rows of the data that may show bias have a twin among those that are asked."""
    there = {(row["twin_id"], row["prompt"]) for row in asked.rows if row["prompt_kind"] in BIAS_KINDS}
    return sum((row["twin_id"], row["counterfactual_prompt"]) in there for row in asked.of_kinds(BIAS_KINDS))
