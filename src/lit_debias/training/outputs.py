"""What a run leaves where a user finds it: the adapter of ``fit``, the answers of ``predict``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_debias.models.hub_names import checked_hub_name
from lit_debias.support import distributed


@runtime_checkable
class HasAdapter(Protocol):
    """A module whose adapter can be written."""

    def save_adapter(self, out: Path, base: str | None = None) -> None:
        """Write the adapter's folder."""


class AdapterExport(Callback):
    """Write the adapter at the end of training, as PEFT, transformers and vLLM load it, with tokenizer and model card.

    A run without one writes it all the same, as if ``AdapterExport()`` stood there.

    Args:
        out: Folder; an adapter that is there already is replaced once the new one is complete, and the run says so when
            it starts. By default ``adapter`` in the run's folder, or ``adapter-2`` and so on where there is one.
        base: The base's id on the hub, OWNER/NAME, for those who load the adapter elsewhere; by default what the
            model's source says. A local folder says nothing, and its path is not written.

    Raises:
        UserError: ``base`` is no id.
    """

    def __init__(self, out: str | None = None, base: str | None = None) -> None:
        self.out = out
        self.base = None if base is None else checked_hub_name(base, "AdapterExport: base")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what will be replaced while it can still be saved."""
        if self.out and trainer.is_global_zero and (Path(self.out) / "adapter_config.json").is_file():
            written = datetime.fromtimestamp((Path(self.out) / "adapter_config.json").stat().st_mtime)
            say(f"the adapter in {self.out}, of {written:%Y-%m-%d %H:%M}, will be replaced when training ends")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write on the first rank; also where a run is resumed that was killed after its last step."""
        folder = run_folder(trainer)
        if trainer.is_global_zero and isinstance(pl_module, HasAdapter):
            out = Path(self.out) if self.out else unused(folder / "adapter")
            pl_module.save_adapter(out, self.base)
            say(f"the adapter is in {out}; how to use it stands in {out / 'README.md'}")


class PredictionFile(Callback):
    """Write what ``lit-debias predict`` generates as JSON lines: prompt, completion, and the data's other columns.

    ``lit-debias rewards score --file`` and ``lit-debias evaluate --data`` read it. The lines grow in ``OUT.part``,
    which takes the place of ``out`` when all are there. A run without one writes the file all the same, as if
    ``PredictionFile()`` stood there.

    Args:
        out: File, which is replaced; by default ``predictions.jsonl`` in the run's folder, or ``predictions-2.jsonl``
            and so on where there is one. Columns have the names that rewards know them by; of a conversation there
            is its text as ``prompt``, and itself as ``messages``.
    """

    def __init__(self, out: str | None = None) -> None:
        self.out = out
        self.place = Path(out or "")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty file, on the first rank."""
        default = run_folder(trainer) / "predictions.jsonl"
        self.place = Path(self.out) if self.out else unused(default)
        if trainer.is_global_zero:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            self.work.write_text("")

    @property
    def work(self) -> Path:
        """Where lines grow."""
        return self.place.with_name(f"{self.place.name}.part")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append one batch of all ranks, in order: other machines may not see the first one's disk."""
        shares = distributed.gather_objects(list(outputs))
        if trainer.is_global_zero:
            with self.work.open("a", encoding="utf-8") as file:
                file.writelines(as_json(row) + "\n" for share in shares for row in share)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the file in its place."""
        if trainer.is_global_zero:
            self.work.replace(self.place)
            say(f"the answers are in {self.place}")


def default_outputs(trainer: Trainer) -> list[Callback]:
    """Return what writes the outputs of this run that none of the trainer's callbacks writes."""
    wanted: dict[Any, type[AdapterExport | PredictionFile]] = {"fit": AdapterExport, "predict": PredictionFile}
    kind = wanted.get(trainer.state.fn)
    if kind is None or trainer.fast_dev_run or any(isinstance(c, kind) for c in trainer.callbacks):  # type: ignore[attr-defined]
        return []
    return [kind()]


def run_folder(trainer: Trainer) -> Path:
    """Return where the run's files lie. Collective: every rank asks, or those that do wait."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def unused(path: Path) -> Path:
    """Return the path, or where something is there, the first of ``NAME-2``, ``NAME-3``, ... where nothing is."""
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return path if not path.exists() else next(other for other in others if not other.exists())


def as_json(row: Mapping[str, Any]) -> str:
    """Return a row as strict JSON: dates as texts, and null for what is no number."""
    return json.dumps(_plain(row), ensure_ascii=False, default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def say(line: str) -> None:
    """Print a line about the run."""
    print(f"lit-debias: {line}", flush=True)
