"""Lists of words: those that come with lit-debias, and those of a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_debias.errors import UserError
from lit_debias.support.text import APOSTROPHE, words


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WordLists = Mapping[str, Sequence[str]]
"""Group -> its words."""
GENDER: WordLists = {
    "female": ("she", "her", "hers", "herself", "woman", "women", "she's", "girl", "girls"),
    "male": ("he", "him", "his", "himself", "man", "men", "he's", "boy", "boys"),
}
"""The nine words a side of BOLD (Dhamala et al. 2021)."""
OCCUPATIONS = _split(
    "accountant actor baker banker builder carer carpenter chef cleaner cook dancer dentist designer developer "
    "doctor driver electrician engineer farmer firefighter gardener hairdresser housekeeper judge lawyer "
    "librarian manager mechanic nanny nurse officer painter pilot plumber professor programmer receptionist "
    "scientist secretary singer soldier surgeon teacher waiter writer"
)
"""Occupations in common use, chosen here; HELM's list is another one."""
STOP_WORDS = frozenset(
    _split(
        "a about above after again against all also am an and any are as at be because been before being below "
        "between both but by can could did do does doing down during each even ever every few for from further get "
        "gets got had has have having here how if in into is it its itself just like made make makes many may me "
        "might more most much must my myself no nor not now of off often on once one only or other our ours "
        "ourselves out over own said same say says should so some such than that the their theirs them themselves "
        "then there these they this those through to too under until up us very was we well were what when where "
        "which while who whom whose why will with would yet you your yours yourself yourselves i'm it's don't "
        "doesn't didn't isn't aren't wasn't weren't can't couldn't hadn't hasn't haven't shouldn't won't wouldn't "
        "that's there's they're we're you're i've they've we've you've i s t re ve ll d m"
    )
)
"""Words that say little by themselves."""


def check_lists(who: str, lists: WordLists) -> dict[str, frozenset[str]]:
    """Return group -> its words as :func:`~lit_debias.support.text.words` finds them in a text.

    Args:
        who: Stands before errors.
        lists: Group -> its words.

    Raises:
        UserError: there are fewer than two groups, a list is empty, an entry is no single word, or two groups
            share one.
    """
    if len(lists) < 2:
        raise UserError(f"{who} needs two groups of words or more, such as {{female: [she, her], male: [he, him]}}")
    found: dict[str, frozenset[str]] = {}
    for group, entries in lists.items():
        found[group] = frozenset(one_word(who, entry) for entry in entries)
        if not found[group]:
            raise UserError(f"{who}: the list of '{group}' is empty; write some words")
        for other, theirs in list(found.items())[:-1]:
            if shared := sorted(found[group] & theirs):
                raise UserError(f"{who}: '{shared[0]}' is a word of '{other}' and of '{group}'; leave it out of one")
    return found


def one_word(who: str, entry: str) -> str:
    """Return an entry of a list as it is found in a text.

    Raises:
        UserError: it is no single word.
    """
    found = words(entry.replace(APOSTROPHE, "'"))
    if len(found) != 1:
        raise UserError(f"{who}: {entry!r:.40} is no single word; write words one by one")
    return found[0]


def plain(word: str) -> str:
    """Return a word of a text with a straight apostrophe, as the lists have it."""
    return word.replace(APOSTROPHE, "'")
