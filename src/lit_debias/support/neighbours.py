"""Other processes on this process's cores, and as many threads as they leave room for.

Kernels deal their work out to threads in equal parts and wait for the slowest. A thread that shares its core with
another process is late each time, so that two threads of which one is disturbed do less than one that is not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from lit_debias.support import threads

SHORTEST = 0.25
"""Seconds of work below which the kernel's clock, which counts in hundredths of a second, says too little."""


@dataclass(frozen=True)
class Usage:
    """Seconds of processor time, and of the clock."""

    clock: float
    of_all: float
    """Spent on this process's cores, by whomever but those that are nicer than it: they give their core back."""
    own: float
    """Spent by this process, its threads together."""

    @classmethod
    def now(cls) -> Usage:
        """Read what has been spent so far."""
        usable, nice, spent = threads.usable_cores(), os.nice(0) > 0, os.times()
        cores = [_busy(times, nice) for core, times in enumerate(psutil.cpu_times(percpu=True)) if core in usable]
        return cls(time.perf_counter(), sum(cores), spent.user + spent.system)

    def __sub__(self, before: Usage) -> Usage:
        return Usage(self.clock - before.clock, self.of_all - before.of_all, self.own - before.own)

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.clock + other.clock, self.of_all + other.of_all, self.own + other.own)

    @property
    def others(self) -> float:
        """Cores that other processes kept busy."""
        return max(0.0, self.of_all - self.own) / self.clock


NONE = Usage(0.0, 0.0, 0.0)


def _busy(times: Any, nice: bool) -> float:
    names = ("user", "system", "irq", "softirq", *(("nice",) if nice else ()))
    return float(sum(getattr(times, name, 0.0) for name in names))


def room(allowed: int, cores: int, others: float) -> int:
    """Return how many threads find a core of their own, at least 1.

    Args:
        allowed: The most that there may be.
        cores: That the process may run on.
        others: Cores that other processes keep busy; half a core and more counts as one.
    """
    return max(1, min(allowed, cores - int(others + 0.5)))


class Room:
    """The number of torch's threads, which follows what others do while this process computes."""

    def __init__(self) -> None:
        self._watched = NONE
        self._allowed = self._set = 0

    def adapt(self, usage: Usage) -> None:
        """Take what has been used while computing, and choose the number for what is computed next."""
        self._watched = self._watched + usage
        if self._watched.clock < SHORTEST:
            return
        others, self._watched = self._watched.others, NONE
        current = torch.get_num_threads()
        if current != self._set:  # chosen elsewhere
            self._allowed = current
        self._set = room(self._allowed, len(threads.usable_cores()), others)
        if self._set != current:
            torch.set_num_threads(self._set)


_room = Room()


@contextmanager
def making_room(device: torch.device) -> Iterator[None]:
    """Compute within the context, on as many threads as other processes left room for in contexts before.

    Does nothing where the user gave a number of threads, or where a GPU computes.
    """
    if device.type != "cpu" or threads.explicit():
        yield
        return
    before = Usage.now()
    yield
    _room.adapt(Usage.now() - before)
