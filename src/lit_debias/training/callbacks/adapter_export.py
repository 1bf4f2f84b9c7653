"""Writes the trained adapter in PEFT's own format."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError

from lit_debias.errors import UserError
from lit_debias.models.adapters import TRAINED
from lit_debias.support.atomic import new_folder
from lit_debias.training.adapter_module import AdapterModule


class AdapterExport(Callback):
    """Write the adapter at the end of training, as ``peft.AutoPeftModelForCausalLM.from_pretrained`` loads it.

    Args:
        out: Folder, by default ``adapter`` in the trainer's ``default_root_dir``; an adapter that is there already is
            replaced once the new one is complete.
    """

    def __init__(self, out: str | None = None) -> None:
        self.out = out

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write on the first rank; also where a run is resumed that was killed after its last step."""
        if trainer.is_global_zero and isinstance(pl_module, AdapterModule):
            export_adapter(pl_module, Path(self.out or Path(trainer.default_root_dir) / "adapter"))


def export_adapter(module: AdapterModule, out: Path) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` into ``out``, all or nothing.

    Raises:
        UserError: it cannot be written; what stood there is untouched.
    """
    assert module.policy.lm is not None
    try:
        with new_folder(out) as work:
            module.policy.lm.save_pretrained(work, selected_adapters=[TRAINED], save_embedding_layers=False)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the adapter {out}: {error}; the checkpoints are untouched: make it possible to write there, "
            "then resume with --ckpt_path last, which writes the adapter"
        ) from error
