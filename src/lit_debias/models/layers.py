"""Linear layers as they are found inside a model: plain, transposed, 4-bit, adapted; and their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_debias.support.hashing import sha256

SAMPLED = 64
"""Numbers of each weight that stand for all of it in a digest."""


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
    """Return whether a layer's weight is 4-bit; one that processes share out knows it beside its weight."""
    return hasattr(getattr(module, "weight", None), "quant_state") or getattr(module, "quant_state", None) is not None


def weights_digest(model: nn.Module) -> str:
    """Return a digest over a few numbers of each frozen weight."""
    parts: list[str | bytes] = []
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            few = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLED)].contiguous()
            parts += [f"{name}{[*weight.shape]}", few.view(torch.uint8).cpu().numpy().tobytes()]
    return sha256(parts)[:12]
