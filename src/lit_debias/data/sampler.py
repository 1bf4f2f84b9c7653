"""The order of training, as a function of seed and epoch, and the loader that follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from datasets import Dataset

Batch = TypeVar("Batch")


class PromptSampler:
    """Deals whole prompts to ranks.

    The order is a pure function of (seed, epoch). One step takes the next ``batch_size`` rows whatever the number of
    ranks; rank r gets the r-th of ``world_size`` equal slices. All ranks make the same number of steps.

    Args:
        groups: Row numbers that belong to one prompt, prompt by prompt; they stay next to each other.
        batch_size: Rows in a step over all ranks; a multiple of ``world_size``.
        seed: Seeds the order.
        rank: This process.
        world_size: Number of processes.
        train: Shuffle and leave out the ragged last batch. Otherwise keep the order and all rows, but for the
            last ``len % world_size``, which the ranks could not share evenly.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        train: bool = True,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} is no multiple of world_size {world_size}")
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.train = train
        self.epoch = 0
        self.start = 0
        """The batch at which the next iteration starts; more than 0 where a resumed run goes on."""
        self.position = 0
        """Batches of this epoch that have been dealt."""
        rows = sum(map(len, groups))
        self.rows_used = rows - rows % (batch_size if train else world_size)

    def __len__(self) -> int:
        """Return the batches of a whole epoch, wherever this one starts."""
        return -(-self.rows_used // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, if it is another one; Lightning calls this."""
        if epoch != self.epoch:
            self.go_to(epoch)

    def go_to(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration start at a batch of an epoch; those after it start at 0."""
        self.epoch, self.start, self.position = epoch, batch, batch

    def order(self) -> list[int]:
        """Return the rows of this epoch in order, ``rows_used`` of them."""
        indices: Sequence[int] = range(len(self.groups))
        if self.train:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            indices = torch.randperm(len(self.groups), generator=generator).tolist()
        return [row for index in indices for row in self.groups[index]][: self.rows_used]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's rows, batch by batch."""
        order = self.order()
        first, self.start = self.start, 0
        for number in range(first, len(self)):
            rows = order[number * self.batch_size :][: self.batch_size]
            share = len(rows) // self.world_size
            self.position = number + 1
            yield rows[self.rank * share :][:share]


class TableLoader(Generic[Batch]):
    """Batches of a table in the sampler's order.

    No torch DataLoader: text needs no workers, and Lightning would replace the sampler of one.

    Args:
        rows: The table.
        sampler: Which rows make a batch.
        collate: Makes the batch from a dict of columns.
    """

    def __init__(self, rows: Dataset, sampler: PromptSampler, collate: Callable[[dict[str, list[Any]]], Batch]) -> None:
        self.rows = rows
        self.sampler = self.batch_sampler = sampler  # Lightning looks for both, and calls set_epoch on the first
        self.collate = collate
        self.resumable = True
        """Whether :meth:`load_state_dict` moves the position; False where something else has set it."""

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches."""
        for rows in self.sampler:
            yield self.collate(self.rows[rows])

    def state_dict(self) -> dict[str, int]:
        """Return the position, for Lightning's checkpoint."""
        return {"epoch": self.sampler.epoch, "batch": self.sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a position."""
        if self.resumable:
            self.sampler.go_to(state["epoch"], state["batch"])
