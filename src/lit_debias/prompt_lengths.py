"""Whether a model can read the texts of the data, told before the first of them is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lit_debias.errors import UserError
from lit_debias.policy import QLoRAPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOGETHER = 1000
"""Texts that are tokenised in one call."""
SLACK = 16
"""Tokens that a text may gain or lose where it meets the chat template."""


def check_prompts(policy: QLoRAPolicy, prompts: Sequence[str], origins: Sequence[str]) -> None:
    """Check that the policy takes all prompts.

    Args:
        policy: Loaded.
        prompts: [N].
        origins: [N] file and row of each, for errors.

    Raises:
        UserError: a prompt has no token, or more than ``max_prompt_tokens`` in the chat template.
    """
    most, template = policy.max_prompt_tokens, len(policy.prompt_ids(""))
    for origin, text, tokens in zip(origins, prompts, _lengths(policy.tokenizer, prompts), strict=True):
        if not tokens:
            raise UserError(
                f"{origin}: model '{policy.source}' has no token for the prompt {text!r:.60}; write words that it knows"
            )
        whole = tokens + template
        if whole - SLACK <= most < whole + SLACK:
            whole = len(policy.prompt_ids(text))
        if whole > most:
            raise UserError(
                f"{origin}: the prompt {text!r:.60} has {whole} tokens, chat template included; shorten it, leave it "
                f"out, or raise the policy's max_prompt_tokens, {most}"
            )


def check_responses(
    policy: QLoRAPolicy, prompts: Sequence[str], responses: Sequence[str], origins: Sequence[str], column: str
) -> None:
    """Check that the model's context holds every prompt with its response.

    Args:
        policy: Loaded.
        prompts: [N].
        responses: [N].
        origins: [N] file and row of each, for errors.
        column: Name of the responses, for errors.

    Raises:
        UserError: it does not.
    """
    most = getattr(policy.causal_lm.config, "max_position_embeddings", None)
    if most is None:
        return
    lengths = [_lengths(policy.tokenizer, texts) for texts in (prompts, responses)]
    template = len(policy.prompt_ids(""))
    for origin, prompt, response in zip(origins, *lengths, strict=True):
        if prompt + template + response + 1 > most:  # one for the end of the sequence
            raise UserError(
                f"{origin}: '{column}' has {response} tokens, and with its prompt ({prompt + template}) that is more "
                f"than the {most} that model '{policy.source}' reads; shorten it, or leave it out"
            )


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[int]:
    """Yield how many tokens each text has of its own."""
    for start in range(0, len(texts), TOGETHER):
        part = list(texts[start : start + TOGETHER])
        yield from map(len, tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])
