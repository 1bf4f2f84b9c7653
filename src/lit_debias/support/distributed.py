"""Reductions over ranks that do nothing where there is one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from lit_debias.errors import ResumableError, UserError


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's index, 0 where there is only one."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def all_sum(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks; every rank must call it."""
    if not is_distributed():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: Any) -> list[Any]:
    """Return what every rank passed, in order of rank; every rank must call it."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


@contextmanager
def fail_together() -> Iterator[None]:
    """Stop every rank where one raises within the context, which must hold no collective call.

    Otherwise the others would wait for it for ever. Every rank must enter.

    Raises:
        ResumableError: other ranks have failed, all of them so; the message is the first one's.
        UserError: another rank has failed in another way.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    mine = failure and (f"{type(failure).__name__}: {failure}", isinstance(failure, ResumableError))
    failures = {number: told for number, told in enumerate(gather_objects(mine)) if told is not None}
    together = all(resumable for _, resumable in failures.values())  # to keep a checkpoint, every rank must
    if isinstance(failure, ResumableError) and not together:
        raise UserError(str(failure)) from failure
    if failure is not None:
        raise failure
    for number, (message, _) in failures.items():
        raise (ResumableError if together else UserError)(f"process {number} failed: {message}")
