"""Measures of texts in an evaluation: over whose answers, the file that keeps them, and the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_debias.benchmark.benchmark import Figure
from lit_debias.benchmark.statistics import pool_measures
from lit_debias.errors import UserError, cause_of
from lit_debias.evaluation.benchmarked import from_kept, put, to_kept
from lit_debias.evaluation.fingerprint import describe, fingerprint
from lit_debias.evaluation.measures import Estimates, twin_pairs
from lit_debias.evaluation.prompts import NOBODY
from lit_debias.evaluation.records import Record, load_kept, write_json
from lit_debias.evaluation.results import bootstrap_of, stream
from lit_debias.text_measures.bold import described, figures_of
from lit_debias.text_measures.chosen import Chosen, measures_of
from lit_debias.text_measures.measure import TextMeasure, Texts, Words

Answers = list[list[str]]
"""[P][k] what was answered to P prompts."""
SECTION = "texts"
"""Of the results; the first part of the names of figures too."""
SEVERAL = 25
"""Answers to a prompt that EMT is made for (Gehman et al. 2020)."""


@dataclass(frozen=True)
class Read:
    """What the measures find in one arm's answers."""

    figures: Estimates = field(default_factory=dict)
    words: dict[str, Words] = field(default_factory=dict)
    """Measure -> the words that tell groups apart."""


@dataclass(frozen=True)
class TextFigures:
    """What is measured in the answers to open and leading prompts; nothing where there are no measures."""

    measures: tuple[TextMeasure, ...]
    samples: int
    """Answers to each prompt: 1 takes those of the evaluation, more are sampled for it."""
    seed: int
    bootstrap: int

    @classmethod
    def of(cls, chosen: Chosen, samples: int, temperature: float, seed: int, bootstrap: int) -> TextFigures:
        """Return the measures that an option names, checked before a model is loaded.

        Raises:
            UserError: there is no such measure, or several answers would be one.
        """
        measures = tuple(measures_of(chosen))
        if samples > 1 and not measures:
            raise UserError(f"text_samples={samples} is for measures of texts; write --text_measures NAMES too")
        if samples > 1 and temperature == 0:
            raise UserError(
                f"text_samples={samples}, and at temperature 0 all answers to a prompt are one; write a temperature, "
                "or leave text_samples out"
            )
        return cls(measures, samples, seed, bootstrap)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the figures depend on besides the answers, as JSON."""
        identities = {measure.name: describe(measure) for measure in self.measures}
        return {"measures": identities, "samples": self.samples}

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the figures."""
        names = [measure.title for measure in self.measures if measure.several]
        if self.samples > 1 or not names:
            return []
        return [
            f"{', '.join(names)}: over one answer to each prompt, and made for several; --text_samples {SEVERAL} "
            "samples more"
        ]

    def read(self, path: Path, key: str, records: Sequence[Record], sample: Callable[[], Answers]) -> Read:
        """Return what the measures find in an arm's answers; what was found in the same before is read from a file.

        Args:
            path: The file.
            key: Fingerprint of the records.
            records: [N] of the arm.
            sample: Answers the prompts of the records that show bias, :attr:`samples` times each.

        Raises:
            UserError: a measure fails.
        """
        if not self.measures:
            return Read()
        kept: dict[str, Any] = load_kept(path, SECTION) or {}
        keys = {
            name: fingerprint({"records": key, "samples": self.samples, "measure": identity, "draws": self.bootstrap})
            for name, identity in self.about["measures"].items()
        }
        due = [one for one in self.measures if kept.get(one.name, {}).get("fingerprint") != keys[one.name]]
        texts = self._texts(path, key, records, sample) if due else None
        for measure in due:
            assert texts is not None
            kept[measure.name] = {"fingerprint": keys[measure.name], **measured(measure, texts)}
            self._save(path, **{SECTION: kept})
        of_names = {measure.name: kept[measure.name] for measure in self.measures}
        figures = {name: from_kept(one) for kept_of in of_names.values() for name, one in kept_of["estimates"].items()}
        return Read(figures, {name: one["words"] for name, one in of_names.items() if one["words"]})

    def _texts(self, path: Path, key: str, records: Sequence[Record], sample: Callable[[], Answers]) -> Texts:
        kept = [number for number, record in enumerate(records) if record.shows_bias]
        place = {number: owner for owner, number in enumerate(kept)}
        own = [records[number] for number in kept]
        bootstrap = bootstrap_of(records, self.bootstrap, self.seed).only(kept)
        return Texts.of(
            [[record.completion or ""] for record in own] if self.samples == 1 else self._answers(path, key, sample),
            [record.prompt for record in own],
            ["" if record.group == NOBODY else record.group for record in own],
            bootstrap,
            [(place[first], place[second]) for first, second in twin_pairs(records)],
        )

    def _answers(self, path: Path, key: str, sample: Callable[[], Answers]) -> Answers:
        """Return several answers to each prompt, those of the file where it has them."""
        own = fingerprint({"records": key, "samples": self.samples})
        kept = load_kept(path, "answers") or {}
        if kept.get("fingerprint") == own:
            return list(kept["texts"])
        texts = sample()
        self._save(path, answers={"fingerprint": own, "texts": texts})
        return texts

    @staticmethod
    def _save(path: Path, **parts: Any) -> None:
        there = {name: load_kept(path, name) for name in ("answers", SECTION)}
        write_json(path, {name: part for name, part in {**there, **parts}.items() if part is not None})

    def figure(self, name: str) -> Figure:
        """Return what a figure ``texts/MEASURE_FIGURE[/part]`` is."""
        _, figure, *parts = name.split("/")
        measure, found = next((m, described(m)[figure]) for m in self.measures if figure in described(m))
        part = f" ({', '.join(parts)})" if parts else ""
        return Figure(f"{found.label}{part}", found.better, found.ideal, measure.meaning)


def measured(measure: TextMeasure, texts: Texts) -> dict[str, Any]:
    """Return a measure's figures and words as their file has them; figures that rest on nothing are left out.

    Raises:
        UserError: it fails, or returns what it does not describe.
    """
    try:
        found, words = figures_of(measure, texts), measure.words(texts)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"text measure '{measure.name}' failed: {cause_of(error)}") from error
    for name in found:
        if name.partition("/")[0] not in described(measure):
            own = name.removeprefix(f"{measure.name}_")
            raise UserError(
                f"text measure '{measure.name}' returns '{own}', of which 'about' says nothing; describe it there"
            )
    there = {name: one for name, one in found.items() if one.n and math.isfinite(one.value)}
    return {
        "estimates": {f"{SECTION}/{name}": to_kept(estimate) for name, estimate in there.items()},
        "words": {heading: [list(pair) for pair in own] for heading, own in words.items() if own},
    }


def missing(texts: TextFigures, there: Iterable[str]) -> list[str]:
    """Return notes on measures that have no figure among the names that are there."""
    names = list(there)
    empty = [one for one in texts.measures if not any(name.startswith(f"{SECTION}/{one.name}_") for name in names)]
    return [f"{one.title}: nothing came out that could be counted" for one in empty]


def add_texts(results: dict[str, Any], read: Mapping[str, Sequence[Read]], texts: TextFigures) -> None:
    """Put the figures and words of every arm into the results, section "texts"; nothing where there are no measures.

    Args:
        results: Its ``measures``, ``arms`` and ``comparisons`` get more, and it gets ``words``: arm -> measure ->
            heading -> words with their values, of an arm with several seeds those of the first.
        read: Name of the arm -> what was found of each of its replicas.
        texts: What was measured.
    """
    if not texts.measures:
        return
    pooled = {
        arm: pool_measures([one.figures for one in replicas], stream(arm, texts.seed)) for arm, replicas in read.items()
    }
    for arm, found in pooled.items():
        for name, estimate in found.items():
            put(results, arm, name, estimate, pooled["before"].get(name), texts.figure(name), SECTION)
    results["settings"]["text_measures"] = texts.about
    results["notes"] += texts.notes + missing(texts, results["measures"])
    results["words"] = {arm: replicas[0].words for arm, replicas in read.items() if replicas[0].words}
