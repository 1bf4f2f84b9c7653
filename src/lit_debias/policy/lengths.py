"""Whether a model can read the texts of the data, told before the first of them is used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lit_debias.conversations import Prompt
from lit_debias.errors import UserError
from lit_debias.models.positions import longest_text
from lit_debias.policy.policy import Policy
from lit_debias.support.text import counted

TOGETHER = 1000
"""Texts that are tokenised in one call."""
SLACK = 16
"""Tokens that a text may gain or lose where it meets the chat template."""


def check_prompts(policy: Policy, prompts: Sequence[Prompt], origins: Sequence[str], new_tokens: int = 1) -> None:
    """Check that the policy takes all prompts.

    Args:
        policy: Loaded.
        prompts: [N] texts or conversations.
        origins: [N] file and row of each, for errors.
        new_tokens: Of the longest completion.

    Raises:
        UserError: a prompt has no token, or one that the model has no embedding for; it has more than
            ``max_prompt_tokens`` in the chat template, or with its completion more than the model's positions.
    """
    most, held = policy.max_prompt_tokens, policy.positions
    near = most if held is None else min(most, held + 1 - new_tokens)
    for origin, prompt, whole in zip(origins, prompts, _prompt_lengths(policy, prompts, origins, near), strict=True):
        if not whole:
            raise UserError(
                f"{origin}: model '{policy.source}' has no token for the prompt {prompt!r:.60}; write words that it "
                "knows"
            )
        if whole > most:
            raise UserError(
                f"{origin}: the prompt {prompt!r:.60} has {counted(whole, 'token')}, chat template included; shorten "
                f"it, leave it out, or raise the policy's max_prompt_tokens, {most}"
            )
        with _at(origin):
            policy.check_fits(whole + new_tokens, f"shorten the prompt ({whole}) or lower max_new_tokens, {new_tokens}")


def _prompt_lengths(policy: Policy, prompts: Sequence[Prompt], origins: Sequence[str], near: float) -> Iterator[int]:
    """Yield each prompt's tokens in the chat template, exact about the limit ``near``; 0 for a text without any."""
    with _at(origins[0] if origins else "data"):
        template = len(policy.prompt_ids(""))
    texts = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
    for origin, prompt, tokens in zip(origins, prompts, _tokens(policy, texts, origins), strict=True):
        whole = tokens + template
        if not isinstance(prompt, str) or abs(whole - near) <= SLACK or policy.encoder.chat.holds_added_token(prompt):
            with _at(origin):
                whole = len(policy.prompt_ids(prompt))
        yield whole if tokens or not isinstance(prompt, str) else 0


def check_responses(
    policy: Policy, prompts: Sequence[Prompt], responses: Sequence[str], origins: Sequence[str], column: str
) -> None:
    """Check that the model's context holds every prompt with its response.

    Args:
        policy: Loaded.
        prompts: [N] texts or conversations.
        responses: [N].
        origins: [N] file and row of each, for errors.
        column: Name of the responses, for errors.

    Raises:
        UserError: it does not, or the model has no embedding for a token of a response.
    """
    most = longest_text(policy.causal_lm.config.get_text_config()) or math.inf
    before = _prompt_lengths(policy, prompts, origins, math.inf)
    for origin, prompt, response in zip(origins, before, _tokens(policy, responses, origins), strict=True):
        if prompt + response + 1 > most:  # one for the end of the sequence
            raise UserError(
                f"{origin}: '{column}' has {counted(response, 'token')}, and with its prompt ({prompt}) that is more "
                f"than the {most} that model '{policy.source}' reads; shorten it, or leave it out"
            )


def _tokens(policy: Policy, texts: Sequence[str], origins: Sequence[str]) -> Iterator[int]:
    """Yield how many tokens each text has of its own.

    Raises:
        UserError: the model has no embedding for one of them.
    """
    for start in range(0, len(texts), TOGETHER):
        part = list(texts[start : start + TOGETHER])
        encoded = policy.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        for origin, text, ids in zip(origins[start:], part, encoded, strict=False):
            with _at(origin):
                own = policy.encoder.text(text) if policy.encoder.chat.holds_added_token(text) else ids
                yield len(policy.encoder.known(own, text))


@contextmanager
def _at(origin: str) -> Iterator[None]:
    """Within the context an error says file and row."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
