"""The order of training, as a function of seed and epoch, and the loader that follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from datasets import Dataset

from lit_debias.support.seeds import seed_at

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
        self.shuffle = train
        self.epoch = 0
        self.start = 0
        rows = sum(map(len, groups))
        self.rows_used = rows - rows % (batch_size if train else world_size)

    def __len__(self) -> int:
        """Return the batches of a whole epoch, wherever this one starts."""
        return -(-self.rows_used // self.batch_size)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to an epoch, and to the batch at which a resumed run goes on."""
        self.epoch, self.start = epoch, start

    def order(self) -> list[int]:
        """Return the rows of this epoch in order, ``rows_used`` of them."""
        indices: Sequence[int] = range(len(self.groups))
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_at(self.seed, self.epoch))
            indices = torch.randperm(len(self.groups), generator=generator).tolist()
        return [row for index in indices for row in self.groups[index]][: self.rows_used]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's rows, batch by batch."""
        order = self.order()
        for number in range(self.start, len(self)):
            rows = order[number * self.batch_size :][: self.batch_size]
            share = len(rows) // self.world_size
            yield rows[self.rank * share :][:share]


class TableLoader(Generic[Batch]):
    """Batches of a table in the sampler's order, epoch after epoch.

    No torch DataLoader: text needs no workers, and Lightning would replace the sampler of one. It counts epochs
    itself, because Lightning's count is one ahead in a checkpoint that was written after ``max_steps``.

    Args:
        rows: The table.
        sampler: Which rows make a batch.
        collate: Makes the batch from a dict of columns.
    """

    def __init__(
        self,
        rows: Dataset,
        sampler: PromptSampler,
        collate: Callable[[dict[str, list[Any]]], Batch],
    ) -> None:
        self.rows = rows
        self.dealer = sampler  # under the name `sampler` Lightning would call set_epoch
        self.collate = collate
        self.per_epoch = max(1, len(sampler))
        """Batches that are taken from an epoch, all unless the trainer has a limit."""
        self.batches = 0
        """Batches taken so far, over all epochs."""
        self.resumable = True
        """Whether :meth:`load_state_dict` moves the position; False where the module's own count has set it."""

    def __len__(self) -> int:
        """Return the batches of a whole epoch, wherever this one starts."""
        return len(self.dealer)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that are left of this epoch, or those of the next; validation always starts anew."""
        # A generator: nothing moves before the first batch is taken, however often Lightning calls iter().
        first = self.batches if self.dealer.train else 0
        self.dealer.set_epoch(*divmod(first, self.per_epoch))
        for taken, rows in enumerate(self.dealer, 1):
            self.batches = first + taken
            yield self.collate(self.rows[rows])

    def go_to(self, batches: int) -> None:
        """Go on after so many batches."""
        self.batches = batches

    def state_dict(self) -> dict[str, int]:
        """Return the position, for Lightning's checkpoint."""
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a position."""
        if self.resumable:
            self.go_to(state["batches"])
