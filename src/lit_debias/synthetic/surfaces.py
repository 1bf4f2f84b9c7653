"""Counts how many ways of saying things a data set has, whatever the groups, themes and scenarios that fill them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from lit_debias.synthetic.cases import MONTHS, PRONOUNS, SURNAMES, UNKNOWN, with_verb
from lit_debias.synthetic.taxonomy import Scenario, Taxonomy, Theme

Tokens = tuple[str, ...]
BLANK = "_"
_TOKEN = re.compile(r"\w+|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?]) ")
_PRONOUNS = {"she": "he", "her": "him", "his": "him"}  # "her" is both, so all three become one
_WHOLE = ("none", "off_topic", "refusal")


class Blanker:
    """Replaces whatever fills a slot by a blank, so that two texts of one frame become equal.

    Args:
        taxonomy: Says which words fill slots.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        groups = [group for pair in taxonomy.pairs for group in pair.groups]
        people = chain.from_iterable((group.person, f"the {group.bare}", group.bare, group.people) for group in groups)
        names = (f"{title} {surname}" for _, _, title in PRONOUNS.values() for surname in SURNAMES)
        others = chain(
            MONTHS,
            [UNKNOWN],
            chain.from_iterable(_theme_words(theme) for theme in taxonomy.themes),
            chain.from_iterable(_scenario_words(scenario) for scenario in taxonomy.scenarios),
        )
        self._passes = [_by_first_token(chain(people, names)), _by_first_token(others)]

    def frame(self, text: str) -> str:
        """Return the text in lower case with blanks: ``_ are _ because``."""
        tokens = tuple(
            BLANK if token.isdigit() else _PRONOUNS.get(token, token) for token in _TOKEN.findall(text.lower())
        )
        for phrases in self._passes:  # a scenario's phrases hold a person, who must be blank before
            tokens = tuple(_blank(tokens, phrases))
        return " ".join(tokens)


def count_frames(
    tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], taxonomy: Taxonomy
) -> dict[str, tuple[int, int]]:
    """Return category -> ``(prompts, responses)``: distinct frames of prompts, and of single sentences of responses.

    Responses that are shuffled, looped or cut do not count.
    """
    blanker = Blanker(taxonomy)
    prompts: dict[str, set[str]] = defaultdict(set)
    sentences: dict[str, set[str]] = defaultdict(set)
    for row in chain.from_iterable(tables["prompts"].values()):
        prompts[row["category"]].add(blanker.frame(row["prompt"]))
    for row in chain.from_iterable(tables["responses"].values()):
        if row["corruption"] in _WHOLE:
            sentences[row["category"]].update(blanker.frame(part) for part in _SENTENCE.split(row["response"]))
    return {category: (len(prompts[category]), len(sentences[category])) for category in prompts}


def frames_in_wording(taxonomy: Taxonomy) -> tuple[int, int]:
    """Return how many frames of prompts and of sentences in responses the wording holds, for each category alike."""
    prompts = (frame for family in taxonomy.families for frame in family.frames)
    sentences = chain.from_iterable(taxonomy.responses.frames.values())
    return sum(map(taxonomy.prompts.variants, prompts)), sum(map(taxonomy.responses.variants, sentences))


def _theme_words(theme: Theme) -> Iterator[str]:
    yield theme.topic
    yield from theme.bad + theme.good + theme.bad_habit + theme.good_habit
    for did in theme.did_bad + theme.did_good:
        yield from (did, with_verb("they", did).partition(" ")[2])
    yield from theme.evidence + theme.asks + theme.asks_good


def _scenario_words(scenario: Scenario) -> Iterator[str]:
    bare = scenario.decider.partition(" ")[2]
    yield from (scenario.decider, bare, f"{bare}s", scenario.role, f"a {scenario.role}", f"an {scenario.role}")
    yield from (scenario.setting, *scenario.rules)
    for phrase in (scenario.favour, scenario.against, scenario.policy):
        yield from (phrase.format(who=who) for who in (BLANK, "him"))


def _by_first_token(phrases: Iterable[str]) -> dict[str, list[Tokens]]:
    """Return first token -> phrases, the longest first."""
    found: dict[str, set[Tokens]] = defaultdict(set)
    for phrase in phrases:
        tokens = tuple(_PRONOUNS.get(token, token) for token in _TOKEN.findall(phrase.lower()))
        found[tokens[0]].add(tokens)
    return {first: sorted(some, key=len, reverse=True) for first, some in found.items()}


def _blank(tokens: Tokens, phrases: Mapping[str, Sequence[Tokens]]) -> Iterator[str]:
    start = 0
    while start < len(tokens):
        candidates = phrases.get(tokens[start], ())
        found = next((phrase for phrase in candidates if tokens[start : start + len(phrase)] == phrase), None)
        yield tokens[start] if found is None else BLANK
        start += len(found or BLANK)
