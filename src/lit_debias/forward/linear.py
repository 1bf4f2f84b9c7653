"""Linear layers of one input as one product, in the two forms that a policy needs.

Training and the reference multiply by the frozen base and add the LoRA branch in fp32 weights, as QLoRA says.
Sampling multiplies by base and LoRA in one weight, rounded once: no branch at each of many small products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lit_debias.models.layers import base_weight, is_adapted, is_quantized
from lit_debias.support.precision import multiplies_bf16


class FusedLinear:
    """One product with the weights of several layers, stacked.

    Args:
        layers: Linear layers with one input, plain, 4-bit, or adapted by plain LoRA.
        dtype: Type of the weights and of the products.
        keep_base: Keep the weights of a 4-bit base in ``dtype``, so that training need not dequantise them in every
            pass. Other bases are kept in any case, and the layers' own weights become views of them.
    """

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype, keep_base: bool = False) -> None:
        self.dtype = dtype
        self._layers: list[Any] = list(layers)
        self._bases: list[Any] = [layer.base_layer if is_adapted(layer) else layer for layer in layers]
        self._quantized = any(is_quantized(base) for base in self._bases)
        self.keeps_base = keep_base or not self._quantized
        self.base: Tensor | None = None
        self._merged: Tensor | None = None
        self._packed = False
        self.bias = _stacked_bias(self._bases, dtype)
        self.inputs: int = self._bases[0].in_features
        self.outputs: int = sum(base.out_features for base in self._bases)
        self.number = next(_NUMBERS)
        _NUMBERED[self.number] = self

    # ---------------------------------------------------------------- training and reference

    def adapted(self, inputs: Tensor) -> Tensor:
        """Return [..., sum of outputs] of [..., inputs]: base plus the active LoRA branch, differentiable in both."""
        factors = self._lora()
        if not self.keeps_base and torch.is_grad_enabled():  # bitsandbytes dequantises again in the backward pass
            product = torch.cat([base(inputs) for base in self._bases], -1)
        else:
            product = linear(inputs, self.base_weight(), self.bias)
        if factors is None:
            return product
        down, up = (factor.to(self.dtype) for factor in factors)
        product.flatten(0, -2).addmm_(linear(inputs.flatten(0, -2), down), up.T)
        return product

    def _lora(self) -> tuple[Tensor, Tensor] | None:
        """Return A [R, inputs] and B [outputs, R] with the scale in B, stacked over layers; None without LoRA."""
        downs, ups = [], []
        for layer, base in zip(self._layers, self._bases, strict=True):
            names = layer.active_adapters if is_adapted(layer) and not layer.disable_adapters else ()
            downs += [layer.lora_A[name].weight for name in names]
            ups.append(
                torch.cat([layer.lora_B[name].weight * layer.scaling[name] for name in names], 1)
                if names
                else base.weight.new_zeros(base.out_features, 0, dtype=torch.float32)
            )
        return (torch.cat(downs), torch.block_diag(*ups)) if downs else None  # type: ignore[no-untyped-call]

    def base_weight(self) -> Tensor:
        """Return the stacked weight without LoRA, [outputs, inputs]."""
        if self.base is not None:
            return self.base
        with torch.no_grad():
            weights = [base_weight(base).to(self.dtype) for base in self._bases]
            weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        if self.keeps_base:
            self.base = weight
            if not self._quantized and len(weights) > 1:
                start = 0
                for base in self._bases:
                    base.weight.data = weight[start : start + base.out_features]
                    start += base.out_features
        return weight

    # ---------------------------------------------------------------- sampling

    def merged(self, inputs: Tensor) -> Tensor:
        """Return [..., sum of outputs] of [..., inputs] with the weight of the last :meth:`refresh`."""
        if not self._packed:
            return linear(inputs, self._merged, self.bias)  # type: ignore[arg-type]
        if torch.compiler.is_compiling():
            compiled: Tensor = torch.ops.lit_debias.packed_linear(inputs, self.number, self.outputs)
            return compiled
        return self.packed_product(inputs)

    def packed_product(self, inputs: Tensor) -> Tensor:
        """Return what :meth:`merged` does, where the weight is laid out for oneDNN."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._merged, self.bias, "none", [], "")
        return product

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge anew, the sum rounded once; does nothing where there is no adapter.

        On CPUs the weight is laid out for oneDNN once instead of in every product: for the few rows of a decoding step
        a third faster in bf16, twice as fast in fp32 with AVX2.
        """
        if self._merged is not None and not self.is_adapted:
            return
        weight = self.merged_weight()
        self._packed = _onednn_packs(weight)
        self._merged = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT) if self._packed else weight

    @property
    def is_adapted(self) -> bool:
        """Whether the weight to sample with changes with an adapter."""
        return any(map(is_adapted, self._layers))

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return base and active LoRA in one weight [outputs, inputs], rounded once."""
        factors, weight = self._lora(), self.base_weight()
        if factors is None:
            return weight
        down, up = (factor.to(self.dtype) for factor in factors)  # as :meth:`adapted` rounds them
        return torch.addmm(weight, up, down)


_NUMBERS = count()
_NUMBERED: WeakValueDictionary[int, FusedLinear] = WeakValueDictionary()

# To torch.compile a weight in oneDNN's layout is opaque: what it compiles names the layer instead.
torch.library.define("lit_debias::packed_linear", "(Tensor inputs, int number, int outputs) -> Tensor")


@torch.library.impl("lit_debias::packed_linear", "CPU")
def _packed_linear(inputs: Tensor, number: int, _outputs: int) -> Tensor:
    return _NUMBERED[number].packed_product(inputs)


@torch.library.register_fake("lit_debias::packed_linear")  # type: ignore[untyped-decorator]
def _shaped_like_packed_linear(inputs: Tensor, _number: int, outputs: int) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], outputs)


_ROWS_HINT = 16  # the layout that oneDNN chooses for it is as fast at 4 and at 188 rows


def _onednn_packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and (weight.dtype == torch.float32 or multiplies_bf16(weight.device))
    )


def _stacked_bias(bases: list[Any], dtype: torch.dtype) -> Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    zeros = [base.weight.new_zeros(base.out_features, dtype=dtype) for base in bases]
    return torch.cat([zero if b.bias is None else b.bias.to(dtype) for b, zero in zip(bases, zeros, strict=True)])
