"""Expands frames with slots: ``{people} are {very} {trait}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from random import Random
from typing import Literal

Part = Literal["held_out", 0, 1]
"""Which share of the response frames is used: those of test_template, or a half of the others."""
Slots = Mapping[str, str | Sequence[str]]

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(^|[.!?] )([a-z])")
_PERIOD = 5  # one frame in five is held out, two go to each half


class Grammar:
    """Rules by name, each with its alternatives.

    Args:
        words: Paraphrase sets that every part of the data may use.
        frames: Rules whose alternatives are dealt to the three parts, so that held-out data has unseen wording.

    Raises:
        ValueError: a rule has no alternatives, or a frame rule has too few to be dealt.
    """

    def __init__(self, words: Mapping[str, Sequence[str]], frames: Mapping[str, Sequence[str]]) -> None:
        for name, alternatives in {**words, **frames}.items():
            least = _PERIOD if name in frames else 1
            if len(alternatives) < least:
                raise ValueError(f"the rule '{name}' has {len(alternatives)} alternatives and needs at least {least}")
        self.words = dict(words)
        self.frames = dict(frames)

    def frames_of(self, rule: str, part: Part) -> list[str]:
        """Return the alternatives of a frame rule that belong to ``part``, not yet expanded."""
        return [frame for index, frame in enumerate(self.frames[rule]) if part_of(index) == part]

    def variants(self, text: str) -> int:
        """Return how many frames ``text`` stands for: its words written out, its slots left open."""
        alternatives = (self.words.get(name.removesuffix("_cap")) for name in _SLOT.findall(text))
        return prod(sum(map(self.variants, options)) for options in alternatives if options is not None)

    def expand(self, text: str, slots: Slots, rng: Random) -> str:
        """Fill ``{name}`` from ``slots``, then from the words; ``{name_cap}`` starts with a capital letter.

        Raises:
            KeyError: a slot that nobody fills.
        """

        def fill(match: re.Match[str]) -> str:
            name = match[1]
            rule = name.removesuffix("_cap")
            options = slots[rule] if rule in slots else self.words[rule]
            value = self.expand(options if isinstance(options, str) else rng.choice(options), slots, rng)
            return value[:1].upper() + value[1:] if name.endswith("_cap") else value

        return _SLOT.sub(fill, text)


def part_of(index: int) -> Part:
    """Return the part to which the frame at ``index`` of its rule belongs."""
    position = index % _PERIOD
    if position == _PERIOD - 1:
        return "held_out"
    return 1 if position % 2 else 0


def sentences(*clauses: str) -> str:
    """Join clauses as sentences: capital letters, one space, a full stop where no mark ends the clause."""
    marked = [clause if clause.endswith((".", "!", "?")) else f"{clause}." for clause in clauses if clause]
    return capitalise(" ".join(marked))


def capitalise(text: str) -> str:
    """Start every sentence with a capital letter."""
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), " ".join(text.split()))
