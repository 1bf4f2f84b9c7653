"""A second view of the policy to sample from: base plus LoRA in one plain weight per layer.

A 4-bit base is never merged in place: dequantise, add and requantise would move it at every step. The copy shares
all weights that no adapter touches, holds one new matrix per adapted or quantised layer, and is refreshed after an
optimiser step: base and update are summed in fp32 and rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
        if _is_adapted(module) or _is_quantized(module):
            return self._plain_linear(module)
        mirrored = copy.copy(module)  # shares parameters, buffers and hooks
        mirrored._modules = {name: child and self._mirror(child) for name, child in module._modules.items()}
        return mirrored

    def _plain_linear(self, layer: nn.Module) -> nn.Linear:
        base = layer.base_layer if _is_adapted(layer) else layer
        with torch.device("meta"):
            linear = nn.Linear(base.in_features, base.out_features, bias=False)  # type: ignore[arg-type,union-attr]
        weight = torch.empty(linear.weight.shape, dtype=self.dtype, device=base.weight.device)  # type: ignore[union-attr,arg-type]
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = base.bias  # type: ignore[union-attr,assignment]
        self._merged.append((layer, linear))
        return linear


class FusedLinear:
    """One product with the weights of several layers, stacked: base plus LoRA, in the form that the device likes best.

    On CPUs with bf16 instructions the weight is laid out for oneDNN once instead of in every product (a third
    faster for the few rows of a decoding step, at any number of rows).

    Args:
        layers: Linear layers with one input, plain, quantised or adapted.
        dtype: Type of the weight.
    """

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._layers = list(layers)
        self._fixed = not any(_is_adapted(layer) for layer in layers)
        self._bias = _stacked_bias(self._layers, dtype)
        self._weight: Tensor | None = None
        self._packed = False

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge anew; does nothing where there is no adapter."""
        if self._fixed and self._weight is not None:
            return
        weight = torch.cat([merged_weight(layer).to(self.dtype) for layer in self._layers])
        self._packed = _onednn_packs(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT) if self._packed else weight

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return [..., sum of outputs] of [..., inputs]."""
        if not self._packed:
            return nn.functional.linear(inputs, self._weight, self._bias)  # type: ignore[arg-type]
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return product


_ROWS_HINT = 16  # the layout that oneDNN chooses for it is as fast at 4 and at 188 rows


def _onednn_packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _stacked_bias(layers: list[nn.Module], dtype: torch.dtype) -> Tensor | None:
    bases: list[Any] = [layer.base_layer if _is_adapted(layer) else layer for layer in layers]
    if all(base.bias is None for base in bases):
        return None
    zeros = [base.weight.new_zeros(base.out_features, dtype=dtype) for base in bases]
    return torch.cat([zero if b.bias is None else b.bias.to(dtype) for b, zero in zip(bases, zeros, strict=True)])


def merged_weight(layer: nn.Module) -> Tensor:
    """Return base + LoRA of one layer as fp32 [out, in]."""
    if not _is_adapted(layer):
        return _base_weight(layer)
    weight = _base_weight(layer.base_layer)  # type: ignore[arg-type]
    for name in layer.active_adapters:  # type: ignore[union-attr]
        weight = weight + layer.get_delta_weight(name).float()  # type: ignore[operator]
    return weight


def _base_weight(layer: nn.Module) -> Tensor:
    weight: Any = layer.weight
    if _is_quantized(layer):
        import bitsandbytes as bnb

        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.float()  # type: ignore[no-any-return]


def _is_adapted(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _is_quantized(module: nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state")
