"""Prompts for GRPO."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from datasets import Dataset

from lit_debias.conversations import read_prompt, words_of
from lit_debias.data.module import Role, TableDataModule, as_list, check_ids, check_prompts_of
from lit_debias.data.sources import ORIGIN
from lit_debias.errors import UserError, did_you_mean
from lit_debias.support import distributed
from lit_debias.support.text import counted
from lit_debias.types import PromptBatch


class PromptDataModule(TableDataModule):
    """Batches of prompts, whole and in the same order whatever the number of ranks.

    Args:
        path: Folder of ``lit-debias synthesize``; a .parquet, .jsonl, .json or .csv file; a folder of such files, named
            after their splits; or a data set on the hub, OWNER/NAME or OWNER/NAME:CONFIG. A file without a column
            ``split`` is all training data.
        prompt_column: Column with the user's words: texts, or conversations, which are lists of messages with ``role``
            (system, user, assistant) and ``content``, the last of them the user's. A conversation's own system message
            wins over the policy's ``system_prompt``. Rewards and tables get the text that the user wrote, or of several
            turns a line ``role: content`` for each.
        columns: Name that a reward uses -> column of the data; one may serve several names. Each keeps its own name
            too, so a column whose name suits needs no entry.
        batch_size: Prompts in an optimiser step over all ranks.
        val_batch_size: Prompts in a batch of validation and test over all ranks.
        train_split: Split to train on; where the default is not there, the data's only split.
        val_splits: Split or splits to validate on, together; null for none. Where the default is not there,
            ``validate`` takes the data's only split.
        test_splits: Split or splits of ``test`` and ``predict``, together; where the default is not there, ``test``
            or the data's only split.
        train_limit: Train on a seeded choice of so many prompts.
        val_limit: Validate and test on a seeded choice of so many prompts.
        prompt_kinds: Keep these kinds (open, leading, forced_choice, control); all by default.
        twins: Keep the two prompts of each ``twin_id``, which differ in the group alone, in one batch and on one rank,
            for rewards that compare their completions; each rank's share of a batch is then even.
        seed: Seeds the order and the choices; null takes that of ``seed_everything``.
        adversarial: Train also on prompts that a column ``adversarial`` labels as made to measure with, as those of
            ``lit-debias attack`` are; they are refused otherwise.

    Raises:
        UserError: a size is not positive, or odd with ``twins``; and in ``setup``, whatever is wrong with the data.
    """

    table: ClassVar[Literal["prompts", "responses"]] = "prompts"
    split_options: ClassVar[Mapping[Role, str]] = {
        "train": "train_split",
        "validation": "val_splits",
        "test": "test_splits",
    }

    def __init__(
        self,
        path: str,
        prompt_column: str = "prompt",
        columns: dict[str, str] | None = None,
        batch_size: int = 4,
        val_batch_size: int = 8,
        train_split: str = "train",
        val_splits: str | list[str] | None = "validation",
        test_splits: str | list[str] = "test_iid",
        train_limit: int | None = None,
        val_limit: int | None = None,
        prompt_kinds: list[str] | None = None,
        twins: bool = False,
        seed: int | None = None,
        adversarial: bool = False,
    ) -> None:
        super().__init__(
            path,
            splits={"train": [train_split], "validation": as_list(val_splits), "test": as_list(test_splits)},
            batch_sizes={"train": batch_size, "validation": val_batch_size, "test": val_batch_size},
            limits={"train": train_limit, "validation": val_limit, "test": val_limit},
            columns=columns or {},
            seed=seed,
            adversarial=adversarial,
        )
        self.prompt_column = prompt_column
        self.prompt_kinds = prompt_kinds
        self.twins = twins
        for role in self.batch_sizes:
            self._check_even(role)

    @property
    def texts(self) -> set[str]:
        """Columns of the data that are texts in a CSV file too, the prompts among them."""
        return super().texts | {self.columns.get(self.prompt_column, self.prompt_column)}

    def prepare(self, rows: Dataset, role: Role) -> Dataset:
        """Check the prompts, keep the wanted kinds, and number the prompts where they have no ids."""
        check_prompts_of(self.path, rows, self.prompt_column, "data.init_args.prompt_column")
        if "prompt_id" not in rows.column_names:
            rows = rows.add_column("prompt_id", [str(number) for number in range(len(rows))])
        check_ids(rows, "prompt_id", unique=True)
        rows = rows if self.prompt_kinds is None else self._of_kinds(rows, self.prompt_kinds)
        if self.twins:
            self._check_even(role)
            check_twins(self.path, rows, self.prompt_column)
        return rows

    def _of_kinds(self, rows: Dataset, kinds: list[str]) -> Dataset:
        if "prompt_kind" not in rows.column_names:
            raise UserError(f"data '{self.path}' has no column 'prompt_kind'; leave prompt_kinds out")
        present = rows["prompt_kind"]
        for kind in kinds:
            if kind not in set(present):
                raise UserError(
                    f"data '{self.path}' has no prompts of the kind '{kind}'{did_you_mean(kind, set(present))}"
                )
        return rows.select([row for row, kind in enumerate(present) if kind in kinds])

    def _check_even(self, role: Role) -> None:
        size, ranks = self.batch_sizes[role], distributed.world_size()
        if self.twins and size % (2 * ranks):
            raise UserError(
                f"data: twins stay together, and the {role} batch size {size} is no multiple of {2 * ranks}, 2 for "
                "each rank; write one, or twins: false"
            )

    def groups(self, rows: Dataset) -> list[list[int]]:
        """Return one group a row, or a pair of twins."""
        names = rows["twin_id"] if self.twins else range(len(rows))
        groups: dict[Any, list[int]] = defaultdict(list)
        for row, name in enumerate(names):
            groups[name].append(row)
        return list(groups.values())

    def collate(self, columns: dict[str, list[Any]]) -> PromptBatch:
        """Return P prompts with all other columns."""
        prompts = [read_prompt(value, self.prompt_column) for value in columns[self.prompt_column]]
        others = {name: values for name, values in columns.items() if name != self.prompt_column}
        messages = [prompt for prompt in prompts if not isinstance(prompt, str)]
        return PromptBatch([words_of(prompt) for prompt in prompts], others, messages or None)


def check_twins(path: str, rows: Dataset, prompt_column: str) -> None:
    """Raise :class:`UserError` unless each ``twin_id`` has two rows with different prompts."""
    if "twin_id" not in rows.column_names:
        raise UserError(
            f"data '{path}' has no column 'twin_id', equal for the two prompts of a pair; map it with "
            "data.init_args.columns, or write twins: false"
        )
    twins: dict[Any, dict[str, str]] = defaultdict(dict)
    for name, origin, prompt in zip(rows["twin_id"], rows[ORIGIN], rows[prompt_column], strict=True):
        twins[name][origin] = str(prompt)  # a conversation cannot be hashed
    for name, prompts in twins.items():
        if len(prompts) != 2 or len(set(prompts.values())) != 2:
            raise UserError(
                f"{next(iter(prompts))}: twin_id {name!r} has {counted(len(prompts), 'row')} with "
                f"{counted(len(set(prompts.values())), 'different prompt')}; twins: true takes 2 with different "
                "prompts of each"
            )
