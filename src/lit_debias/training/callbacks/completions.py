"""Looks at what the model writes while it trains."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from rich import get_console
from rich.table import Column, Table
from rich.text import Text

from lit_debias.support.text import printable
from lit_debias.training.grpo import GRPO
from lit_debias.types import Experience

SCORES_WIDTH = 36
"""Longer names of rewards are broken; prompts and completions get the rest of the line."""


class CompletionTable(Callback):
    """Keep sampled completions with their scores: in ``completions.jsonl``, as a table in the terminal, and in loggers.

    Weights & Biases gets a table, TensorBoard a text, and MLflow an artifact, each called ``completions``.

    Args:
        every_n_steps: Rollouts between two looks.
        rows: Completions in one look, the best and the worst by advantage.
        show: Print the table; the file is written anyway.
    """

    def __init__(self, every_n_steps: int = 10, rows: int = 4, show: bool = True) -> None:
        self.every_n_steps, self.rows, self.show = every_n_steps, rows, show

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write every ``every_n_steps`` rollouts, on the first rank."""
        if not isinstance(pl_module, GRPO) or pl_module.experience is None:
            return
        if pl_module.rollout_step % self.every_n_steps:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # collective: every rank asks, or they all hang
        if not trainer.is_global_zero:
            return
        rows = extremes(pl_module.experience, self.rows)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "completions.jsonl").open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"rollout_step": pl_module.rollout_step, **row}, ensure_ascii=False) + "\n")
        for logger in trainer.loggers:
            log_completions(logger, rows, trainer.global_step)
        if self.show:
            # the console of the progress bar, which puts the table above itself
            get_console().print(as_table(rows, f"rollout step {pl_module.rollout_step}"))


def log_completions(logger: Logger, rows: Sequence[dict[str, Any]], step: int) -> None:
    """Hand rows of :func:`extremes` to a logger that has a place for them; others get none."""
    if isinstance(logger, WandbLogger):
        names = [name for name in rows[0] if name != "scores"] + list(rows[0]["scores"])
        logger.log_table("completions", names, [list(_flat(row).values()) for row in rows], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("completions", _as_markdown(rows), step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(str(logger.run_id), _as_markdown(rows), f"completions/step_{step:06}.md")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in row.items() if name != "scores"}, **row["scores"]}


def _as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table; what a model wrote may hold signs that would break it."""
    flat = [_flat(row) for row in rows]
    lines = [list(flat[0]), ["---"] * len(flat[0]), *(list(row.values()) for row in flat)]
    cells = [
        [" ".join(html.escape(printable(str(cell))).replace("|", "&#124;").split()) for cell in line] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def extremes(experience: Experience, count: int) -> list[dict[str, Any]]:
    """Return ``count`` rows, those of the highest and of the lowest advantage, best first."""
    rollout, scores = experience.rollout, experience.scores
    advantages = experience.advantages.flatten()
    order = advantages.argsort(descending=True, stable=True).tolist()
    half = (count + 1) // 2
    picked = order if len(order) <= count else order[:half] + order[len(order) - (count - half) :]
    rows = []
    for index in picked:
        prompt, member = divmod(index, rollout.group_size)
        values = scores.of(prompt, member).items()
        rows.append(
            {
                "prompt": rollout.prompts.texts[prompt],
                "completion": rollout.texts[prompt][member],
                "advantage": round(float(advantages[index]), 4),
                "scores": {name: None if score is None else round(score, 4) for name, score in values},
            }
        )
    return rows


def as_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Return a table of rows from :func:`extremes`; scores stand below one another, so that any number of them fits."""
    table = Table("prompt", "completion", title=title, show_lines=True)
    longest = max((len(printable(name)) for row in rows for name in ("advantage", *row["scores"])), default=0)
    table.add_column("scores", width=min(longest + len(" -0.00"), SCORES_WIDTH))
    for row in rows:
        # Text, because model output may hold what rich would take for markup.
        table.add_row(Text(printable(row["prompt"])), Text(printable(row["completion"])), _scores(row))
    return table


def _scores(row: dict[str, Any]) -> Table:
    grid = Table.grid(Column(overflow="fold"), Column(justify="right", no_wrap=True), padding=(0, 1, 0, 0), expand=True)
    grid.add_row(Text("advantage"), f"{row['advantage']:+.2f}")
    for name, score in row["scores"].items():
        grid.add_row(Text(printable(name)), "-" if score is None else f"{score:.2f}")
    return grid
