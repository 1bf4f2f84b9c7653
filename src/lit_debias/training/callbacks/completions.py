"""Looks at what the model writes while it trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lit_debias.support.text import printable
from lit_debias.training.grpo import GRPO
from lit_debias.types import Experience


class CompletionTable(Callback):
    """Keep sampled completions with their scores: in ``completions.jsonl``, and as a table in the terminal.

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
        if self.show:
            Console().print(as_table(rows, f"rollout step {pl_module.rollout_step}"))


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
        values = {
            name: round(float(of_name[prompt, member]), 4) if scores.valid[name][prompt, member] else None
            for name, of_name in scores.values.items()
        }
        rows.append(
            {
                "prompt": rollout.prompts.texts[prompt],
                "completion": rollout.texts[prompt][member],
                "advantage": round(float(advantages[index]), 4),
                "scores": values,
            }
        )
    return rows


def as_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Return a table of rows from :func:`extremes`."""
    names = list(rows[0]["scores"]) if rows else []
    headings = [escape(printable(name)) for name in ("prompt", "completion", *names, "advantage")]
    table = Table(*headings, title=title, show_lines=True)
    for row in rows:
        numbers = ["-" if row["scores"][name] is None else f"{row['scores'][name]:.2f}" for name in names]
        # Text, because model output may hold what rich would take for markup.
        texts = [Text(printable(row[name])) for name in ("prompt", "completion")]
        table.add_row(*texts, *numbers, f"{row['advantage']:+.2f}")
    return table
