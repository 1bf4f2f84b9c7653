"""Threads of a process: how many it may have, and how they wait for each other.

OpenMP, whose threads compute torch's kernels on a CPU, asks both from the environment, once, when torch is loaded. So
``import lit_debias`` calls :func:`settle` before anything else, and this module imports nothing that loads torch.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_debias.support.text import counted

COUNT, POLICY, SPINS = "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
SPIN_COUNT = 4000
"""Turns of a loop of some 60 nanoseconds that a thread waits awake, found by measuring; GNU OpenMP has 300,000."""

PROCESS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Limit:
    """What a cgroup allows."""

    cores: float
    """Of processor time."""
    group: tuple[int, int]
    """Device and inode of its folder: processes with the same ones share what it allows."""


@dataclass(frozen=True)
class Place:
    """Where a process runs, and what it may use there; ranks compare theirs."""

    machine: str
    cores: frozenset[int]
    """Numbers of those that it may run on."""
    limit: Limit | None
    explicit: bool
    """Whether it was started with a number of threads, see :func:`explicit`."""


_given: str | None = os.environ.get(COUNT)
_late = False


def settle() -> None:
    """Bound how long OpenMP's threads spin, and how many there are where a cgroup allows less than all cores.

    What the user set stays: ``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``, ``OMP_NUM_THREADS``.
    """
    global _late
    loaded = "torch" in sys.modules
    if not waits_by_itself():
        os.environ[SPINS] = str(SPIN_COUNT)  # of processes that this one starts, too
        _late = loaded
    allowed = at_most([place()])
    if _given is None and allowed < len(usable_cores()):
        os.environ[COUNT] = str(allowed)
        if loaded:
            sys.modules["torch"].set_num_threads(allowed)


def waits_by_itself() -> bool:
    """Return whether the environment says how threads wait."""
    return POLICY in os.environ or SPINS in os.environ


def came_too_late() -> bool:
    """Return whether torch was loaded before its threads could be told not to spin for long."""
    return _late


def explicit() -> bool:
    """Return whether ``OMP_NUM_THREADS`` was there when lit-debias was imported: Lightning's launcher sets it later."""
    return _given is not None


class ShortWait:
    """Makes threads wait for microseconds where it came too late to tell them, as long as the machine is crowded.

    GNU OpenMP lets threads spin for a moment only where a process has more of them than cores. So another thread opens
    a team of its own and then sleeps, which costs nothing; with both teams there are more, unless torch was given half
    of the cores or fewer. On an idle machine longer spinning is a little faster.
    """

    def __init__(self) -> None:
        self._over: threading.Event | None = None

    def follow(self, crowded: bool) -> None:
        """Begin or end it, as the machine is now."""
        if crowded and _late and self._over is None:
            ready, self._over = threading.Event(), threading.Event()
            threading.Thread(target=self._stay, args=(ready, self._over), daemon=True).start()
            ready.wait()
        elif not crowded:
            self.end()

    def end(self) -> None:
        """Let threads wait as before."""
        if self._over is not None:
            self._over.set()
            self._over = None

    @staticmethod
    def _stay(ready: threading.Event, over: threading.Event) -> None:
        sys.modules["torch"].zeros(2**20).add_(1)  # more than one thread's work
        ready.set()
        over.wait()


# ---------------------------------------------------------------- how many


def at_most(places: Sequence[Place], own: int = 0) -> int:
    """Return how many threads a process should have, at least 1.

    Args:
        places: Of all ranks, which share cores and limits where these are the same.
        own: Index of this process.
    """
    mine = places[own]
    here = [other for other in places if other.machine == mine.machine]
    found = len(mine.cores) // sum(bool(other.cores & mine.cores) for other in here)
    if mine.limit is not None:
        sharing = sum(other.limit is not None and other.limit.group == mine.limit.group for other in here)
        found = min(found, int(mine.limit.cores / sharing))
    return max(1, found)


def of_ranks(places: Sequence[Place], own: int) -> int | None:
    """Return the same, or None where the user said how many.

    Where one rank was told no number, a launcher has told the others.
    """
    here = [other for other in places if other.machine == places[own].machine]
    return None if all(other.explicit for other in here) else at_most(places, own)


def place() -> Place:
    """Return where this process runs."""
    machine = BOOT.read_text().strip() if BOOT.is_file() else socket.gethostname()
    return Place(machine, usable_cores(), cgroup_limit(), explicit())


def usable_cores() -> frozenset[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cgroup_limit(process: Path = PROCESS, mount: Path = MOUNT) -> Limit | None:
    """Return the narrowest limit of this process's cgroup and those around it; None where there is none.

    Args:
        process: Names its groups, of version 1 or 2, or of both.
        mount: Holds their folders.
    """
    limits = [limit for folder in _folders(process, mount) if (limit := _limit_of(folder)) is not None]
    return min(limits, key=lambda limit: limit.cores, default=None)


def _folders(process: Path, mount: Path) -> Iterator[Path]:
    """Yield the folders with limits of processor time; in a container the outer ones of a path are not there."""
    for line in process.read_text().splitlines() if process.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in (mount, mount / "unified") if not controllers else (mount / controllers, mount / "cpu"):
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder == root or root in folder.parents)


def _limit_of(folder: Path) -> Limit | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if quota in ("max", "-1"):
            return None
        found = folder.stat()
        return Limit(int(quota) / int(period), (found.st_dev, found.st_ino))
    except (OSError, ValueError):  # not there, or not for us to read
        return None


# ---------------------------------------------------------------- in words


def crowd(more: int = 0) -> str | None:
    """Return what says that more threads want to run than there are cores; None where nothing does.

    Args:
        more: Threads of a run that is still to begin; those of one that goes on are in the load already.
    """
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load average {load:.1f} on {counted(cores, 'core')}" if load + more > cores + 0.5 else None


def allowance() -> str:
    """Return in words what this process may use."""
    found, limit = f"{len(usable_cores())} of {counted(os.cpu_count() or 1, 'core')}", cgroup_limit()
    return found if limit is None else f"{found}, of which a cgroup allows {limit.cores:g}"


def waiting() -> str:
    """Return in words how OpenMP's threads wait."""
    for name in (POLICY, SPINS):
        if name in os.environ and not (name == SPINS and os.environ[name] == str(SPIN_COUNT)):
            return f"as {name}={os.environ[name]} says"
    return "awake for milliseconds: torch was loaded first" if _late else "awake for 0.2 ms, then asleep"
