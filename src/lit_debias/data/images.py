"""A column of pictures: where they are, and how they come into the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from lit_debias.conversations import is_conversation, with_pictures
from lit_debias.data.columns import cells
from lit_debias.data.sources import ORIGIN
from lit_debias.errors import UserError, did_you_mean
from lit_debias.support.picture_files import read_picture


@dataclass(frozen=True)
class Images:
    """Pictures that prompts show, in YAML ``images: {column: images, root: pictures}``; for ``VLMPolicy``."""

    column: str = "images"
    """Column of the data with a path, or a list of paths, under ``root``. Rewards see it as it is."""
    root: str | None = None
    """Folder that holds the pictures; null is that of the data."""

    def into(self, rows: Dataset, prompt_column: str, path: str) -> Dataset:
        """Return rows whose prompts are conversations that show the pictures of their row.

        Args:
            rows: Of one split.
            prompt_column: Column of the prompts.
            path: The data.

        Raises:
            UserError: a column is missing; a row names no picture, or one that is not there or cannot be read, or not
                as many as its prompt has parts for.
        """
        for name in (self.column, prompt_column):
            if name not in rows.column_names:
                raise UserError(f"data '{path}' has no column '{name}'{did_you_mean(name, rows.column_names)}")
        root, known = self._root(path), set[str]()
        columns = (cells(rows, name) for name in (ORIGIN, prompt_column, self.column))
        prompts = [
            with_pictures(
                prompt, _files(cell, root, f"{origin}: '{self.column}'", known), f"{origin}: '{prompt_column}'"
            )
            for origin, prompt, cell in zip(*columns, strict=True)
        ]
        return rows.remove_columns([prompt_column]).add_column(prompt_column, prompts)

    def _root(self, path: str) -> Path:
        if self.root is not None:
            root = Path(self.root).expanduser()
        else:
            root = Path(path) if Path(path).is_dir() else Path(path).parent
        if not root.is_dir():
            raise UserError(f"images: there is no folder '{root}'; write the one that holds the pictures as root")
        return root.resolve()


def _files(cell: Any, root: Path, where: str, known: set[str]) -> list[tuple[str, str]]:
    """Return the names and paths of a row's pictures; those in ``known`` have been read before."""
    names: Sequence[Any] = cell if is_conversation(cell) else [cell]
    if not names:
        raise UserError(f"{where} is an empty list; write at least one path, or leave the row out")
    return [(name, _file(name, root, where, known)) for name in names]


def _file(name: Any, root: Path, where: str, known: set[str]) -> str:
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where} is {name!r:.40}; write a path, or a list of paths")
    if "://" in name:
        raise UserError(f"{where} is the URL '{name:.60}', and none is read; write the path of a file")
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise UserError(f"{where}: '{name}' lies outside of images.root, '{root}'; write a path below it")
    if str(path) not in known:
        try:
            read_picture(str(path))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        known.add(str(path))
    return str(path)
