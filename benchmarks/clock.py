"""Seconds, work done and peak memory of named phases."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch


class Clock:
    """Wall-clock seconds, amount of work and peak memory of named phases, one entry a repeat."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.amounts: dict[str, list[float]] = defaultdict(list)
        self.units: dict[str, str] = {}
        self.peak_bytes: dict[str, int] = defaultdict(int)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens within the context, the device's queue included; phases do not nest."""
        synchronize(self.device)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name].append(time.perf_counter() - start)
        self.peak_bytes[name] = max(self.peak_bytes[name], peak_memory(self.device))

    def count(self, name: str, amount: float, unit: str) -> None:
        """Say how much the last repeat of a phase has done, in ``unit`` (of a rate: ``tokens/s``)."""
        self.amounts[name].append(amount)
        self.units[name] = unit

    def total(self, name: str, parts: Sequence[str], like: str) -> None:
        """Add the sum of phases, repeat by repeat, as a phase that does the work of ``like``."""
        self.seconds[name] = [sum(repeat) for repeat in zip(*(self.seconds[part] for part in parts), strict=True)]
        self.amounts[name], self.units[name] = self.amounts[like], self.units[like]
        self.peak_bytes[name] = max(self.peak_bytes[part] for part in parts)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return seconds, rate and peak memory of each phase by name."""
        return {
            name: {
                "seconds": spread(seconds),
                "rate": rate(seconds, self.amounts[name]),
                "unit": self.units[name],
                "peak_bytes": self.peak_bytes[name],
            }
            for name, seconds in self.seconds.items()
        }


class Parts:
    """Seconds of parts of one phase, added up; looks at nothing but time, so it may run inside of a phase."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds within the context, the device's queue included."""
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start

    def rest(self, name: str, whole: str) -> dict[str, float]:
        """Return the parts of ``whole``, and as ``name`` what of it no other part holds."""
        parts = {part: seconds for part, seconds in self.seconds.items() if part != whole}
        return {**parts, name: self.seconds[whole] - sum(parts.values())}


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return median, minimum, maximum and all of at least one value."""
    values = list(values)
    return {"median": median(values), "min": min(values), "max": max(values), "all": values}


def rate(seconds: Iterable[float], amounts: Iterable[float]) -> float:
    """Return the median amount of work a second."""
    return median(amount / second for second, amount in zip(seconds, amounts, strict=True))


def synchronize(device: str) -> None:
    """Wait until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: str) -> int:
    """Return bytes: allocated on the GPU since the last reset, or resident in this process since it started."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    if found:  # on Linux; there getrusage begins with the peak of the process that started this one
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
