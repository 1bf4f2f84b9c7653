"""A second view of the policy to sample from: base plus LoRA in one plain weight per layer.

A 4-bit base is never merged in place: dequantise, add and requantise would move it at every step. The copy shares
all weights that no adapter touches, holds one new matrix per adapted or quantised layer, and is refreshed after an
optimiser step: base and update are summed in fp32 and rounded once.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_debias.models.layers import is_adapted, is_quantized, merged_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InferenceCopy:
    """The copy, and how to bring it up to date.

    Args:
        model: Hugging Face model with PEFT's LoRA layers inside.
        dtype: Type of the merged weights.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.stale = True
        self._merged: list[tuple[nn.Module, nn.Linear]] = []
        self._model: PreTrainedModel = self._mirror(model).eval()

    @torch.no_grad()
    def refreshed(self) -> PreTrainedModel:
        """Return the model, merged anew where the adapter has changed."""
        if self.stale:
            for layer, merged in self._merged:
                merged.weight.copy_(merged_weight(layer))
            self.stale = False
        return self._model

    def _mirror(self, module: nn.Module) -> Any:
        if is_adapted(module) or is_quantized(module):
            return self._plain_linear(module)
        mirrored = copy.copy(module)  # shares parameters, buffers and hooks
        mirrored._modules = {name: child and self._mirror(child) for name, child in module._modules.items()}
        return mirrored

    def _plain_linear(self, layer: nn.Module) -> nn.Linear:
        base = layer.base_layer if is_adapted(layer) else layer
        with torch.device("meta"):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=False)  # type: ignore[arg-type]
        weight = torch.empty(linear.weight.shape, dtype=self.dtype, device=base.weight.device)  # type: ignore[union-attr,arg-type]
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = base.bias  # type: ignore[union-attr,assignment]
        self._merged.append((layer, linear))
        return linear
