"""What the data modules share: splits, checks, and loaders that deal whole prompts to ranks."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, concatenate_datasets
from lightning import LightningDataModule

from lit_debias.conversations import read_prompt
from lit_debias.data.columns import aligned, cells, renamed
from lit_debias.data.sampler import PromptSampler, TableLoader
from lit_debias.data.sources import ORIGIN, Table, default_splits, load_split, split_names
from lit_debias.data.tables import ADVERSARIAL, text_columns
from lit_debias.errors import UserError, did_you_mean
from lit_debias.support import distributed
from lit_debias.support.seeds import seed_of_run
from lit_debias.support.text import counted

Role = Literal["train", "validation", "test"]
_STAGES: dict[str | None, tuple[Role, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
}
_USUAL: dict[Role, tuple[tuple[str, ...], ...]] = {
    "train": (("train",),),
    "validation": (("validation",),),
    "test": (("test_iid",), ("test",)),
}
"""Role -> the splits that are its default, and what else is taken in their place."""
_HELD_OUT = ("test", "val")
"""What the name of a split begins with that nothing is trained on unless it is named."""


class TableDataModule(LightningDataModule, ABC):
    """A table with splits, one row a prompt, a response or a pair of them; arguments as in the classes below.

    Attributes:
        rows: Role -> its rows, known after :meth:`setup`, with file and row of each in the column ``ORIGIN``.
        read: Role -> the splits that they are from.
    """

    table: ClassVar[Table]
    split_options: ClassVar[Mapping[Role, str]] = {
        "train": "train_split",
        "validation": "val_split",
        "test": "test_split",
    }
    """Role -> the option that names its splits."""

    def __init__(
        self,
        path: str,
        splits: Mapping[Role, Sequence[str]],
        batch_sizes: Mapping[Role, int],
        limits: Mapping[Role, int | None],
        columns: Mapping[str, str],
        seed: int | None,
        adversarial: bool = False,
    ) -> None:
        super().__init__()
        for role in batch_sizes:
            for what, value in (("batch size", batch_sizes[role]), ("limit", limits[role])):
                if value is not None and value < 1:
                    raise UserError(f"data: the {role} {what} is {value}; write a positive number")
        self.path = path
        self.splits = splits
        self.batch_sizes = batch_sizes
        self.limits = limits
        self.columns = columns
        self.seed = seed_of_run(seed)
        self.adversarial = adversarial
        self.rows: dict[Role, Dataset | None] = {}
        self.training: TableLoader[Any] | None = None
        self.batches_before = 0
        self.read: dict[Role, list[str]] = {}

    @property
    def column_names(self) -> list[str]:
        """Names of the columns of a batch, known after :meth:`setup`."""
        return next((_without_origin(rows) for rows in self.rows.values() if rows is not None), [])

    @property
    def texts(self) -> set[str]:
        """Columns of the data that are texts in a CSV file too."""
        return text_columns(self.table, self.columns)

    # ---------------------------------------------------------------- what a table adds

    @abstractmethod
    def prepare(self, rows: Dataset, role: Role) -> Dataset:
        """Check the rows of a split, choose among them, and add what is missing."""

    def usable(self, rows: Dataset, role: Role) -> Dataset:
        """Leave rows out that the module which trains cannot use."""
        return rows

    def changed(self, rows: Dataset, role: Role) -> Dataset:
        """Return what is trained on instead of the rows of the data, after ``limit`` and per role."""
        return rows

    @abstractmethod
    def groups(self, rows: Dataset) -> list[list[int]]:
        """Return the row numbers of each prompt."""

    @abstractmethod
    def collate(self, columns: dict[str, list[Any]]) -> Any:
        """Make a batch from a dict of columns."""

    # ---------------------------------------------------------------- Lightning's life cycle

    def setup(self, stage: str | None = None) -> None:
        """Read and check the splits of a stage.

        Raises:
            UserError: the data cannot be read, lacks a column, or does not suit batch size and number of ranks.
        """
        for role in _STAGES.get(stage, ("train", "validation", "test")):
            if self.rows.get(role) is None:
                self.rows[role] = self._load(role, in_fit=stage != "validate")
        if stage == "validate" and self.rows["validation"] is None:
            raise self._no_rows("validation", split_names(self.path, self.table))

    def _load(self, role: Role, in_fit: bool) -> Dataset | None:
        if self.batch_sizes[role] % distributed.world_size():
            raise UserError(
                f"data: the {role} batch size {self.batch_sizes[role]} is over all ranks, and there are "
                f"{distributed.world_size()}; write a multiple of that"
            )
        parts = self._parts(role, in_fit)
        if not parts:
            return None
        present = {split: self.prepare(self._rename(part), role) for split, part in parts.items()}
        if role == "train" and not self.adversarial:
            for part in present.values():
                refuse_adversarial(part, "data.init_args.adversarial: true" if self.table == "prompts" else "")
        self.read[role] = list(parts)
        usable = self.usable(concatenate_datasets(aligned(present, self.path)), role)
        rows = self.changed(self._limit(usable, self.limits[role]), role)
        if role == "train" and len(rows) < self.batch_sizes[role]:
            raise UserError(
                f"data '{self.path}': {counted(len(rows), 'row to train on is', 'rows to train on are')} fewer than "
                f"batch_size {self.batch_sizes[role]}"
            )
        return rows

    def _parts(self, role: Role, in_fit: bool) -> dict[str, Dataset]:
        """Return split -> its rows; none where training is to be validated on nothing.

        Raises:
            UserError: a split that is named is not there, or the data have several to choose from.
        """
        wanted = tuple(self.splits[role])
        found = self._read(wanted)
        if len(found) < len(wanted) or not (wanted or role == "validation"):
            known = split_names(self.path, self.table)
            instead = self._instead(role, known, in_fit) if wanted == _USUAL[role][0] else None
            if instead is None:
                raise self._no_rows(role, known)
            found = self._read(instead)
        return found

    def _read(self, splits: Sequence[str]) -> dict[str, Dataset]:
        parts = {split: load_split(self.path, self.table, split, self.texts) for split in splits}
        return {split: part for split, part in parts.items() if part is not None}

    def _instead(self, role: Role, known: Sequence[str], in_fit: bool) -> tuple[str, ...] | None:
        """Return what is read where the default split of a role is not there; None where that is to be named."""
        if role == "validation" and in_fit:  # what a single split holds is trained on
            return () if len(known) == 1 else None
        found = default_splits(known, _USUAL[role])
        return None if role == "train" and found and found[0].startswith(_HELD_OUT) else found

    def _no_rows(self, role: Role, known: Sequence[str]) -> UserError:
        missing = [split for split in self.splits[role] if split not in known]
        wanted = f"has no split '{', '.join(missing)}'" if missing else "is asked for no split"
        there = ", ".join(known) or f"no file such as {role}.jsonl"
        option = f"data.init_args.{self.split_options[role]}"
        return UserError(f"data '{self.path}' {wanted}; it has: {there}; name one with {option}")

    def _rename(self, rows: Dataset) -> Dataset:
        """Give columns the names that the code and the rewards use."""
        return renamed(rows, self.columns, self.path, _without_origin(rows))

    def _limit(self, rows: Dataset, limit: int | None) -> Dataset:
        """Return a seeded choice of whole prompts, in the order of the data."""
        if limit is None or limit >= len(rows):
            return rows
        groups = self.groups(rows)
        chosen: list[int] = []
        for index in torch.randperm(len(groups), generator=torch.Generator().manual_seed(self.seed)).tolist():
            if len(chosen) + len(groups[index]) <= limit:
                chosen += groups[index]
        return rows.select(sorted(chosen))

    def train_dataloader(self) -> TableLoader[Any]:
        """Return the training batches, from where a resumed run stands."""
        loader = self._loader("train")
        if self.trainer is not None:
            loader.dealer.shuffle = not self.trainer.overfit_batches  # type: ignore[attr-defined]
            limit = self.trainer.limit_train_batches
            loader.per_epoch = max(1, min(limit, len(loader)) if isinstance(limit, int) else int(limit * len(loader)))
            loader.go_to(self.batches_before)
            step = getattr(self.trainer.lightning_module, "rollout_step", None)
            if step is not None:
                loader.go_to(step)
                loader.resumable = False
        self.training = loader
        return loader

    def state_dict(self) -> dict[str, int]:
        """Return the position of training, for Lightning's checkpoint, unless the module counts it.

        Lightning keeps the loader's own as well, and loses it where a schedule asks how many steps there will be:
        then the loader is made before its state is restored.
        """
        return self.training.state_dict() if self.training is not None and self.training.resumable else {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a position."""
        self.batches_before = state["batches"]

    def val_dataloader(self) -> TableLoader[Any] | list[Any]:
        """Return the validation batches, in the order of the data."""
        if self.rows["validation"] is None:
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # it is meant
            return []
        return self._loader("validation")

    def test_dataloader(self) -> TableLoader[Any]:
        """Return the test batches, in the order of the data."""
        return self._loader("test")

    def predict_dataloader(self) -> TableLoader[Any]:
        """Return the test batches, in the order of the data."""
        return self._loader("test")

    def _loader(self, role: Role) -> TableLoader[Any]:
        rows = self.rows[role]
        if rows is None:
            raise RuntimeError(f"setup() has not read the {role} split")
        sampler = PromptSampler(
            self.groups(rows),
            self.batch_sizes[role],
            self.seed,
            distributed.rank(),
            distributed.world_size(),
            train=role == "train",
        )
        return TableLoader(rows.remove_columns(ORIGIN), sampler, self.collate)


def refuse_adversarial(rows: Dataset, option: str) -> None:
    """Raise :class:`UserError` where a row is labelled as one to measure with; training on it hides what it shows.

    Args:
        rows: To be trained on.
        option: What takes them nevertheless; empty where nothing does.
    """
    if ADVERSARIAL not in rows.column_names:
        return
    for origin, label in zip(cells(rows, ORIGIN), cells(rows, ADVERSARIAL), strict=True):
        if str(label).lower() in ("true", "1", "1.0"):
            anyway = f", or if you mean it, write {option}" if option else ""
            raise UserError(f"{origin}: an adversarial prompt, made to measure with; train on others{anyway}")


def check_text(path: str, rows: Dataset, column: str, option: str) -> None:
    """Raise :class:`UserError` where a column of texts is missing or a row of it is empty."""
    require_column(path, rows, column, option)
    for origin, text in zip(cells(rows, ORIGIN), cells(rows, column), strict=True):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{origin}: '{column}' is {text!r:.40}; write a text")


def require_column(path: str, rows: Dataset, column: str, option: str) -> None:
    """Raise :class:`UserError` where a column is missing."""
    if column not in rows.column_names:
        raise UserError(
            f"data '{path}' has no column '{column}'{did_you_mean(column, _without_origin(rows))}; "
            f"name it with {option}"
        )


def check_prompts_of(path: str, rows: Dataset, column: str, option: str) -> None:
    """Raise :class:`UserError` where a column of prompts is missing, or a row is no text and no conversation."""
    require_column(path, rows, column, option)
    for origin, prompt in zip(cells(rows, ORIGIN), cells(rows, column), strict=True):
        read_prompt(prompt, f"{origin}: '{column}'")


def check_ids(rows: Dataset, column: str, unique: bool) -> None:
    """Raise :class:`UserError` where a row has no id, or, if they are to be unique, two rows have the same."""
    seen: dict[Any, str] = {}
    for origin, name in zip(cells(rows, ORIGIN), cells(rows, column), strict=True):
        if name is None:
            raise UserError(f"{origin}: there is no '{column}', and other rows have one; write one, or leave all out")
        if unique and name in seen:
            raise UserError(f"{origin}: {column} {name!r:.60} is there before, {seen[name]}; write an id of its own")
        seen[name] = origin


def _without_origin(rows: Dataset) -> list[str]:
    return [name for name in rows.column_names if name != ORIGIN]


def as_list(names: str | Sequence[str] | None) -> list[str]:
    """Return split names as a list."""
    return [names] if isinstance(names, str) else list(names or [])
