"""Pairs of responses of which a person prefers one, for reward models of people who disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from datasets import Dataset

from lit_debias.data.columns import cells
from lit_debias.data.module import Role, TableDataModule, as_list, check_ids, check_text, require_column
from lit_debias.data.sampler import PromptSampler, TableLoader
from lit_debias.data.sources import ORIGIN, Table, split_names
from lit_debias.errors import UserError

TEXTS = ("prompt", "chosen", "rejected")
NAMES = ("user", "group")


class PreferenceDataModule(TableDataModule):
    """Batches of preferences: who chose which of two responses to a prompt.

    A batch is a dict with ``user``, ``prompt``, ``chosen`` and ``rejected`` (lists of N strings), ``pair`` (N row
    numbers within the rows of the stage), and all other columns as lists. A column ``group`` says which group of people
    a user is known to belong to, as far as that is known; nothing is trained on it.

    Args:
        path: A .parquet, .jsonl, .json or .csv file; a folder of such files, named after their splits; or a data set on
            the hub, OWNER/NAME or OWNER/NAME:CONFIG. A file without a column ``split`` is all training data.
        train_split: Split to train on.
        val_split: Split or splits to validate on, together; null for none.
        test_split: Split or splits of ``test``, together.
        batch_size: Pairs in an optimiser step over all ranks.
        val_batch_size: Pairs in a batch of validation and test over all ranks.
        columns: One of user, prompt, chosen, rejected, group -> column of the data, which keeps its own name too.
        train_limit: Train on a seeded choice of so many pairs.
        val_limit: Validate and test on a seeded choice of so many pairs.
        seed: Seeds the order and the choices; null takes that of ``seed_everything``.

    Raises:
        UserError: a size is not positive; and in ``setup``, whatever is wrong with the data.
    """

    table: ClassVar[Table] = "preferences"

    def __init__(
        self,
        path: str,
        train_split: str = "train",
        val_split: str | list[str] | None = "validation",
        test_split: str | list[str] = "test",
        batch_size: int = 32,
        val_batch_size: int = 64,
        columns: dict[str, str] | None = None,
        train_limit: int | None = None,
        val_limit: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            path,
            splits={"train": [train_split], "validation": as_list(val_split), "test": as_list(test_split)},
            batch_sizes={"train": batch_size, "validation": val_batch_size, "test": val_batch_size},
            limits={"train": train_limit, "validation": val_limit, "test": val_limit},
            columns=columns or {},
            seed=seed,
        )

    @property
    def texts(self) -> set[str]:
        """Columns of the data that are texts in a CSV file too: a user 007 is not the user 7."""
        return {self.columns.get(name, name) for name in (*TEXTS, *NAMES)}

    def prepare(self, rows: Dataset, role: Role) -> Dataset:
        """Check texts and users."""
        for column in TEXTS:
            check_text(self.path, rows, column, f"data.init_args.columns.{column}")
        require_column(self.path, rows, "user", "data.init_args.columns.user")
        check_ids(rows, "user", unique=False)
        for origin, user in zip(cells(rows, ORIGIN), cells(rows, "user"), strict=True):
            if not str(user).strip():
                raise UserError(f"{origin}: 'user' is empty; write whose preference it is")
        columns = (cells(rows, name) for name in (ORIGIN, "chosen", "rejected"))
        for origin, chosen, rejected in zip(*columns, strict=True):
            if chosen == rejected:
                raise UserError(
                    f"{origin}: 'chosen' and 'rejected' are the same text, {chosen!r:.40}; leave such pairs out"
                )
        return rows

    def _load(self, role: Role, in_fit: bool) -> Dataset | None:
        """Return the rows of a role with their numbers; users and groups are texts."""
        rows = super()._load(role, in_fit)
        if rows is None:
            return None
        names = {name: list(map(_text, cells(rows, name))) for name in NAMES if name in rows.column_names}
        check_groups(list(cells(rows, ORIGIN)), list(map(str, cells(rows, "user"))), names.get("group", ()))
        for column, values in {**names, "pair": [*range(len(rows))]}.items():
            rows = rows.remove_columns([column] if column in rows.column_names else []).add_column(column, values)
        return rows

    def groups(self, rows: Dataset) -> list[list[int]]:
        """Return one group a pair: a user's pairs need not come together."""
        return [[row] for row in range(len(rows))]

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the columns."""
        return columns

    def in_order(self, role: Role) -> TableLoader[dict[str, list[Any]]]:
        """Return all rows of a role in the order of the data, the same on every rank.

        Raises:
            UserError: the data has none.
        """
        rows = self.rows[role]
        if rows is None:
            raise self._no_rows(role, split_names(self.path, self.table))
        sampler = PromptSampler(self.groups(rows), self.batch_sizes["validation"], train=False)
        return TableLoader(rows.remove_columns(ORIGIN), sampler, self.collate)


def check_groups(origins: Sequence[str], users: Sequence[str], groups: Sequence[str | None]) -> None:
    """Raise :class:`UserError` where a user is in two groups."""
    known: dict[str, str | None] = {}
    for origin, user, group in zip(origins, users, groups, strict=False):
        if known.setdefault(user, group) != group:
            raise UserError(
                f"{origin}: user {user!r:.40} is of the group {group!r:.40}, and before of {known[user]!r:.40}; write "
                "one group of people a user, or name another column with data.init_args.columns.group"
            )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
