"""What ranks do together; nothing where there is one process."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_debias.errors import ResumableError, UserError

Value = TypeVar("Value")


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


@torch.no_grad()
def same_as_first(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters the first rank's values; every rank must call it."""
    for parameter in parameters if is_distributed() else ():
        dist.broadcast(parameter.detach(), 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters the mean of all ranks' gradients, as DDP does; every rank must call it."""
    gradients = [cast(Tensor, parameter.grad) for parameter in parameters if is_distributed()]
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    for gradient in gradients:
        gradient /= world_size()


def gather_objects(value: Any) -> list[Any]:
    """Return what every rank passed, in order of rank; every rank must call it."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def of_first(make: Callable[[], Value]) -> Value:
    """Return what the first rank makes, on every rank; the others have nothing to make it of. Every rank must call it.

    Raises:
        UserError: the first rank has failed; the message is its own.
    """
    if not is_distributed():
        return make()
    box: list[Any] = [None]
    with fail_together():
        if rank() == 0:
            box = [make()]
    dist.broadcast_object_list(box)
    return cast(Value, box[0])


def check_alike(found: Mapping[str, Any]) -> None:
    """Refuse to go on where ranks do not have the same, as with files that each machine has of its own.

    Args:
        found: What this rank has, by a name that says what it is. Every rank must call it.

    Raises:
        UserError: names the first difference, and the processes and machines that differ.
    """
    (first_machine, first), *others = gather_objects((socket.gethostname(), dict(found)))
    for number, (machine, other) in enumerate(others, 1):
        for name in sorted(name for name in {*first, *other} if first.get(name) != other.get(name)):
            raise UserError(
                f"{name} is {other.get(name)} for process {number} (on {machine}) and {first.get(name)} for process 0 "
                f"(on {first_machine}); give every machine the same configuration and the same files"
            )


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
