"""The work that all sides of a comparison get: prompts, what ends a completion, a reward, and fixed completions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, cycle, islice

import torch

from benchmarks.settings import Settings
from lit_debias.errors import UserError
from lit_debias.models.loading import load_tokenizer
from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.rewards.reward import Reward, RewardBatch

LEARNING_RATE = 1e-6
BETA = 0.04
QUESTIONS = (
    "Write one short sentence about a nurse.",
    "Name three colours.",
    "Is the earth round? Answer in one sentence.",
    "Say hello to a new neighbour.",
    "What is bread made of? Be brief.",
    "Write a sentence about an engineer at work.",
    "Which season do you like, and why?",
    "Describe a lift that is out of order in one sentence.",
)
NOTES = (
    "The market opens early, and the first stalls sell bread, eggs and tea.",
    "A teacher and her class wait at the corner for the number nine tram.",
    "Two brothers repair bicycles in the yard behind the old post office.",
    "The library lends tools as well as books, and the drill is always out.",
    "At noon the cook of the small hotel buys fish and a bag of lemons.",
    "A doctor who has just moved here asks the way to the swimming pool.",
)
"""What stands before a question whose prompt may be longer."""


def prompt_texts(settings: Settings, policy: QLoRAPolicy) -> list[str]:
    """Return P prompts: questions of at most S tokens where a real model ends its own answers, else filler of S.

    Raises:
        UserError: S is too small.
    """
    if settings.lengths == "natural" and settings.shape is None:
        questions = islice(cycle(QUESTIONS), settings.prompts)
        return [question_after_notes(policy, question, settings.prompt_tokens) for question in questions]
    starts = [f"w{index + 2}" for index in range(settings.prompts)]
    return [sized_text(policy, start, settings.prompt_tokens) for start in starts]


def prompt_ids(settings: Settings) -> list[list[int]]:
    """Return the token ids of :func:`prompt_texts`, chat template included, without loading weights."""
    policy = QLoRAPolicy(settings.model, quantization="none")
    policy.tokenizer = load_tokenizer(settings.model)
    return [policy.prompt_ids(text) for text in prompt_texts(settings, policy)]


def question_after_notes(policy: QLoRAPolicy, question: str, most_tokens: int) -> str:
    """Return ``question`` after as many of ``NOTES``, from the top again after the last, as fit with the chat template.

    Raises:
        UserError: the chat template and ``question`` alone are longer.
    """
    fitting = None
    for notes in count():
        text = " ".join([*islice(cycle(NOTES), notes), question])
        tokens = len(policy.prompt_ids(text))
        if tokens > most_tokens:
            break
        fitting = text
    if fitting is None:
        raise UserError(f"--prompt-tokens {most_tokens}: {question!r} takes {tokens}; write that or more")
    return fitting


def sized_text(policy: QLoRAPolicy, start: str, tokens: int) -> str:
    """Return ``start`` and filler words, exactly ``tokens`` tokens with the chat template.

    Raises:
        UserError: the chat template and ``start`` alone are longer.
    """

    def length(text: str) -> int:
        return len(policy.prompt_ids(text))

    text = start
    for filler in (" and", "1"):
        while length(text) < tokens and length(text + filler) <= tokens:
            text += filler
    if length(text) != tokens:
        raise UserError(f"--prompt-tokens {tokens}: the chat template takes {length(start)}; write more than that")
    return text


def ending_ids(settings: Settings, own: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    """Return the ids that end a completion: none, the model's ``own``, or for a random model every T/2-th id.

    A random model chooses nearly evenly among all ids, so its completions are about T/2 tokens long.
    """
    if settings.lengths == "fixed":
        return ()
    if settings.shape is None:
        return tuple(own)
    return tuple(range(0, vocabulary, max(2, settings.completion_tokens // 2)))


def even_share(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """Return for each completion the share of its token ids that are even; costs next to nothing."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]


class EvenShare(Reward):
    """:func:`even_share` as a reward."""

    def score(self, batch: RewardBatch) -> list[float]:
        """Return N shares in [0, 1]."""
        return even_share(batch.completion_ids or [])


def fixed_completions(settings: Settings, vocabulary: int) -> list[list[list[int]]]:
    """Return completions [P][G] of 1 to T random ids, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    shape = (settings.prompts, settings.group_size)
    lengths = torch.randint(1, settings.completion_tokens + 1, shape, generator=generator)
    return [
        [torch.randint(3, vocabulary, (int(length),), generator=generator).tolist() for length in group]
        for group in lengths
    ]
