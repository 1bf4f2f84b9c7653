"""Labelled responses for reward models."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from datasets import Dataset

from lit_debias.data.columns import cells
from lit_debias.data.module import Role, TableDataModule, as_list, check_ids, check_text
from lit_debias.data.sources import ORIGIN, Table
from lit_debias.data.tables import LABELS
from lit_debias.errors import UserError
from lit_debias.support.hashing import stable_hash
from lit_debias.support.text import as_figure


class ResponseDataModule(TableDataModule):
    """Batches of labelled responses; those of one prompt come together, so that they can be ranked.

    A batch is a dict with ``prompt``, ``response`` and ``prompt_id`` (lists of N strings), ``labels`` (Tensor [N, 4]
    float32 in the order fairness, neutrality, relevance, quality; NaN where the data has none), and all other columns
    as lists. A batch's first and last prompt may be cut.

    Args:
        path: Folder of ``lit-debias synthesize``; a .parquet, .jsonl, .json or .csv file; a folder of such files, named
            after their splits; or a data set on the hub, OWNER/NAME or OWNER/NAME:CONFIG. A file without a column
            ``split`` is all training data.
        train_split: Split to train on; where the default is not there, the data's only split.
        val_split: Split or splits to validate on, together; null for none. Where the default is not there,
            ``validate`` takes the data's only split.
        test_split: Split or splits of ``test`` and ``predict``, together; where the default is not there, ``test``
            or the data's only split.
        batch_size: Responses in an optimiser step over all ranks.
        val_batch_size: Responses in a batch of validation and test over all ranks.
        columns: One of prompt, response, prompt_id, fairness, neutrality, relevance, quality -> column of the data,
            which keeps its own name too.
        train_limit: Train on a seeded choice of whole prompts with at most so many responses.
        val_limit: Validate and test on a seeded choice of whole prompts with at most so many responses.
        fold: Train and validate on a part of the template families: ``0/2`` and ``1/2`` share no template and, in
            the synthetic data, no response frame, so that a judge can learn from other wording than the reward.
        seed: Seeds the order and the choices; null takes that of ``seed_everything``.

    Raises:
        UserError: a size is not positive or ``fold`` is malformed; and in ``setup``, whatever is wrong with the data.
    """

    table: ClassVar[Table] = "responses"

    def __init__(
        self,
        path: str,
        train_split: str = "train",
        val_split: str | list[str] | None = "validation",
        test_split: str | list[str] = "test_iid",
        batch_size: int = 32,
        val_batch_size: int = 64,
        columns: dict[str, str] | None = None,
        train_limit: int | None = None,
        val_limit: int | None = None,
        fold: str | None = None,
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
        self.fold = None if fold is None else _parse_fold(fold)

    def prepare(self, rows: Dataset, role: Role) -> Dataset:
        """Check texts and labels; give the responses of one text the same prompt_id where the data has none."""
        for column in ("prompt", "response"):
            check_text(self.path, rows, column, f"data.init_args.columns.{column}")
        if "prompt_id" not in rows.column_names:
            rows = rows.add_column("prompt_id", [f"{stable_hash(text):x}" for text in cells(rows, "prompt")])
        check_ids(rows, "prompt_id", unique=False)
        if "response_id" in rows.column_names:
            check_ids(rows, "response_id", unique=True)
        self._check_labels(rows)
        return self._of_fold(rows, *self.fold) if self.fold and role != "test" else rows

    def _check_labels(self, rows: Dataset) -> None:
        present = [name for name in LABELS if name in rows.column_names]
        if not present:
            raise UserError(
                f"data '{self.path}' has none of the labels {', '.join(LABELS)}; name one with data.init_args.columns"
            )
        for name in present:
            for origin, value in zip(cells(rows, ORIGIN), cells(rows, name), strict=True):
                if value not in (None, "") and not 0 <= _label(value) <= 1:
                    raise UserError(f"{origin}: {name} is {value!r:.40}; write 0 to 1, or nothing")

    def _of_fold(self, rows: Dataset, part: int, parts: int) -> Dataset:
        if "template_id" not in rows.column_names:
            raise UserError(f"data '{self.path}' has no column 'template_id'; leave fold out, or map it in columns")
        kept = [row for row, family in enumerate(cells(rows, "template_id")) if stable_hash(family) % parts == part]
        if not kept:
            raise UserError(f"data '{self.path}' has no template family in the fold {part}/{parts}; write fewer parts")
        return rows.select(kept)

    def groups(self, rows: Dataset) -> list[list[int]]:
        """Return the responses of each prompt."""
        groups: dict[str, list[int]] = {}
        for row, prompt_id in enumerate(cells(rows, "prompt_id")):
            groups.setdefault(prompt_id, []).append(row)
        return list(groups.values())

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Any]:
        """Return the columns with the labels as one tensor."""
        size = len(columns["response"])
        labels = [columns.pop(name, [None] * size) for name in LABELS]
        values = [[_label(value) for value in label] for label in labels]
        return {**columns, "labels": torch.tensor(values, dtype=torch.float32).T.contiguous()}


def _label(value: Any) -> float:
    """Return a label, which a CSV file may have as 0.50; NaN where it is no number."""
    number = as_figure(value)
    return float("nan") if number is None else number


def _parse_fold(fold: str) -> tuple[int, int]:
    """Return (part, parts) of a text like ``0/2``."""
    part, _, parts = fold.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise UserError(f"fold: '{fold}' is no part; write '0/2' or '1/2'")
    return int(part), int(parts)
