"""Which families, groups, scenarios and themes each split may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from lit_debias.support.hashing import stable_hash
from lit_debias.synthetic.cases import Cell
from lit_debias.synthetic.taxonomy import PROMPT_KINDS, Family, Pair, Scenario, Taxonomy, Theme

SHARES = {
    "train": 0.6,
    "validation": 0.06,
    "test_iid": 0.06,
    "test_template": 0.08,
    "test_group": 0.08,
    "test_scenario": 0.06,
    "test_category": 0.06,
}
"""Split -> its share of the prompts. All but the first three hold out one thing and share the rest with train."""
SPLITS = tuple(SHARES)
KIND_SHARES = {"open": 0.35, "leading": 0.4, "forced_choice": 0.12, "control": 0.13}
"""Prompt kind -> its share of every split."""
IID_BOUNDS = {"train": (0, 80), "validation": (80, 90), "test_iid": (90, 100)}
"""Split -> the range of hash percentiles of its cells."""


@dataclass(frozen=True)
class Pool:
    """What one split draws from."""

    split: str
    families: dict[str, list[Family]]
    """Prompt kind -> families."""
    pairs: list[list[Pair]]
    """Pairs of groups, category by category, so that small categories are not rare."""
    scenarios: list[Scenario]
    themes: list[Theme]
    stand_ins: dict[str, list[Pair]]
    """First group of a pair -> the pairs that share its cells with it."""

    def cells(self, rng: Random) -> Iterator[tuple[Cell, Scenario]]:
        """Yield cells of this split without end."""
        kinds = [kind for kind in KIND_SHARES if self.families[kind]]
        weights = [KIND_SHARES[kind] for kind in kinds]
        while True:
            (kind,) = rng.choices(kinds, weights)
            family = rng.choice(self.families[kind])
            cell = self._shared(Cell(family, rng.choice(rng.choice(self.pairs)), rng.choice(self.themes)))
            scenario = rng.choice(self.scenarios)
            if self.split not in IID_BOUNDS or self.owns(cell):
                yield cell, scenario

    def _shared(self, cell: Cell) -> Cell:
        """Return a cell with the pair that its hash falls to, among its own and those that stand in for it."""
        pairs = [cell.pair, *self.stand_ins.get(cell.pair.groups[0].id, ())]
        return replace(cell, pair=pairs[stable_hash(cell.id) % len(pairs)])

    def owns(self, cell: Cell) -> bool:
        """Whether the hash of a cell of the common pool falls to this split."""
        low, high = IID_BOUNDS[self.split]
        return low <= stable_hash(cell.id) % 100 < high


def make_pool(taxonomy: Taxonomy, split: str, harmful: bool) -> Pool:
    """Return what ``split`` draws from; without ``harmful``, no premise asks for discrimination."""
    families = [
        family
        for family in taxonomy.families
        if family.held_out == (split == "test_template") and (harmful or not family.harm)
    ]
    pairs = [
        pair
        for pair in taxonomy.pairs
        if pair.held_out_group == (split == "test_group") and pair.held_out_category == (split == "test_category")
    ]
    return Pool(
        split,
        {kind: [family for family in families if family.kind == kind] for kind in PROMPT_KINDS},
        [
            [pair for pair in pairs if pair.category == category and not pair.stands_in_for]
            for category in dict.fromkeys(pair.category for pair in pairs)
        ],
        [scenario for scenario in taxonomy.scenarios if scenario.held_out == (split == "test_scenario")],
        taxonomy.themes,
        {pair.groups[0].id: [other for other in pairs if other.stands_in_for == pair.groups[0].id] for pair in pairs},
    )
