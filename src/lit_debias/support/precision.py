"""Which floating-point type a model computes in."""

from __future__ import annotations

import platform
from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]


def dtype_of(precision: Precision, device: torch.device | str) -> torch.dtype:
    """Return the type that ``precision`` means on ``device``: ``auto`` is bf16 where it is fast, fp32 elsewhere."""
    if precision == "auto":
        precision = "bfloat16" if multiplies_bf16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def multiplies_bf16(device: torch.device | str) -> bool:
    """Return whether the device has instructions for products in bf16.

    A CPU without them (most before 2023) emulates: forward products take about 7 times as long as in fp32, backward
    ones about 60 times.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu":
        return False
    if platform.machine().lower() in {"x86_64", "amd64"}:
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
