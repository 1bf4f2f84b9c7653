"""Seeds of single steps: functions of the step alone, so that a resumed run draws what an undisturbed one would."""

from __future__ import annotations

import os
from hashlib import blake2b

from lit_debias.support import distributed


def seed_of_run(seed: int | None) -> int:
    """Return the seed, or that of Lightning's ``seed_everything`` for None, and 0 where that was not called.

    Lightning leaves its seed in an environment variable, which the processes of a run inherit.
    """
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed


def seed_at(seed: int, step: int) -> int:
    """Return the seed of one step, batch or epoch, the same on every rank.

    Args:
        seed: The run's.
        step: Which one, from 0 and below a million, so that runs with other seeds share none.
    """
    return seed * 1_000_003 + step


def seed_again(seed: int, nth: int) -> int:
    """Return another seed for the same step, below 2^40 and the same on every rank.

    Args:
        seed: The step's.
        nth: Which other one, from 1.
    """
    return int.from_bytes(blake2b(f"{seed} {nth}".encode(), digest_size=5).digest(), "big")


def seed_of_rank(seed: int) -> int:
    """Return this rank's own of the seeds that ranks share."""
    return seed * distributed.world_size() + distributed.rank()
