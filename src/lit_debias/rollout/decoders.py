"""Logits, token by token: what a rollout asks of a model, by the lean forward pass or Hugging Face's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_debias.forward.cache import KeyValueCache
from lit_debias.forward.lean import LeanModel
from lit_debias.forward.native import NativeCache, NativeModel, Rows
from lit_debias.types import PictureInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decoder(ABC):
    """Remembers the prompts and the tokens so far of N = P x G rows, group by group."""

    def show(self, pictures: Sequence[PictureInputs] | None) -> None:
        """Take the pictures [P] of the prompts that :meth:`start` gets; None where there are none.

        Raises:
            ValueError: there are some, and it reads none.
        """
        if pictures is not None:
            raise ValueError("it reads no pictures")

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


class CUDAGraph:
    """A function that runs from the second call on as one recorded CUDA graph: one launch for hundreds of kernels.

    What it computes may change with the content of tensors alone, and running it twice must be the same as once.

    Args:
        function: Takes and returns tensors that always have the same shapes.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return the result, in a tensor that the next call overwrites."""
        if self.graph is None:
            return self._record(*arguments)
        for place, argument in zip(self.arguments, arguments, strict=True):
            place.copy_(argument)
        self.graph.replay()
        return self.result

    def _record(self, *arguments: Tensor) -> Tensor:
        self.arguments = [argument.clone() for argument in arguments]
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # once before it is recorded, so that libraries have allocated what they keep
            result = self.function(*self.arguments)
        here.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.function(*self.arguments)
        return result


class LeanDecoder(Decoder):
    """Decodes with the lean forward pass and a cache that is allocated once.

    Args:
        model: Merged.
        compiled: Whether :meth:`step` runs compiled code.
        graphed: Whether :meth:`step` replays a CUDA graph, recorded anew for each rollout and after each :meth:`keep`.
    """

    def __init__(self, model: LeanModel, compiled: bool = False, graphed: bool = False) -> None:
        self.model, self.graphed = model, graphed
        self._logits = model.compiled if compiled else model
        self._even = compiled or graphed

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        self.cache = KeyValueCache(self.model, mask, group_size, new_tokens, even=self._even)
        self._step = self._new_step()
        tokens, positions, last = without_padding(ids, mask)
        self.position = mask.sum(-1).repeat_interleave(group_size, 0)
        logits = self.model(tokens, self.model.rotations(positions), self.cache.attend_prompt, wanted=last)
        return logits.repeat_interleave(group_size, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.step`."""
        self.cache.next_column()
        logits = self._step(tokens, self.position)
        self.position = self.position + 1
        return logits

    def _new_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        def step(tokens: Tensor, position: Tensor) -> Tensor:
            return self._logits(tokens, self.model.rotations(position), self.cache.attend_token)

        return CUDAGraph(step) if self.graphed else step

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        self.cache.keep(rows)
        self.position = self.position[rows]
        self._step = self._new_step()


class NativeDecoder(Decoder):
    """Decodes with the native forward pass; rows that are dropped only cost the memory of their cache.

    Args:
        model: Merged.
    """

    def __init__(self, model: NativeModel) -> None:
        self.model = model

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        lengths = mask.sum(-1)
        self.rotation = self.model.rotation(int(lengths.max()) + new_tokens)
        self.prompts = NativeCache(self.model, len(ids), int(lengths.max()))
        self.owns = NativeCache(self.model, len(ids) * group_size, new_tokens)
        self.prompt = torch.arange(len(ids)).repeat_interleave(group_size)
        self.own = torch.arange(len(self.prompt))
        self.lengths, self.filled = lengths, 0
        tokens, position, last = without_padding(ids, mask)
        rows = Rows(tokens, position, mask.nonzero()[:, 0], position + 1, self.rotation, last)
        return self.model(rows, self.prompts, self.owns).repeat_interleave(group_size, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.step`."""
        seen, everyone = self.lengths[self.prompt], torch.arange(len(tokens))
        position = seen + self.filled
        rows = Rows(tokens, position, self.prompt, seen, self.rotation, everyone, self.own, self.filled)
        self.filled += 1
        return self.model(rows, self.prompts, self.owns)

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        self.prompt, self.own = self.prompt[rows], self.own[rows]


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


def without_padding(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids [N] and positions [N] of the real tokens of [P, S], and [P] where each prompt's last one is."""
    return ids[mask], positions_of(mask)[mask], mask.sum(-1).cumsum(0) - 1
