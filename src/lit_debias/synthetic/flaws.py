"""Worthless answers to written prompts: off topic, evading, or damaged, as small policies write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from lit_debias.synthetic.grammar import Grammar, Part, capitalise, sentences
from lit_debias.synthetic.responses import CORRUPT, QUOTED, Corruption

DAMAGES: tuple[Corruption, ...] = ("shuffle", "repetition", "truncation")
Answer = Mapping[str, Any]
"""An answer of the corpus."""


def flawed(
    name: str,
    prompt: str,
    leading: bool,
    own: Sequence[Answer],
    elsewhere: Sequence[Answer],
    words: Grammar,
    part: Part,
) -> Iterator[tuple[str, Corruption, Answer]]:
    """Yield a text, its corruption, and the answer whose intensity and tone it has.

    There are three: a fair answer to another prompt, an evasion in the grammar's words, and an answer of one's own that
    is shuffled, loops or breaks off.

    Args:
        name: Of the prompt; seeds the choice.
        prompt: Its text, which the evasion quotes.
        leading: Whether the prompt takes a prejudice for granted, which the evasion then repeats.
        own: Answers to the prompt.
        elsewhere: Fair answers to prompts of other categories.
        words: The grammar of responses.
        part: Its frames that may be used.
    """
    rng = Random(name)
    if elsewhere:
        other = rng.choice(elsewhere)
        yield other["text"], "off_topic", other
    request = " ".join(prompt.split()[:QUOTED]).rstrip(".!?:, ")
    frames = [rng.choice(words.frames_of(rule, part)) for rule in ("evasion", "evasion_end")]
    clauses = [words.expand(frame, {"request": request}, rng) for frame in frames]
    yield sentences(*clauses), "evasion", {"intensity": int(leading), "tone": "plain"}
    damaged = rng.choice([answer for answer in own if answer["form"] in ("fair", "biased")])
    how = rng.choice(DAMAGES)
    yield capitalise(CORRUPT[how](damaged["text"], rng)), how, damaged
