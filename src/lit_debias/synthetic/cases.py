"""One prompt to be written: who, what, where, and the words that fill the slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lit_debias.support.hashing import stable_hash
from lit_debias.synthetic.grammar import Part, capitalise
from lit_debias.synthetic.taxonomy import Family, Group, Pair, Scenario, Taxonomy, Theme

SURNAMES = ("Lin", "Zhou", "Chen", "Tang", "Gao", "Shen", "Luo", "Feng", "Xu", "Cao")
MONTHS = ("March", "April", "May", "June", "August", "September", "October", "November")
UNKNOWN = "cannot be determined"
PRONOUNS = {"he": ("him", "his", "Mr"), "she": ("her", "her", "Ms"), "they": ("them", "their", "Mx")}
"""Pronoun -> its object, its possessive, and the title of a name."""
PLURAL = {"is": "are", "was": "were", "looks": "look"}
"""Verb after he or she -> after they."""
POSITIVE = {"leading": 0.15, "control": 0.5, "forced_choice": 0.3}
"""Prompt kind -> share of prompts whose stereotype, evidence or question is a flattering one."""


@dataclass(frozen=True)
class Cell:
    """The unit that splits deal: one family, pair of groups and theme; the twins of a prompt share it."""

    family: Family
    pair: Pair
    theme: Theme

    @property
    def id(self) -> str:
        """Name of the cell."""
        return f"{self.family.id}|{self.pair.id}|{self.theme.id}"


@dataclass(frozen=True)
class Case:
    """A cell with everything drawn except the wording; its twin has the groups exchanged."""

    cell: Cell
    scenario: Scenario
    group: Group
    contrast: Group
    positive: bool
    """Valence of the premise (leading), of the evidence (control) or of the question (forced choice)."""
    ambiguous: bool
    """Whether a forced choice lacks the evidence that would settle it."""
    right_is_group: bool
    """Whether that evidence points to ``group`` and not to ``contrast``."""
    slots: dict[str, str | Sequence[str]]

    @property
    def part(self) -> Part:
        """The response frames that this case may use."""
        return part_of_family(self.cell.family)


def part_of_family(family: Family) -> Part:
    """Return the response frames that go with a family."""
    return part_of_name(family.id, family.held_out)


def part_of_name(template_id: str, held_out: bool) -> Part:
    """Return the response frames of a template; its halves are the folds 0/2 and 1/2 of ResponseDataModule."""
    return "held_out" if held_out else 1 if stable_hash(template_id) % 2 else 0


def draw_case(cell: Cell, scenario: Scenario, swapped: bool, rng: Random) -> Case:
    """Return one of two twins; the same state of ``rng`` gives both the same words."""
    kind, theme = cell.family.kind, cell.theme
    first, second = cell.pair.groups[::-1] if swapped else cell.pair.groups
    draws = [rng.random() for _ in range(4)]
    positive = not cell.family.harm and draws[0] < POSITIVE.get(kind, 0.0)
    pronoun = first.pronoun or ("he" if draws[1] < 0.5 else "she")
    him, his, title = PRONOUNS[pronoun]
    right_is_group = draws[3] < 0.5
    right, wrong = (first, second) if right_is_group else (second, first)
    pick, other = (second, first) if positive else (first, second)  # of a stereotype against the first group
    slots: dict[str, str | Sequence[str]] = {
        **_person_slots(first, "person", "people"),
        **_person_slots(second, "contrast", "contrast_people"),
        **_scenario_slots(scenario, first, him),
        "the_right": f"the {right.bare}",
        "the_wrong": f"the {wrong.bare}",
        "the_pick": f"the {pick.bare}",
        "the_other": f"the {other.bare}",
        "name": f"{title} {rng.choice(SURNAMES)}",
        "he": pronoun,
        **{f"he_{verb}": with_verb(pronoun, verb) for verb in PLURAL},
        "him": him,
        "his": his,
        "topic": theme.topic,
        "asks": rng.choice(theme.asks_good if positive else theme.asks),
        "evidence": theme.evidence,
        "trait": rng.choice(theme.good if positive else theme.bad),
        "habit": rng.choice(theme.good_habit if positive else theme.bad_habit),
        "did": (did := rng.choice(theme.did_good if positive else theme.did_bad)),
        "he_did": with_verb(pronoun, did),
        "month": MONTHS,
        "number": [str(number) for number in range(2, 90)],
    }
    return Case(
        cell, scenario, first, second, positive, kind == "forced_choice" and draws[2] < 0.5, right_is_group, slots
    )


def _person_slots(group: Group, person: str, people: str) -> dict[str, str]:
    return {person: group.bare, f"a_{person}": group.person, f"the_{person}": f"the {group.bare}", people: group.people}


def _scenario_slots(scenario: Scenario, group: Group, him: str) -> dict[str, str | Sequence[str]]:
    decider = scenario.decider.partition(" ")[2]
    return {
        "decider": scenario.decider,
        "decider_bare": decider,
        "decider_plural": f"{decider}s",
        "role": scenario.role,
        "a_role": f"{'an' if scenario.role[0] in 'aeiou' else 'a'} {scenario.role}",
        "setting": scenario.setting,
        "rule": scenario.rules,
        "policy": scenario.policy.format(who=group.people),
        "favour_people": scenario.favour.format(who=group.people),
        "favour_person": scenario.favour.format(who=group.person),
        "favour_him": scenario.favour.format(who=him),
        "against_people": scenario.against.format(who=group.people),
        "against_person": scenario.against.format(who=group.person),
    }


def with_verb(pronoun: str, phrase: str) -> str:
    """Return a pronoun with a phrase that begins with its verb, as ``he was late`` or ``they were late``."""
    verb, space, rest = phrase.partition(" ")
    return f"{pronoun} {PLURAL.get(verb, verb) if pronoun == 'they' else verb}{space}{rest}"


@dataclass(frozen=True)
class WrittenPrompt:
    """The text of a prompt and, for a forced choice, its options."""

    text: str
    choices: list[str]
    answer: int
    """Index of the right choice; -1 without choices."""
    biased_choice: int
    """Index of the choice that follows the stereotype; -1 without choices."""


def write_prompt(taxonomy: Taxonomy, case: Case, rng: Random) -> WrittenPrompt:
    """Word the prompt of a case; twins that get the same state of ``rng`` differ in the group alone."""
    group, contrast = f"the {case.group.bare}", f"the {case.contrast.bare}"
    order = rng.sample(range(3), 3)
    choices = [[group, contrast, UNKNOWN][index] for index in order]
    slots = case.slots | {
        "options": f"{choices[0]}, {choices[1]}, or {choices[2]}",
        "fact": "" if case.ambiguous else taxonomy.prompts.words["proof"],
    }
    text = capitalise(taxonomy.prompts.expand(rng.choice(case.cell.family.frames), slots, rng))
    if case.cell.family.kind != "forced_choice":
        return WrittenPrompt(text, [], -1, -1)
    right = 2 if case.ambiguous else 0 if case.right_is_group else 1
    return WrittenPrompt(text, choices, order.index(right), order.index(1 if case.positive else 0))
