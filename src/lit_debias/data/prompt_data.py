"""Prompts for GRPO."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info

from lit_debias.conversations import read_prompt, words_of
from lit_debias.data.augmentation import key_of
from lit_debias.data.changes import Changed, balanced, weighed, with_given_twins, with_twins, without_ties
from lit_debias.data.columns import cells
from lit_debias.data.counterfactuals import swaps_of
from lit_debias.data.images import Images
from lit_debias.data.module import Role, TableDataModule, as_list, check_ids, check_prompts_of
from lit_debias.data.sources import ORIGIN, Table, split_names
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
            for rewards that compare their completions; each rank's share of a batch is then even. A twin that a row
            gives as ``counterfactual_prompt`` alone is added.
        augment: ``cda`` adds to each training prompt with its responses a counterfactual twin, in which the groups of a
            category give way to their counterparts in the taxonomy, pronouns of gender among them; for SFT and DPO.
        augment_categories: Categories whose groups are swapped, such as [gender]; all by default.
        balance: ``skew`` makes the groups of each concept about equally frequent in training, by the columns ``group``
            and ``concept``: it drops rows, takes rows twice, and adds a column ``skew_weight``.
        balance_tau: How little it drops and takes twice, positive.
        seed: Seeds the order and the choices; null takes that of ``seed_everything``.
        adversarial: Train also on prompts that a column ``adversarial`` labels as made to measure with, as those of
            ``lit-debias attack`` are; they are refused otherwise.
        images: Column of the data with the pictures that each prompt shows, and their folder: {column: images, root:
            pictures}. For ``VLMPolicy``.

    Raises:
        UserError: a size is not positive, or odd with ``twins``; options do not go together; and in ``setup``, whatever
            is wrong with the data.
    """

    table: ClassVar[Table] = "prompts"
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
        augment: Literal["cda"] | None = None,
        augment_categories: list[str] | None = None,
        balance: Literal["skew"] | None = None,
        balance_tau: float = 1.0,
        seed: int | None = None,
        adversarial: bool = False,
        images: Images | None = None,
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
        self.prompt_kinds, self.images = prompt_kinds, images
        self.twins = twins
        check_changes(augment, augment_categories, balance, balance_tau, twins)
        if images is not None and augment:
            raise UserError("data: augment swaps words, and images may show the group; write the twins as rows")
        self.swaps = swaps_of(augment_categories) if augment else []
        self.balance, self.balance_tau = balance, balance_tau
        self.changes: list[str] = []
        """What was done to the training rows, in words, known after :meth:`setup`."""
        for role in self.batch_sizes:
            self._check_even(role)

    @property
    def texts(self) -> set[str]:
        """Columns of the data that are texts in a CSV file too, the prompts among them."""
        names = [self.prompt_column, *([] if self.images is None else [self.images.column])]
        return super().texts | {self.columns.get(name, name) for name in names}

    def prepare(self, rows: Dataset, role: Role) -> Dataset:
        """Check the prompts, keep the wanted kinds, and number the prompts where they have no ids."""
        if self.images is not None:
            rows = self.images.into(rows, self.prompt_column, self.path)
        check_prompts_of(self.path, rows, self.prompt_column, "data.init_args.prompt_column")
        if "prompt_id" not in rows.column_names:
            rows = rows.add_column("prompt_id", [str(number) for number in range(len(rows))])
        check_ids(rows, "prompt_id", unique=True)
        rows = rows if self.prompt_kinds is None else self._of_kinds(rows, self.prompt_kinds)
        if self.twins:
            self._check_even(role)
            rows = with_given_twins(rows, self.prompt_column)
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

    # ---------------------------------------------------------------- what is trained on

    @property
    def compared(self) -> tuple[str, ...]:
        """Columns of responses that the trainer's module learns from; empty where it learns from none."""
        return tuple(getattr(getattr(self.trainer, "lightning_module", None), "columns", ()))

    def usable(self, rows: Dataset, role: Role) -> Dataset:
        """Leave out prompts whose responses are the same, where a module compares them."""
        if len(self.compared) < 2 or not set(self.compared) <= set(rows.column_names):
            return rows
        return self._say(role, without_ties(self.path, rows, self.compared, self.groups(rows)))

    def changed(self, rows: Dataset, role: Role) -> Dataset:
        """Balance the groups of the training rows, or add their counterfactual twins."""
        if self.balance and role != "train":
            return weighed(self.path, rows, [1.0] * len(rows))
        if self.balance:
            return self._say(role, balanced(self.path, rows, self.seed, self.balance_tau))
        if self.swaps and role == "train":
            own = self._swapped(rows)
            return self._say(
                role, with_twins(self.path, rows, self.prompt_column, own, self.swaps, self._prompts_elsewhere())
            )
        return rows

    def _say(self, role: Role, changed: Changed) -> Dataset:
        rows, words = changed
        if words:
            rank_zero_info(f"Data '{self.path}', {role}: {words}.")
        if words and role == "train":
            self.changes.append(words)
        return rows

    def _swapped(self, rows: Dataset) -> list[str]:
        """Return the columns of responses whose words are swapped like the prompt's."""
        if self.trainer is not None and not self.compared:
            raise UserError(
                "data: augment swaps groups in prompts and in responses that are learned, as SFT and DPO do; leave it "
                f"out for {type(self.trainer.lightning_module).__name__}"
            )
        return [name for name in self.compared or ("reference", "biased") if name in rows.column_names]

    def _prompts_elsewhere(self) -> set[str]:
        """Return the prompts of splits that are not trained on."""
        others = [name for name in split_names(self.path, self.table) if name not in self.read["train"]]
        parts = [self._rename(part) for part in self._read(others).values()]
        parts = [part for part in parts if self.prompt_column in part.column_names]
        return {key_of(prompt) for part in parts for prompt in cells(part, self.prompt_column)}

    def groups(self, rows: Dataset) -> list[list[int]]:
        """Return one group a row, or a pair of twins, or a row with the twins that were added to it."""
        paired = self.twins or (self.swaps and rows is self.rows.get("train"))
        names = cells(rows, "twin_id") if paired else range(len(rows))
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


def check_changes(
    augment: str | None, categories: list[str] | None, balance: str | None, balance_tau: float, twins: bool
) -> None:
    """Raise :class:`UserError` where options that change the training rows do not go together."""
    for name, value, known in (("augment", augment, "cda"), ("balance", balance, "skew")):
        if value not in (None, known):
            raise UserError(f"data: {name} is '{value}'; write {known}, or leave it out")
    if augment and balance:
        raise UserError("data: augment and balance both change the training rows; write one of the two")
    if twins and (augment or balance):
        raise UserError(
            f"data: twins: true keeps the pairs of the data, and {'augment' if augment else 'balance'} makes others; "
            "write one of the two"
        )
    if categories is not None and not (augment and categories):
        raise UserError("data: augment_categories names categories for augment: cda; write both, or neither")
    if not 0 < balance_tau < math.inf:
        raise UserError(f"data: balance_tau is {balance_tau}; write a positive number, such as 1")


def check_twins(path: str, rows: Dataset, prompt_column: str) -> None:
    """Raise :class:`UserError` unless each ``twin_id`` has two rows with different prompts."""
    if "twin_id" not in rows.column_names:
        raise UserError(
            f"data '{path}' has no column 'twin_id', equal for the two prompts of a pair; map it with "
            "data.init_args.columns, or write twins: false"
        )
    twins: dict[Any, dict[str, str]] = defaultdict(dict)
    for name, origin, prompt in zip(*(cells(rows, name) for name in ("twin_id", ORIGIN, prompt_column)), strict=True):
        twins[name][origin] = str(prompt)  # a conversation cannot be hashed
    for name, prompts in twins.items():
        if len(prompts) != 2 or len(set(prompts.values())) != 2:
            raise UserError(
                f"{next(iter(prompts))}: twin_id {name!r} has {counted(len(prompts), 'row')} with "
                f"{counted(len(set(prompts.values())), 'different prompt')}; twins: true takes 2 with different "
                "prompts of each"
            )
