"""The part of a policy that turns prompts and texts into token ids, and completions back into texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_debias.conversations import Prompt, files_in, words_of
from lit_debias.errors import UserError
from lit_debias.models.loading import end_of_sequence_ids
from lit_debias.models.positions import check_fits, positions_held
from lit_debias.models.prompt_encoder import PromptEncoder, embeddings_of
from lit_debias.packing.tokens import pad
from lit_debias.support.text import counted
from lit_debias.types import PictureInputs, PromptBatch, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sizes:
    """What a model says of token ids."""

    ends: tuple[int, ...]
    """Every id that ends a completion."""
    positions: int | None
    """The most tokens of a text, where the model has a table of positions."""
    embeddings: int | None
    """For how many ids it has weights."""

    @classmethod
    def of(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Sizes:
        """Ask the base."""
        return cls(end_of_sequence_ids(base, tokenizer), positions_held(base), embeddings_of(base))


class PolicyTokens(nn.Module):
    """What a policy knows of tokens.

    Args:
        tokenizer: Of the model.
        sizes: What the model says of token ids.
        source: The model's name.
        system_prompt: System message put before every prompt that has none of its own.
        max_prompt_tokens: Longest prompt, in tokens after the chat template.
        chat_template_kwargs: Variables of the chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sizes: Sizes,
        source: str,
        system_prompt: str | None,
        max_prompt_tokens: int,
        chat_template_kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.tokenizer, self.source = tokenizer, source
        self.system_prompt, self.max_prompt_tokens = system_prompt, max_prompt_tokens
        self.chat_template_kwargs = chat_template_kwargs
        self.eos_token_ids, self.positions, self._embeddings = sizes.ends, sizes.positions, sizes.embeddings
        self._encoder: PromptEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def encoder(self) -> PromptEncoder:
        """What makes token ids of prompts and texts."""
        if self._encoder is None or self._encoder.tokenizer is not self.tokenizer:
            self._encoder = PromptEncoder(self.tokenizer, self.source, self.chat_template_kwargs, self._embeddings)
        return self._encoder

    def encode_prompts(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Return ids [P, S] int64, left-padded, and mask [P, S] bool; the chat template is applied if there is one.

        Raises:
            UserError: a prompt has no tokens, or more than ``max_prompt_tokens``.
        """
        rows = [self.prompt_ids(prompt) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if not 0 < len(row) <= self.max_prompt_tokens:
                raise UserError(
                    f"prompt {prompt!r:.60} has {counted(len(row), 'token')}; prompts need 1 to "
                    f"{self.max_prompt_tokens} (policy.max_prompt_tokens)"
                )
        return pad(rows, self.encoder.pad_id, left=True, device=self.device)

    def encode(self, prompts: PromptBatch, completions: list[list[str]], *, end: bool = False) -> Rollout:
        """Return given completions [P][G] as a rollout without behaviour log-probs (all 0).

        Args:
            prompts: P prompts.
            completions: Their texts.
            end: Append the end-of-sequence token, which a policy must learn and a score of a text leaves out.
        """
        flat = [text for group in completions for text in group]
        ending = [self._end_id] if end else []
        rows = [self.encoder.text(text) + ending for text in flat]
        return self.rollout_of(prompts, self.encode_prompts(prompts.asked), rows, completions)

    def rollout_of(
        self, prompts: PromptBatch, encoded: tuple[Tensor, Tensor], rows: list[list[int]], texts: list[list[str]]
    ) -> Rollout:
        """Return given tokens as a rollout without behaviour log-probs (all 0).

        Args:
            prompts: P prompts.
            encoded: Their ids and mask [P, S], left-padded.
            rows: [P x G] token ids of the completions, group by group.
            texts: [P][G] what they say.
        """
        ids, mask = pad(rows, self.encoder.pad_id, left=False, device=self.device)
        shape = (len(prompts), len(texts[0]), ids.shape[1])
        longest = encoded[1].sum(-1, keepdim=True) + mask.view(shape).sum(-1)
        self.check_fits(int(longest.max()), "shorten the text, or leave it out")
        return Rollout(
            prompts=prompts,
            prompt_ids=encoded[0],
            prompt_mask=encoded[1],
            completion_ids=ids.view(shape),
            completion_mask=mask.view(shape),
            logprobs=torch.zeros(shape, device=self.device),
            truncated=torch.zeros(shape[:2], dtype=torch.bool, device=self.device),
            texts=texts,
            pictures=self.pictures_of(prompts.asked),
        )

    def decode(self, completion_ids: Tensor, completion_mask: Tensor) -> list[list[str]]:
        """Return texts [P][G] of ids [P, G, T] without special tokens."""
        return [
            [self.text_of(ids[mask]) for ids, mask in zip(*group, strict=True)]
            for group in zip(completion_ids.cpu(), completion_mask.cpu(), strict=True)
        ]

    def text_of(self, ids: Tensor) -> str:
        """Return the text of token ids [L] without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def check_fits(self, tokens: int, remedy: str) -> None:
        """Raise :class:`UserError` where a prompt and completion of so many tokens need positions that are not there.

        Args:
            tokens: Of both together; the last one predicts nothing, so it needs no position.
            remedy: What to write instead.
        """
        check_fits(tokens - 1, self.positions, self.source, remedy)

    @property
    def _end_id(self) -> int:
        if not self.eos_token_ids:
            raise UserError(f"policy: model '{self.source}' has no end-of-sequence token to train")
        own = self.tokenizer.eos_token_id
        return self.encoder.known([self.eos_token_ids[0] if own is None else int(own)], "an end of sequence")[0]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt, in the chat template if there is one.

        Raises:
            UserError: the template fails, a token has no embedding, or there are pictures that nobody would see.
        """
        if files_in(prompt):
            raise UserError(
                f"policy: QLoRAPolicy reads no pictures, and the prompt {words_of(prompt)!r:.40} has some; write "
                "class_path: VLMPolicy with a model that sees, or leave the data's images out"
            )
        return self.encoder.prompt(prompt, self.system_prompt)

    def pictures_of(self, prompts: Sequence[Prompt]) -> list[PictureInputs] | None:
        """Return what the pictures of prompts are to the model, [P]; None where there are none."""
        return None
