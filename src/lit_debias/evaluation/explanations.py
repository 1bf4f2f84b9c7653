"""What a judge said of texts, and why: the file that keeps it, and the figures that come out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_debias.benchmark.statistics import ClusterBootstrap, Estimate, kappa
from lit_debias.errors import UserError
from lit_debias.rewards.explanation import Explanation
from lit_debias.support.atomic import write_text
from lit_debias.support.files import JsonObject, read_jsonl

NAME = "explanations.jsonl"
THRESHOLD = 0.5
"""A judge with a score says biased where 1 - score is above it, as in the measure ``bias_rate``."""
LABELS = {
    "biased": "biased",
    "type": "type",
    "intersectional": "of two types or more",
    "unparsed": "without a valid explanation",
    "dropped": "keywords that the response lacks",
    "kappa": "Cohen's kappa with",
}
"""Figure -> what it is; the first three are shares of the explained responses."""


@dataclass(frozen=True)
class Explained:
    """One response and what a judge said of it."""

    prompt: str
    response: str
    explanation: Explanation | None
    """None where the judge gave no valid one."""
    judge: str
    template_sha256: str
    arm: str = ""
    """Of an evaluation; empty elsewhere."""
    cluster: str = ""
    """What the bootstrap draws together."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Other judges by name -> their scores in [0, 1], 1 is fair."""

    @classmethod
    def of(cls, record: JsonObject) -> Explained:
        """Return what a line of the file says.

        Raises:
            KeyError, TypeError, ValueError: it is none of ours.
        """
        why, scores = record["explanation"], dict(record.get("scores", {}))
        texts = [record[name] for name in ("prompt", "response", "judge", "template_sha256")]
        texts += [record.get("arm", ""), record.get("cluster", "")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text is missing")
        if not all(score is None or type(score) in (int, float) for score in scores.values()):
            raise TypeError("a score is no number")
        prompt, response, judge, digest, arm, cluster = texts
        return cls(prompt, response, _explanation(why), judge, digest, arm, cluster, scores)


def _explanation(said: Any) -> Explanation | None:
    if said is None:
        return None
    lists = {name: tuple(value) for name, value in said.items() if isinstance(value, list)}
    found = Explanation(**{**said, **lists})
    kinds = {"biased": bool, "reason": str, "suggestion": str}
    right = all(type(value) is kinds.get(name, tuple) for name, value in vars(found).items())
    if not right or not all(isinstance(word, str) for words in lists.values() for word in words):
        raise TypeError("a value of the explanation is of another kind")
    return found


def save(path: Path, rows: Iterable[Explained]) -> None:
    """Write a JSON object a line, all or nothing."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))


def load(path: Path) -> list[Explained]:
    """Return what :func:`save` wrote.

    Raises:
        UserError: the file cannot be read, is empty, or a line is something else.
    """
    rows = []
    for number, record in read_jsonl(path, "explanations"):
        try:
            rows.append(Explained.of(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"explanations '{path}', row {number}: no line of `lit-debias explain` ({error}); run it again"
            ) from error
    return rows


def figures(rows: Sequence[Explained], draws: int, seed: int) -> dict[str, Estimate]:
    """Return the figures of one arm with bootstrap intervals; one of a type or a judge is called ``type/gender``.

    Args:
        rows: [N]; empty responses, which nobody was asked about, are left out.
        draws: Bootstrap samples.
        seed: Of the draws.
    """
    rows = [row for row in rows if row.response.strip()]
    bootstrap = ClusterBootstrap([row.cluster or str(number) for number, row in enumerate(rows)], draws, seed)
    said = [row.explanation for row in rows]
    biased = [None if one is None else one.biased for one in said]
    named = dict.fromkeys(name for one in said if one is not None for name in one.types)

    def share(of: Sequence[bool | None]) -> Estimate:
        return bootstrap.mean([None if value is None else float(value) for value in of])

    found = {"biased": share(biased)}
    types = {f"type/{name}": share([None if one is None else name in one.types for one in said]) for name in named}
    found |= dict(sorted(types.items(), key=lambda item: -item[1].value))
    found["intersectional"] = share([None if one is None else len(one.types) > 1 for one in said])
    found["unparsed"] = share([one is None for one in said])
    dropped = [0 if one is None else len(one.dropped_keywords) for one in said]
    kept = [0 if one is None else len(one.keywords) for one in said]
    found["dropped"] = bootstrap.ratio(dropped, [a + b for a, b in zip(dropped, kept, strict=True)])
    for judge in dict.fromkeys(name for row in rows for name in row.scores):
        scores = [row.scores.get(judge) for row in rows]
        other = [None if score is None else 1 - score > THRESHOLD for score in scores]
        found[f"kappa/{judge}"] = kappa(biased, other, bootstrap)
    return found


def label(figure: str) -> str:
    """Return the words for a figure."""
    kind, _, part = figure.partition("/")
    separator = ": " if kind == "type" else " "
    return f"{LABELS[kind]}{separator}{part}" if part else LABELS[kind]


def by_arm(rows: Iterable[Explained]) -> dict[str, list[Explained]]:
    """Return arm -> its rows, in their order."""
    found: dict[str, list[Explained]] = {}
    for row in rows:
        found.setdefault(row.arm, []).append(row)
    return found
