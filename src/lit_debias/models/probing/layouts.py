"""How groups are laid out for a model's own forward pass: packed in one row, a row each, or one after the other.

All give the outputs of every sequence alone, where the model obeys what they rely on. Packing relies on a mask of the
caller's and on ``position_ids``; a row each, on tokens that are not touched by what comes after them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lit_debias.models.attention_windows import FULL, Reach, other_layers, reaches
from lit_debias.models.loading import recomputes
from lit_debias.models.pictures import forget_shifts, showing
from lit_debias.packing.groups import LoneSequence, PackedGroups, PackedRows, additive
from lit_debias.packing.tokens import pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which fp32 adapters and weights in another type compute together."""


class Network:
    """A model's own forward pass: from ids [B, L] to the last hidden states [B, L, H], or to the logits [B, L, V].

    Args:
        model: Hugging Face model.
        logits: Whether to go on to the logits.
        autocast: Makes the context to compute in.
    """

    def __init__(self, model: PreTrainedModel, logits: bool, autocast: Autocast) -> None:
        self.model, self.logits, self.autocast = model, logits, autocast

    def __call__(self, ids: Tensor, **options: Any) -> Tensor:
        """Return the outputs; the options are those of the model."""
        return self._outputs(input_ids=ids, use_cache=False, **options)[0]

    def cached(self, ids: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """Return the outputs, and the cache with which the model goes on behind them.

        Raises:
            ValueError: it keeps none.
        """
        outputs, cache = self._outputs(input_ids=ids, use_cache=True, **options)
        if cache is None:
            raise ValueError("the model returns no cache")
        return outputs, cache

    def _outputs(self, **options: Any) -> tuple[Tensor, Any]:
        network = self.model if self.logits else decoder_of(self.model)
        with self.autocast():
            output = network(**options)
        outputs: Tensor = output.logits if self.logits else output.last_hidden_state
        return outputs, getattr(output, "past_key_values", None)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a model that gives its last hidden states, or the model itself where it has no such part."""
    part: nn.Module = getattr(model, model.base_model_prefix, model)
    return part


class Layout(ABC):
    """A way to read packed groups."""

    name: ClassVar[str]
    packs: ClassVar[bool] = False
    """Whether a prompt is computed once for its whole group."""

    @abstractmethod
    def __call__(self, network: Network, packed: PackedGroups) -> Tensor:
        """Return the outputs [N, ...] of the network that predict the N completion tokens."""


class Packed(Layout):
    """A group is one row, its prompt once: ``prompt | c1 | ... | cG``, by a mask with the windows of the layers.

    Args:
        masks: The reach of each kind of layer, for models that take a mask for each kind; or the one of all layers.
    """

    name = "packed groups"
    packs = True

    def __init__(self, masks: dict[str, Reach] | Reach) -> None:
        self.masks = masks

    def __call__(self, network: Network, packed: PackedGroups) -> Tensor:
        """See :class:`Layout`."""
        rows = packed.rows()
        if isinstance(self.masks, Reach):
            mask: Any = self._mask(network, rows, self.masks)
        else:
            mask = {kind: self._mask(network, rows, reach) for kind, reach in self.masks.items()}
        outputs = network(rows.input_ids, attention_mask=mask, position_ids=rows.position_ids)
        return packed.select(rows.tokens(outputs))

    def _mask(self, network: Network, rows: PackedRows, reach: Reach) -> Tensor:
        mask = rows.mask(reach.window, reach.chunk)
        # Other kinds of attention add the mask to the scores, where True would count as 1.
        boolean = network.model.config._attn_implementation == "sdpa"
        return mask if boolean else additive(mask, network.model.dtype)


class ARowEach(Layout):
    """Every completion is a row of its own behind its own copy of the prompt, padded on the right."""

    name = "a row for each completion"

    def __call__(self, network: Network, packed: PackedGroups) -> Tensor:
        """See :class:`Layout`."""
        sequences = packed.sequences()
        rows = [sequence.ids.tolist() for sequence in sequences]
        # No mask: what follows a token cannot change it. Not padded with a padding token, see PackedRows.
        ids, _ = pad(rows, rows[0][0], left=False, device=packed.ids.device)
        outputs = network(ids)
        return torch.cat([sequence.predicting(row) for sequence, row in zip(sequences, outputs, strict=True)])


class OneByOne(Layout):
    """Every completion is read alone, behind its prompt's pictures: no padding, no mask, nothing beside it."""

    name = "one completion at a time"

    def __call__(self, network: Network, packed: PackedGroups) -> Tensor:
        """See :class:`Layout`."""
        return torch.cat([sequence.predicting(self._outputs(network, sequence)) for sequence in packed.sequences()])

    @staticmethod
    def _outputs(network: Network, sequence: LoneSequence) -> Tensor:
        with showing(network.model, sequence.ids, sequence.first + 1, sequence.pictures) as (ids, options):
            return network(ids[None], **options)[0]


class BehindPrompt(Layout):
    """A group's completions are rows behind one reading of their prompt and its pictures, whose cache they share.

    Padded on the right, without a mask: what follows a token cannot change it.
    """

    name = "completions behind one reading of their prompt"
    packs = True

    def __call__(self, network: Network, packed: PackedGroups) -> Tensor:
        """See :class:`Layout`."""
        groups: dict[int, list[LoneSequence]] = defaultdict(list)
        for sequence in packed.sequences():
            groups[sequence.group].append(sequence)
        return torch.cat([part for group in groups.values() for part in self._group(network, group)])

    def _group(self, network: Network, group: list[LoneSequence]) -> Iterator[Tensor]:
        size = group[0].first + 1
        prompt, followed = group[0].ids[:size], [sequence.ids[size:].tolist() for sequence in group]
        forget_shifts(network.model)
        pictures = group[0].pictures
        before, cache = network.cached(prompt[None], **(pictures.beside(prompt, size) if pictures else {}))
        rows = [before.new_empty(0, *before.shape[2:])] * len(group)
        if any(followed):
            cache.batch_repeat_interleave(len(group))
            ids, _ = pad(followed, int(prompt[0]), left=False, device=prompt.device)
            rows = list(network.cached(ids, past_key_values=cache)[0])
        for sequence, row in zip(group, rows, strict=True):
            yield torch.cat((before[0, -1:], row))[: sequence.size]


def layouts(model: PreTrainedModel) -> Iterator[Layout]:
    """Yield the layouts that may be right for a model, the fastest first."""
    if why_not_packed(model) is None:
        kinds = reaches(model.config)
        if set(kinds) != {FULL} or kinds[FULL] != Reach():
            yield Packed(kinds)
        yield from map(Packed, dict.fromkeys(kinds.values()))
    yield ARowEach()
    yield OneByOne()


def layouts_with_pictures(model: PreTrainedModel) -> Iterator[Layout]:
    """Yield the layouts that may be right for a model whose prompts show pictures, the fastest first."""
    if not recomputes(model):  # transformers keeps no cache then
        yield BehindPrompt()
    yield OneByOne()


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Return what a configuration says against packing, or None; what it does not say, a probe has to show."""
    if others := other_layers(model.config):
        return f"layers of the kind '{others[0]}' carry a state from one completion into the next"
    if "position_ids" not in signature(decoder_of(model).forward).parameters:
        return "it takes no position_ids"
    if getattr(model.config, "alibi", False):
        return "its ALiBi positions are not position_ids"
    return None
