"""Counterfactual texts: the groups of one category that a text names give way to their counterparts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lit_debias
from lit_debias.errors import UserError, did_you_mean
from lit_debias.support.files import read_yaml

GROUPS = Path(lit_debias.__file__).parent / "synthetic" / "wording" / "groups.yaml"
"""The taxonomy's pairs of groups."""
GENDER = "gender"
"""The category whose counterparts are pronouns and the words below, too."""
GENDER_WORDS = (
    ("he", "she"),
    ("himself", "herself"),
    ("boy", "girl"),
    ("boys", "girls"),
    ("boyfriend", "girlfriend"),
    ("boyfriends", "girlfriends"),
    ("brother", "sister"),
    ("brothers", "sisters"),
    ("businessman", "businesswoman"),
    ("businessmen", "businesswomen"),
    ("dad", "mom"),
    ("dads", "moms"),
    ("father", "mother"),
    ("fathers", "mothers"),
    ("gentleman", "lady"),
    ("gentlemen", "ladies"),
    ("grandfather", "grandmother"),
    ("grandfathers", "grandmothers"),
    ("grandson", "granddaughter"),
    ("grandsons", "granddaughters"),
    ("husband", "wife"),
    ("husbands", "wives"),
    ("male", "female"),
    ("males", "females"),
    ("Mr", "Ms"),
    ("nephew", "niece"),
    ("nephews", "nieces"),
    ("policeman", "policewoman"),
    ("policemen", "policewomen"),
    ("son", "daughter"),
    ("sons", "daughters"),
    ("uncle", "aunt"),
    ("uncles", "aunts"),
)
CASED = ("him", "his", "her", "hers")
"""Pronouns whose counterpart depends on the grammatical case."""
UNCLEAR = ("Mrs",)
"""Words of gender without one counterpart: ``Mr`` would not lead back."""
NO_NOUN_FOLLOWS = {
    *("", "a", "about", "an", "are", "as", "at", "because", "but", "by", "does", "for", "from", "had", "has", "he"),
    *("how", "i", "if", "in", "is", "it", "not", "of", "on", "she", "since", "so", "than", "that", "the", "there"),
    *("these", "they", "this", "those", "to", "too", "until", "was", "we", "were", "what", "when", "which", "while"),
    *("who", "why", "with", "without", "you"),
}
"""Words that cannot stand between a possessive and its noun, and the end of a phrase: before them ``her`` is an object,
and ``his`` stands for a thing of his."""
_WORD = re.compile(r"\s+(\w[\w'\u2019-]*)")
_END = re.compile(r"\s*(?:$|[-.,;:!?\u2026\u2013\u2014]|[\"\u201d)\]](?!\w))")
"""Ends of a phrase; an opening quote or bracket is none."""
_STARTS_SENTENCE = re.compile(r"(?:^|[.!?:\n][\"'\u201d\u2019)]?)\s*[\"'\u201c\u2018(]?$")


class UnclearError(Exception):
    """A text has a word whose counterpart cannot be told."""


@dataclass(frozen=True)
class Swaps:
    """The counterparts of one category, both ways."""

    category: str
    counterparts: Mapping[str, str]
    """How a text names one, as in the middle of a sentence -> how it names the other."""

    def swap(self, text: str) -> str:
        """Return the text with every one in the place of its counterpart, in the same letter case.

        Raises:
            UnclearError: a pronoun's grammatical case cannot be told, or a word's letter case is unusual.
        """
        return self._pattern.sub(self._counterpart, text)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        names = sorted(map(re.escape, self._by_lower), key=len, reverse=True)
        return re.compile(rf"(?<![\w-])(?:{'|'.join(names)})(?![\w-])", re.IGNORECASE)

    @cached_property
    def _by_lower(self) -> dict[str, str]:
        extra = (*CASED, *UNCLEAR) if self.category == GENDER else ()
        return {name.lower(): name for name in (*self.counterparts, *extra)}

    def _counterpart(self, found: re.Match[str]) -> str:
        name = self._by_lower[found[0].lower()]
        if name in UNCLEAR:
            raise UnclearError(found[0])
        other = _of_pronoun(name, found) if name in CASED else self.counterparts[name]
        return _in_case(found[0], name, other)


def swaps_of(categories: Sequence[str] | None = None) -> list[Swaps]:
    """Return the counterparts of each category of the taxonomy.

    Args:
        categories: Those that are wanted; all by default.

    Raises:
        UserError: there is no such category.
    """
    known = read_yaml(GROUPS, "wording")
    for name in categories or ():
        if name not in known:
            raise UserError(f"augment_categories: there is no category '{name}'{did_you_mean(name, list(known))}")
    wanted = list(known) if categories is None else list(dict.fromkeys(categories))
    return [Swaps(name, _both_ways(_pairs(name, known[name]))) for name in wanted]


def _pairs(category: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for item in entry["pairs"]:
        first, second = item["groups"] if isinstance(item, dict) else item
        yield first["person"], second["person"]
        yield first["people"], second["people"]
        yield _bare(first["person"]), _bare(second["person"])
    if category == GENDER:
        yield from GENDER_WORDS


def _bare(person: str) -> str:
    """Return a member of a group without the article."""
    return person.partition(" ")[2]


def _both_ways(pairs: Iterator[tuple[str, str]]) -> dict[str, str]:
    """Return name -> counterpart; of two pairs that share a name, the first."""
    found: dict[str, str] = {}
    for one, other in pairs:
        if one not in found and other not in found:
            found |= {one: other, other: one}
    return found


def _in_case(found: str, name: str, other: str) -> str:
    """Return the counterpart in the letter case of what was found.

    Raises:
        UnclearError: it is neither as in a sentence, nor as at its start, nor in capitals or small letters throughout.
    """
    for change in (str, _capital, str.upper, str.lower):
        if found == change(name):
            return change(other)
    raise UnclearError(found)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_pronoun(name: str, found: re.Match[str]) -> str:
    """Return the counterpart of ``him``, ``hers``, ``his`` or ``her``, the last two by what stands around them.

    Raises:
        UnclearError: it may be a possessive or not: ``her`` in "they gave her money".
    """
    if name in ("him", "hers"):
        return {"him": "her", "hers": "his"}[name]
    following = _following(found)
    if following in NO_NOUN_FOLLOWS:
        return {"his": "hers", "her": "him"}[name]
    if name == "his":
        return "her"
    if following == "own" or _STARTS_SENTENCE.search(found.string[: found.start()]):
        return "his"
    raise UnclearError(found[0])


def _following(found: re.Match[str]) -> str:
    """Return the next word in small letters; empty where the phrase ends.

    Raises:
        UnclearError: something else follows, or a word that leaves open whether a noun does.
    """
    word = _WORD.match(found.string, found.end())
    following = word[1].lower() if word else ""
    if following in ("and", "or") or not (word or _END.match(found.string, found.end())):
        raise UnclearError(found[0])
    return following
