"""Decoders that rely on less: for models that padding confuses, or whose cache cannot be shared or cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_debias.rollout.decoders import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHES = ("past_key_values", "cache_params", "state", "mems")
"""What models call what they remember; they return it, and take it back under the same name."""


class PromptwiseDecoder(Decoder):
    """Reads each prompt alone, G times over, without padding, and goes on with the cache that the model makes itself.

    Rows that are dropped go on with token 0, unless their whole group is dropped.

    Args:
        model: Hugging Face model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        self.group_size = group_size
        self.rows = torch.arange(len(ids) * group_size, device=ids.device)  # those that are kept
        self.caches: list[dict[str, Any]] = [{} for _ in ids]
        prompts = [row[real].expand(group_size, -1) for row, real in zip(ids, mask, strict=True)]
        return torch.cat([self._forward(number, prompt) for number, prompt in enumerate(prompts)])

    def step(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.step`."""
        everyone = tokens.new_zeros(len(self.caches) * self.group_size).index_copy(0, self.rows, tokens)
        groups = everyone.view(len(self.caches), self.group_size, 1)
        going = torch.unique(self.rows // self.group_size).tolist()
        logits = {number: self._forward(number, groups[number]) for number in going}
        rows = [divmod(row, self.group_size) for row in self.rows.tolist()]
        return torch.stack([logits[number][member] for number, member in rows])

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        self.rows = self.rows[rows]

    def _forward(self, number: int, ids: Tensor) -> Tensor:
        output: Any = self.model(input_ids=ids, use_cache=True, **self.caches[number])
        found = {name: getattr(output, name, None) for name in CACHES}
        self.caches[number] = {name: cache for name, cache in found.items() if cache is not None}
        if not self.caches[number]:
            raise ValueError("the model returns no cache")
        logits: Tensor = output.logits[:, -1]
        return logits


class RecomputingDecoder(Decoder):
    """Reads every row anew for each token, alone and without a cache: as slow as it is simple.

    Args:
        model: Hugging Face model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        prompts = [row[real] for row, real in zip(ids, mask, strict=True)]
        self.rows = [prompt for prompt in prompts for _ in range(group_size)]
        return torch.stack([self._last(prompt) for prompt in prompts]).repeat_interleave(group_size, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.step`."""
        self.rows = [torch.cat((row, token[None])) for row, token in zip(self.rows, tokens, strict=True)]
        return torch.stack(list(map(self._last, self.rows)))

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        self.rows = [self.rows[row] for row in rows.tolist()]

    def _last(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids[None], use_cache=False).logits[0, -1]
        return logits
