"""Which forward pass a model gets: the fastest that agrees with the plain model, and why it is not a faster one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lit_debias.errors import UserError
from lit_debias.forward.forms import Forms, autocast
from lit_debias.forward.lean import LeanModel, why_not_lean
from lit_debias.forward.memory import free_memory
from lit_debias.models.adapters import trained_parameters
from lit_debias.models.probing.layouts import OneByOne, why_not_packed
from lit_debias.models.probing.probe import Probe, moved_adapter, without_adapter_dropout
from lit_debias.models.probing.ways import Expected, Way, first_right, own_ways, plain_head
from lit_debias.models.sharding import OBSTACLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAN = "the lean forward pass"
SHOWN = "with gradient_checkpointing no completion goes on from its prompt's cache"


@dataclass(frozen=True)
class FormOptions:
    """What a user asks of forward passes; see :class:`lit_debias.QLoRAPolicy`."""

    dtype: torch.dtype
    adapter_dropout: bool = False
    gradient_checkpointing: bool | None = None
    keep_base: bool | None = None
    flex: bool = False
    sharded: bool = False
    """Whether processes share out the layers of the base."""

    def check_device(self, device: torch.device) -> None:
        """Raise :class:`UserError` where the device has not what is asked for."""
        if self.flex and device.type != "cuda":
            raise UserError("policy: attention 'flex' trains on CUDA devices alone; write attention: sdpa")


def choose_forms(model: PreTrainedModel, probe: Probe, source: str, options: FormOptions) -> Forms:
    """Compare each form that may be right with the plain model, and say in the log where it is a slower one.

    Args:
        model: Hugging Face's model with the adapters inside its layers.
        probe: The tokens that all of them read.
        source: The model's name, for errors.
        options: What is asked for.

    Raises:
        UserError: no form is right, or one that is asked for is not.
    """
    with moved_adapter(trained_parameters(model)), without_adapter_dropout(model):
        expected = Expected.of(model, probe, source, options.dtype)
        head = plain_head(model, probe.prompt[-8:])
        obstacle = (OBSTACLE if options.sharded else why_not_lean(model)) or _why_no_head(head)
        lean = None if obstacle else LeanModel(model, options.dtype, _keeps_base(model, options), options.flex)
        shown = probe.pictures is not None
        ways = own_ways(model, partial(autocast, model.device, options.dtype), head, shown)
        if lean is not None and not options.adapter_dropout:
            ways.insert(0, _lean_way(lean, head, options.gradient_checkpointing))
        way, wrong = first_right(ways, expected, source)
    obstacle = obstacle or wrong.get(LEAN)
    if options.flex and obstacle:
        raise UserError(f"policy: attention 'flex' needs the lean forward pass, and {obstacle}; write attention: sdpa")
    if options.sharded:
        check_passes(way, source)
    _say(way, wrong, SHOWN if shown else why_not_packed(model))
    return Forms(model, source, options.dtype, probe, way, None if obstacle else lean, obstacle, options.sharded)


def check_passes(way: Way, source: str) -> None:
    """Raise :class:`UserError` for a way whose number of passes is not the same for all processes."""
    if way.name == OneByOne.name:
        raise UserError(
            f"policy: model '{source}' reads one completion at a time, and processes that share its layers out must "
            "make the same passes; write trainer.strategy: ddp, or another model"
        )


def _why_no_head(head: nn.Linear | None) -> str | None:
    return "its logits are not its last hidden states times the output layer" if head is None else None


def _keeps_base(model: PreTrainedModel, options: FormOptions) -> bool:
    if options.keep_base is not None:
        return options.keep_base
    size = model.num_parameters() * torch.finfo(options.dtype).bits // 8
    return size <= free_memory(model.device) // 4


def _lean_way(lean: LeanModel, head: nn.Linear | None, recompute: bool | None) -> Way:
    return Way(LEAN, partial(lean.predicting_states, recompute=recompute), head, packs=True)


def _say(way: Way, wrong: Mapping[str, str], not_packed: str | None) -> None:
    if wrong or not way.packs:
        why = "; ".join(f"{name}: {reason}" for name, reason in wrong.items()) or not_packed
        rank_zero_info(f"Log-probs are computed by a slower way, {way.name} ({why}).")
