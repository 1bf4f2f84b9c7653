"""How groups are laid out for a model's own forward pass: packed in one row, a row each, or one after the other.

All give the outputs of every sequence alone, where the model obeys what they rely on. Packing relies on a mask of the
caller's and on ``position_ids``; a row each, on tokens that are not touched by what comes after them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lit_debias.models.attention_windows import FULL, Reach, other_layers, reaches
from lit_debias.models.pictures import showing
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
        network = self.model if self.logits else decoder_of(self.model)
        with self.autocast():
            output = network(input_ids=ids, use_cache=False, **options)
        result: Tensor = output.logits if self.logits else output.last_hidden_state
        return result


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


def layouts(model: PreTrainedModel) -> Iterator[Layout]:
    """Yield the layouts that may be right for a model, the fastest first."""
    if why_not_packed(model) is None:
        kinds = reaches(model.config)
        if set(kinds) != {FULL} or kinds[FULL] != Reach():
            yield Packed(kinds)
        yield from map(Packed, dict.fromkeys(kinds.values()))
    yield ARowEach()
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
