"""What the terminal shows of a run while it goes, and of its figures at the end; made for 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    CustomTimeColumn,
)
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from lit_debias.support.progress import Lines
from lit_debias.support.text import printable

BAR_WIDTH = 12


class ProgressLine(RichProgressBar):
    """Lightning's progress bar on one line: figures beside their names, as many as the terminal is wide.

    Where the output goes to a file or a pipe, a line with the same figures is printed every now and then.

    ``lit-debias`` uses it unless ``trainer.callbacks`` names another bar, or ``trainer.enable_progress_bar`` is false.
    """

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, Any] = {}
        self.lines = Lines()
        self.seen = 0
        """Batches of this epoch that are done."""

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch up to the run's last step; Lightning forgets those before a checkpoint was loaded."""
        trainer = self.trainer
        batches: int | float = trainer.num_training_batches
        if trainer.max_epochs == -1 and trainer.max_steps > 0:
            return min(batches, self.seen + trainer.max_steps - trainer.global_step)
        return batches

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of an epoch."""
        self.seen = 0
        super().on_train_epoch_start(trainer, pl_module)

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return what stands on the line, from left to right."""
        styles, theme = ("progress_bar", "progress_bar_finished", "progress_bar_pulse"), self.theme
        complete, finished, pulse = (getattr(theme, style) for style in styles)
        return [
            TextColumn("{task.description}"),
            CustomBarColumn(BAR_WIDTH, complete_style=complete, finished_style=finished, pulse_style=pulse),
            BatchesProcessedColumn(theme.batch_progress),
            CustomTimeColumn(theme.time),
            _Figures(self),
        ]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Keep the figures for the column that fits them to the width; Lightning's own column gets none."""
        figures = super().get_metrics(trainer, pl_module)
        figures.pop("v_num", None)
        self.figures = {name: figures[name] for name in sorted(figures, key=_rank)}
        return {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; or say how far it is, where there is none."""
        self.seen = batch_idx + 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        total = self.total_train_batches
        self._say(f"{self._get_train_description(trainer.current_epoch).strip()}: {batch_idx + 1}/{total}")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar of validation, as in training."""
        super().on_validation_batch_end(trainer, *args, **kwargs)
        if self.is_enabled:  # another process than the first knows no totals
            total = self.total_val_batches_current_dataloader
            self._say(f"{self.validation_description}: {_number_of(args) + 1}/{total}")

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar of the test, as in training."""
        super().on_test_batch_end(trainer, *args, **kwargs)
        if self.is_enabled:
            self._say(f"{self.test_description}: {_number_of(args) + 1}/{self.total_test_batches_current_dataloader}")

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar of predictions, as in training."""
        super().on_predict_batch_end(trainer, *args, **kwargs)
        if self.is_enabled:
            total = self.total_predict_batches_current_dataloader
            self._say(f"{self.predict_description}: {_number_of(args) + 1}/{total}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the bar for the last time, before the lines that say what came out."""
        super().on_train_end(trainer, pl_module)
        self._stop_progress()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the bar for the last time, as in training."""
        super().on_predict_epoch_end(trainer, pl_module)
        self._stop_progress()

    def _say(self, line: str) -> None:
        if self.is_enabled and self.progress is not None and self.lines.due(self.progress.console):
            print(" ".join([line, *pairs(self.figures)]), flush=True)

    def _get_train_description(self, current_epoch: int) -> str:
        """Return the epoch, counted from 1, and how many there are where the run has a number of them."""
        epochs = self.trainer.max_epochs
        of = f"/{epochs}" if epochs is not None and epochs > 0 else ""
        return f"Epoch {current_epoch + 1}{of}".ljust(len(self.validation_description))


def _rank(name: str) -> tuple[bool, bool]:
    """Return where a figure stands on the line: rewards of training and validation first, speed last."""
    return "reward" not in name, name == "tokens_per_second"


def _number_of(arguments: tuple[Any, ...]) -> int:
    """Return the batch's number among the arguments of Lightning's hooks: module, outputs, batch, number."""
    return int(arguments[3])


class _Figures(ProgressColumn):
    """The figures of training, on its own line alone."""

    def __init__(self, bar: ProgressLine) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Fitting | Text:
        return Fitting(self.bar.figures) if task.id == self.bar.train_progress_bar_id else Text()


class Fitting:
    """Figures with their names on one line; those that do not fit are left out whole, never cut.

    Args:
        figures: Name -> value, the most important first.
    """

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self.texts = list(pairs(figures))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render what fits into the width."""
        line = ""
        for text in self.texts:
            longer = f"{line} {text}".strip()
            line = longer if len(longer) <= options.max_width else line
        yield Text(line, style="italic", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Measure the whole line."""
        return Measurement(1, max(1, min(options.max_width, len(" ".join(self.texts)))))


def pairs(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield ``name value`` for each figure."""
    for name, value in figures.items():
        yield f"{name} {value if isinstance(value, str) else short(float(value))}"


def short(value: float, digits: int = 3) -> str:
    """Return a number in so many significant digits; from 1000 on as a whole one, never with an exponent."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def results_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Return the figures of ``validate`` or ``test``, one a line, in four digits."""
    table = Table("", title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.columns[0].overflow, table.columns[1].justify = "fold", "right"
    for name, value in metrics.items():
        table.add_row(escape(printable(name)), short(float(value), 4))
    return table
