"""How a model decides between options: by log-probabilities, or in words that are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lit_debias.benchmark import Model
from lit_debias.plugins import is_refusal

Ask = Callable[[Sequence[str]], str]
"""Writes a question, given its options in the order in which it lists them."""
ANSWER_TOKENS = 24
NOT_WORDS = re.compile(r"[\W_]+")


class Decision(NamedTuple):
    """What was decided about one item."""

    weights: tuple[float, ...]
    """How often each option was taken; probabilities where log-probabilities decide, and none of them is above 1."""
    unparsed: int = 0
    """Answers that name no option, or several."""
    refused: int = 0
    """Answers that refuse; they name no option either, and are not among the unparsed ones."""

    @property
    def decided(self) -> float:
        """How many answers there are that took an option."""
        return sum(self.weights)


def by_likelihood(model: Model, questions: Sequence[Ask], options: Sequence[Sequence[str]]) -> list[Decision]:
    """Return probabilities of options [N][K], ``softmax(mean log p of a token)`` over all rotations of their order."""
    found = model.choices(list(questions), options, rotations=True)
    return [Decision(softmax([one.mean for one in row])) for row in found]


def softmax(values: Sequence[float]) -> tuple[float, ...]:
    """Return probabilities in proportion to ``exp(value)``."""
    shifted = np.exp(np.array(values) - max(values))
    return tuple((shifted / shifted.sum()).tolist())


def by_text(
    model: Model,
    questions: Sequence[Ask],
    options: Sequence[Sequence[str]],
    starts: Sequence[int],
    k: int,
    temperature: float,
) -> list[Decision]:
    """Return what k sampled answers to each of N questions decide.

    Args:
        model: Is asked.
        questions: [N]
        options: [N][K]
        starts: [N] a number whose remainder says from which option on a question lists them.
        k: Answers to each.
        temperature: Of sampling.
    """
    turned = [[*row[start % len(row) :], *row[: start % len(row)]] for row, start in zip(options, starts, strict=True)]
    prompts = [question(row) for question, row in zip(questions, turned, strict=True)]
    written = model.texts(prompts, k, temperature, max_new_tokens=ANSWER_TOKENS)
    return [tally(row, listed) for row, listed in zip(written, options, strict=True)]


def tally(answers: Sequence[str], options: Sequence[str]) -> Decision:
    """Return how many of the answers take each option, cannot be read, and refuse."""
    found = [parsed(answer, options) for answer in answers]
    without = [answer for answer, option in zip(answers, found, strict=True) if option is None]
    refused = sum(map(is_refusal, without))
    return Decision(tuple(float(found.count(i)) for i in range(len(options))), len(without) - refused, refused)


def parsed(answer: str, options: Sequence[str]) -> int | None:
    """Return the one option whose words an answer is, or holds beside nothing of another; None where there is none.

    An answer that refuses holds none, whatever else it says. Case and punctuation do not count.
    """
    said, texts = _plain(answer), [_plain(option) for option in options]
    if said in texts:
        return texts.index(said)
    named = [i for i, text in enumerate(texts) if f" {text} " in f" {said} "]
    return None if len(named) != 1 or is_refusal(answer) else named[0]


def _plain(text: str) -> str:
    return NOT_WORDS.sub(" ", text.casefold()).strip()
