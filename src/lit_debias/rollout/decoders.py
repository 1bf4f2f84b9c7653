"""Logits, token by token: what a rollout asks of a model, by the lean forward pass or Hugging Face's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import pad

from lit_debias.lean_model import KeyValueCache, LeanModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decoder(ABC):
    """Remembers the prompts and the tokens so far of N = P x G rows, group by group."""

    @abstractmethod
    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """Read the prompts, once each, and return the logits [N, V] of the first tokens.

        Args:
            ids: [P, S] int64, left-padded.
            mask: [P, S] bool.
            group_size: G.
            new_tokens: How often :meth:`step` may be called.
        """

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Append one of tokens [N] to every row and return the logits [N, V] of the next."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, int64 indices of the rows that are left."""


class LeanDecoder(Decoder):
    """Decodes with the lean forward pass and a cache that is allocated once.

    Args:
        model: Merged.
        compiled: Whether :meth:`step` runs compiled code.
    """

    def __init__(self, model: LeanModel, compiled: bool = False) -> None:
        self.model, self.compiled = model, compiled

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        positions = positions_of(mask)
        self.cache = KeyValueCache(self.model, mask, group_size, new_tokens, even=self.compiled)
        self.position = mask.sum(-1).repeat_interleave(group_size, 0)[:, None]
        logits = self.model(ids, self.model.rotation(positions), self.cache.attend_prompt)
        return logits.repeat_interleave(group_size, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.step`."""
        self.cache.next_column()
        forward = self.model.compiled if self.compiled else self.model
        logits = forward(tokens[:, None], self.model.rotation(self.position), self.cache.attend_token)
        self.position = self.position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        self.cache.keep(rows)
        self.position = self.position[rows]


class HuggingFaceDecoder(Decoder):
    """Decodes with the model's own forward pass: any architecture, merged or live weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        self.mask = mask
        logits = self._forward(ids, positions_of(mask)).repeat_interleave(group_size, 0)
        self.cache.batch_repeat_interleave(group_size)
        self.mask = mask.repeat_interleave(group_size, 0)
        self.position = mask.sum(-1).repeat_interleave(group_size, 0)[:, None]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.step`."""
        self.mask = pad(self.mask, (0, 1), value=True)
        logits = self._forward(tokens[:, None], self.position)
        self.position = self.position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]


def positions_of(mask: Tensor) -> Tensor:
    """Return [P, S] positions that count real tokens only."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
