"""A second view of the policy to sample from: base plus LoRA in one plain weight per layer.

A 4-bit base is never merged in place: dequantise, add and requantise would move it at every step. The copy shares
all weights that no adapter touches, holds one new matrix per adapted or quantised layer, and is refreshed after an
optimiser step: base and update are summed in fp32 and rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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


def fingerprint(parameters: Iterable[nn.Parameter]) -> list[int]:
    """Return one number for each fp32 parameter, which any change of its content changes.

    The sum of its bit patterns: exact, without memory for a copy, and unlike a version counter it sees what is written
    through ``.data`` too.
    """
    sums = [parameter.detach().view(torch.int32).sum(dtype=torch.int64) for parameter in parameters]
    numbers: list[int] = torch.stack(sums).tolist()
    return numbers


def merged_weight(layer: nn.Module) -> Tensor:
    """Return base + LoRA of one layer as fp32 [out, in]."""
    if not is_adapted(layer):
        return base_weight(layer).float()
    weight = base_weight(layer.base_layer).float()  # type: ignore[arg-type]
    for name in layer.active_adapters:  # type: ignore[union-attr]
        delta = layer.get_delta_weight(name).float()  # type: ignore[operator]
        weight = weight + (delta.T if is_transposed(layer.base_layer) else delta)  # type: ignore[arg-type]
    return weight


def base_weight(layer: nn.Module) -> Tensor:
    """Return the weight [out, in] of a plain, transposed or 4-bit layer in the type that it computes in."""
    weight: Any = layer.weight
    if is_quantized(layer):
        import bitsandbytes as bnb

        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.T if is_transposed(layer) else weight  # type: ignore[no-any-return]


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer keeps its weight as [in, out], as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def is_adapted(module: nn.Module) -> bool:
    """Return whether a layer carries LoRA."""
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def is_quantized(module: nn.Module) -> bool:
    """Return whether a layer's weight is 4-bit."""
    return hasattr(getattr(module, "weight", None), "quant_state")
