"""Seeds of single steps: functions of the step alone, so that a resumed run draws what an undisturbed one would."""

from __future__ import annotations

from lit_debias.support import distributed


def seed_at(seed: int, step: int) -> int:
    """Return the seed of one step, batch or epoch, the same on every rank.

    Args:
        seed: The run's.
        step: Which one, from 0 and below a million, so that runs with other seeds share none.
    """
    return seed * 1_000_003 + step


def seed_of_rank(seed: int) -> int:
    """Return this rank's own of the seeds that ranks share."""
    return seed * distributed.world_size() + distributed.rank()
