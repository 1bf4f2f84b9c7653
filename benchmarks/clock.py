"""Seconds and peak memory of named phases."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from benchmarks.settings import Settings


class Clock:
    """Wall-clock seconds and peak memory of named phases."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peak_bytes: dict[str, int] = defaultdict(int)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens within the context, the device's queue included."""
        self._wait()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name].append(time.perf_counter() - start)
        self.peak_bytes[name] = max(self.peak_bytes[name], peak_memory(self.device))

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def peak_memory(device: str) -> int:
    """Return bytes: allocated on the GPU since the last reset, or resident in this process since it started."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def phases(clock: Clock, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return seconds, rate and peak memory of each phase, and of the step, whose seconds are their sums."""
    per_step = [sum(repeat) for repeat in zip(*clock.seconds.values(), strict=True)]
    work = {
        "rollout": (settings.sampled_tokens, "tokens/s"),
        "reference": (settings.packed_tokens, "packed tokens/s"),
        "update": (settings.packed_tokens, "packed tokens/s"),
        "step": (settings.sampled_tokens, "tokens/s"),
    }
    result = {}
    for name, seconds in [*clock.seconds.items(), ("step", per_step)]:
        amount, unit = work.get(name, (settings.completions, "completions/s"))
        result[name] = {
            "seconds": {"median": median(seconds), "min": min(seconds), "max": max(seconds), "all": seconds},
            "rate": amount / median(seconds),
            "unit": unit,
            "peak_bytes": clock.peak_bytes[name] or max(clock.peak_bytes.values()),
        }
    return result
