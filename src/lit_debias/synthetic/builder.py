"""Draws the records of the synthetic data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from random import Random
from typing import Any

from lit_debias.data.tables import Row
from lit_debias.errors import UserError
from lit_debias.synthetic.cases import Case, Cell, draw_case, part_of_family, write_prompt
from lit_debias.synthetic.responses import ResponseWriter, Style, draw_style, harden, labels
from lit_debias.synthetic.splits import SHARES, Pool, make_pool
from lit_debias.synthetic.taxonomy import Taxonomy

Tables = dict[str, dict[str, list[Row]]]
"""``prompts`` and ``responses`` -> split -> records."""
ATTEMPTS = 50
"""Draws of a new text before one that already exists means that the grammar is exhausted."""
HARD_NEGATIVE_SHARE = 0.7
"""Share of the second fair response of a prompt that becomes a hard negative."""


def build(taxonomy: Taxonomy, size: int, seed: int, include_harmful: bool = True) -> Tables:
    """Return ``{"prompts": {split: records}, "responses": {split: records}}``.

    Raises:
        UserError: the size is too small for every split to have a pair of twins, or larger than the grammar allows.
    """
    intensities = (0, 1, 2, 3, 4, 0) if include_harmful else (0, 1, 2, 0)
    pairs = size / (2 * len(intensities))
    if pairs * min(SHARES.values()) < 0.5:
        least = int(len(intensities) / min(SHARES.values()))
        raise UserError(f"--size {size} leaves a split empty; write at least {least}")
    tables: Tables = {"prompts": {}, "responses": {}}
    builder = _Builder(taxonomy, seed, intensities)
    for split, share in SHARES.items():
        pool = make_pool(taxonomy, split, include_harmful)
        prompts, responses = builder.split(pool, ceil(round(share * pairs, 6)))  # 0.07 * 100 is 7.000000000000001
        tables["prompts"][split], tables["responses"][split] = prompts, responses
    return tables


class _Builder:
    """Draws twins and their responses; no text is ever used twice."""

    def __init__(self, taxonomy: Taxonomy, seed: int, intensities: tuple[int, ...]) -> None:
        self.taxonomy = taxonomy
        self.writer = ResponseWriter(taxonomy)
        self.seed = seed
        self.intensities = intensities
        self.used: set[str] = set()

    def split(self, pool: Pool, pairs: int) -> tuple[list[Row], list[Row]]:
        """Return the prompts and the responses of ``pairs`` pairs of twins."""
        prompts: list[Row] = []
        responses: list[Row] = []
        cells = pool.cells(Random(f"{self.seed}/{pool.split}"))
        for number in range(pairs):
            twin_id = f"{pool.split}-{number:06d}"
            cases, records = self._twins(pool, twin_id, cells)
            for case, record in zip(cases, records, strict=True):
                prompts.append(record)
                responses += self._responses(pool, case, record)
        return prompts, responses

    def _twins(self, pool: Pool, twin_id: str, cells: Iterator[Any]) -> tuple[tuple[Case, Case], tuple[Row, Row]]:
        for attempt in range(ATTEMPTS):
            cell, scenario = next(cells)
            words = f"{self.seed}/{twin_id}/{attempt}"
            first, second = (draw_case(cell, scenario, swapped, Random(words)) for swapped in (False, True))
            a, b = (self._prompt(case, f"{twin_id}{letter}", words) for case, letter in ((first, "a"), (second, "b")))
            if a["prompt"] != b["prompt"] and not {a["prompt"], b["prompt"]} & self.used:
                self.used |= {a["prompt"], b["prompt"]}
                for own, other in ((a, b), (b, a)):
                    own |= {"twin_id": twin_id, "counterfactual_prompt": other["prompt"], "split": pool.split}
                return (first, second), (a, b)
        raise UserError(f"{pool.split}: the wording is exhausted; write a smaller --size or add frames to prompts.yaml")

    def _prompt(self, case: Case, prompt_id: str, words: str) -> Row:
        written = write_prompt(self.taxonomy, case, Random(words))
        premise = Style(2, "positive" if case.positive and case.cell.family.kind == "leading" else "negative")
        texts = [self.writer.write(case, style, Random(words))[0] for style in (Style(0), premise)]
        return {
            "prompt_id": prompt_id,
            "prompt": written.text,
            **_about(case),
            "counterfactual_group": case.contrast.id,
            "reference": texts[0],
            "biased": texts[1],
            "choices": written.choices,
            "answer": written.answer,
            "biased_choice": written.biased_choice,
            "ambiguous": case.ambiguous,
        }

    def _responses(self, pool: Pool, case: Case, prompt: Row) -> Iterator[Row]:
        for index, intensity in enumerate(self.intensities):
            rng = Random(f"{self.seed}/{prompt['prompt_id']}/{index}")
            style = draw_style(case, intensity, rng)
            if index == len(self.intensities) - 1 and rng.random() < HARD_NEGATIVE_SHARE:
                style = harden(style, case, rng)
            text, specific = self._new_response(pool, case, style, rng, prompt["prompt"])
            yield {
                "response_id": f"{prompt['prompt_id']}{index}",
                "prompt_id": prompt["prompt_id"],
                "prompt": prompt["prompt"],
                "response": text,
                **_about(case),
                "intensity": style.intensity,
                "stance": style.stance,
                "corruption": style.corruption,
                "hard_negative": style.hard_negative,
                **labels(style, specific),
                "split": pool.split,
            }

    def _new_response(self, pool: Pool, case: Case, style: Style, rng: Random, prompt: str) -> tuple[str, bool]:
        for _ in range(ATTEMPTS):
            about = self._elsewhere(pool, case, rng) if style.corruption == "off_topic" else case
            text, specific = self.writer.write(about, style, rng, prompt)
            if text not in self.used:
                self.used.add(text)
                return text, specific
            style = replace(style, length=style.length + 1)  # a longer text has more ways to be new
        raise UserError(f"{pool.split}: the wording is exhausted; write a smaller --size or add to responses.yaml")

    def _elsewhere(self, pool: Pool, case: Case, rng: Random) -> Case:
        """Return an open case of the same split with another pair of groups, theme and scenario."""
        cell = Cell(
            rng.choice([family for family in pool.families["open"] if part_of_family(family) == case.part]),
            rng.choice([pair for category in pool.pairs for pair in category if pair != case.cell.pair]),
            rng.choice([theme for theme in pool.themes if theme != case.cell.theme]),
        )
        scenario = rng.choice([scenario for scenario in pool.scenarios if scenario != case.scenario])
        return draw_case(cell, scenario, rng.random() < 0.5, rng)


def _about(case: Case) -> dict[str, str]:
    return {
        "category": case.cell.pair.category,
        "group": case.group.id,
        "theme": case.cell.theme.id,
        "scenario": case.scenario.id,
        "template_id": case.cell.family.id,
        "prompt_kind": case.cell.family.kind,
    }
