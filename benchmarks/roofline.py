"""A decoding step beside what it is made of: its products with the weights, and what the device could do at best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.clock import Clock, spread
from benchmarks.settings import Settings
from lit_debias.lean_model import KeyValueCache, LeanModel

COPIED_BYTES = 2**29
REPEATS = 7


@torch.inference_mode()
def decoding_figures(model: LeanModel, settings: Settings, prompt_tokens: int, step_seconds: float) -> dict[str, float]:
    """Return what docs/benchmarks.md says of ``decoding``.

    Args:
        model: Merged.
        settings: Size of the rollout, of fixed lengths.
        prompt_tokens: Tokens of the longest prompt.
        step_seconds: Mean seconds of one decoding step.
    """
    linears = [*(fused for layer in model.layers for fused in layer.linears), model.head]
    device = model.head.base_weight().device
    inputs = {
        fused.inputs: torch.randn(settings.completions, 1, fused.inputs, dtype=model.dtype, device=device)
        for fused in linears
    }
    products = _seconds(settings.device, lambda: [fused.merged(inputs[fused.inputs]) for fused in linears])
    parameters = sum(fused.inputs * fused.outputs for fused in linears)
    flops = 2 * settings.completions * parameters
    mask = torch.ones(settings.prompts, prompt_tokens, dtype=torch.bool, device=device)
    cache = KeyValueCache(model, mask, settings.group_size, settings.completion_tokens // 2).bytes
    read = parameters * torch.finfo(model.dtype).bits // 8 + cache
    bandwidth, rate = bytes_per_second(settings.device), flops_per_second(settings.device, model.dtype)
    roofline = max(read / bandwidth, flops / rate)
    return {
        "step_seconds": step_seconds,
        "products_seconds": products,
        "beyond_products": 1 - products / step_seconds,
        "bytes": read,
        "flops": flops,
        "bytes_per_second": bandwidth,
        "flops_per_second": rate,
        "roofline_seconds": roofline,
        "roofline_share": roofline / step_seconds,
    }


def bytes_per_second(device: str) -> float:
    """Return how many bytes a copy within the device's memory reads and writes."""
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _seconds(device, lambda: target.copy_(source))


def flops_per_second(device: str, dtype: torch.dtype) -> float:
    """Return the rate of one large square product."""
    size = 2048 if device == "cpu" else 8192
    matrix = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _seconds(device, lambda: matrix @ matrix)


def _seconds(device: str, work: Callable[[], Any]) -> float:
    work()
    clock = Clock(device)
    for _ in range(REPEATS):
        with clock.phase("work"):
            work()
    return float(spread(clock.seconds["work"])["median"])
