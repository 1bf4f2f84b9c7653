"""Decoders that rely on less: for models that padding confuses, whose cache cannot be shared or cut, or that see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_debias.models.pictures import SHIFT, shifted_parts, showing
from lit_debias.rollout.decoders import Decoder
from lit_debias.types import PictureInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHES = ("past_key_values", "cache_params", "state", "mems")
"""What models call what they remember; they return it, and take it back under the same name."""


class SeeingDecoder(Decoder):
    """Takes pictures.

    Args:
        model: Hugging Face model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.pictures: Sequence[PictureInputs] | None = None

    def show(self, pictures: Sequence[PictureInputs] | None) -> None:
        """See :meth:`Decoder.show`."""
        self.pictures = pictures


class PromptwiseDecoder(SeeingDecoder):
    """Reads each prompt alone, G times over, without padding, and goes on with the cache that the model makes itself.

    A prompt with pictures is read once, and its cache repeated. Rows that are dropped go on with token 0, unless their
    whole group is dropped.
    """

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        self.group_size = group_size
        self.rows = torch.arange(len(ids) * group_size, device=ids.device)  # those that are kept
        self.caches: list[dict[str, Any]] = [{} for _ in ids]
        self._shifted = shifted_parts(self.model)
        self.shifts: list[list[Any]] = [[None] * len(self._shifted) for _ in ids]
        prompts = [row[real] for row, real in zip(ids, mask, strict=True)]
        return torch.cat([self._read(number, prompt) for number, prompt in enumerate(prompts)])

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

    def _read(self, number: int, prompt: Tensor) -> Tensor:
        """Return the logits [G, V] behind a prompt [S]."""
        shown = self.pictures[number].beside(prompt, len(prompt)) if self.pictures else {}
        if not shown:
            return self._forward(number, prompt.expand(self.group_size, -1))
        logits = self._forward(number, prompt[None], shown)
        for cache in self.caches[number].values():
            cache.batch_repeat_interleave(self.group_size)
        return logits.expand(self.group_size, -1)

    def _forward(self, number: int, ids: Tensor, shown: Mapping[str, Tensor] | None = None) -> Tensor:
        for module, shift in zip(self._shifted, self.shifts[number], strict=True):  # each prompt has its own
            setattr(module, SHIFT, shift)
        output: Any = self.model(input_ids=ids, use_cache=True, **self.caches[number], **(shown or {}))
        self.shifts[number] = [getattr(module, SHIFT) for module in self._shifted]
        found = {name: getattr(output, name, None) for name in CACHES}
        self.caches[number] = {name: cache for name, cache in found.items() if cache is not None}
        if not self.caches[number]:
            raise ValueError("the model returns no cache")
        logits: Tensor = output.logits[:, -1]
        return logits


class RecomputingDecoder(SeeingDecoder):
    """Reads every row anew for each token, alone and without a cache: as slow as it is simple."""

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        self.prompts = [row[real] for row, real in zip(ids, mask, strict=True)]
        self.rows = [(number, prompt) for number, prompt in enumerate(self.prompts) for _ in range(group_size)]
        firsts = [self._last(number, prompt) for number, prompt in enumerate(self.prompts)]
        return torch.stack(firsts).repeat_interleave(group_size, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.step`."""
        grown = zip(self.rows, tokens, strict=True)
        self.rows = [(number, torch.cat((row, token[None]))) for (number, row), token in grown]
        return torch.stack([self._last(*row) for row in self.rows])

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        self.rows = [self.rows[row] for row in rows.tolist()]

    def _last(self, number: int, ids: Tensor) -> Tensor:
        pictures = self.pictures[number] if self.pictures else None
        with showing(self.model, ids, len(self.prompts[number]), pictures) as (shown, options):
            logits: Tensor = self.model(input_ids=shown[None], use_cache=False, **options).logits[0, -1]
        return logits
