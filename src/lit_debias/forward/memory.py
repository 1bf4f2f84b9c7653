"""How many bytes a forward pass keeps for its backward pass, counted in one layer, to know whether all of them fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor


class KeptBytes:
    """Bytes that autograd has kept so far in :meth:`counting`, each piece of memory once."""

    def __init__(self, there_anyway: Iterable[Tensor] = ()) -> None:
        self.total = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in there_anyway}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is kept by operations within the context; changes no result."""
        with torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor):
            yield

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, or in the machine's memory for a CPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)
