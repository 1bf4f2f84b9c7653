"""A decoding step beside what it is made of: its products with the weights, and what the device could do at best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.clock import Clock, spread
from benchmarks.settings import Settings
from lit_debias.forward.cache import KeyValueCache
from lit_debias.forward.lean import LeanModel
from lit_debias.forward.linear import FusedLinear
from lit_debias.forward.native import NativeCache, NativeModel

COPIED_BYTES = 2**29
REPEATS = 7
PRODUCT_REPEATS = 30  # a token takes milliseconds, and a shared machine is busy for longer


@torch.inference_mode()
def decoding_figures(
    model: LeanModel | NativeModel, settings: Settings, prompt_tokens: int, step_seconds: float
) -> dict[str, float]:
    """Return what docs/benchmarks.md says of ``decoding``.

    Args:
        model: Merged, as the decoder has it.
        settings: Size of the rollout, of fixed lengths.
        prompt_tokens: Tokens of the longest prompt.
        step_seconds: Mean seconds of one decoding step.
    """
    lean = model.model if isinstance(model, NativeModel) else model
    linears = [*(fused for layer in lean.layers for fused in layer.linears), lean.head]
    products = _seconds(settings.device, products_of(model, linears, settings.completions), PRODUCT_REPEATS)
    parameters = sum(fused.inputs * fused.outputs for fused in linears)
    flops = 2 * settings.completions * parameters
    cache = cache_bytes(model, settings.prompts, prompt_tokens, settings.group_size, settings.completion_tokens // 2)
    read = parameters * torch.finfo(lean.dtype).bits // 8 + cache
    bandwidth, rate = bytes_per_second(settings.device), flops_per_second(settings.device, lean.dtype)
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


def products_of(model: LeanModel | NativeModel, linears: list[FusedLinear], rows: int) -> Callable[[], Any]:
    """Return what multiplies as many rows by all weights, each product by itself."""
    lean = model.model if isinstance(model, NativeModel) else model
    device = lean.head.base_weight().device
    blocks = -(-rows // 16)
    inputs = {
        size: torch.randn(blocks * 16, 1, size, dtype=lean.dtype, device=device)
        for size in {fused.inputs for fused in linears}
    }
    if isinstance(model, NativeModel):  # random numbers in any order: only their place would differ
        return lambda: [model.product(fused, inputs[fused.inputs], rows) for fused in linears]
    return lambda: [fused.merged(inputs[fused.inputs][:rows]) for fused in linears]


def cache_bytes(
    model: LeanModel | NativeModel, prompts: int, prompt_tokens: int, group_size: int, new_tokens: int
) -> int:
    """Return what a decoding step reads of the cache, halfway through the completions."""
    if isinstance(model, NativeModel):
        own = NativeCache(model, prompts * group_size, new_tokens)
        return NativeCache(model, prompts, prompt_tokens).bytes + own.bytes
    mask = torch.ones(prompts, prompt_tokens, dtype=torch.bool, device=model.head.base_weight().device)
    return KeyValueCache(model, mask, group_size, new_tokens).bytes


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


def _seconds(device: str, work: Callable[[], Any], repeats: int = REPEATS) -> float:
    work()
    clock = Clock(device)
    for _ in range(repeats):
        with clock.phase("work"):
            work()
    return float(spread(clock.seconds["work"])["median"])
