"""Lightning's averages of weights, over the adapter alone."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import nn


class AdapterAveraging(Callback):
    """Lets a :class:`WeightAveraging` of Lightning see the trained adapter instead of the whole module.

    Lightning copies the module that it averages, and averages all that is in it: with the base that is twice the
    memory, and 4-bit codes are no numbers to average. Validation, checkpoints and export get the average; training goes
    on from the weights themselves, which checkpoints hold too.

    Args:
        averaging: What is averaged and when.
    """

    def __init__(self, averaging: WeightAveraging) -> None:
        self.averaging = averaging
        self.adapter: Adapter | None = None
        self.swapped = False
        """Whether the policy holds the average now, and the average's place the weights that train."""

    @property
    def state_key(self) -> str:
        """The key in checkpoints is that of Lightning's callback."""
        return self.averaging.state_key

    def _of(self, trainer: Trainer, pl_module: LightningModule) -> Adapter:
        """Return the adapter; the first call, once it is loaded, starts its average."""
        if self.adapter is None:
            trained = {f"policy.{name}": p for name, p in pl_module.policy.trainable_parameters().items()}  # type: ignore[operator, union-attr]
            self.adapter = Adapter(trained).to(pl_module.device)
            self.averaging.setup(trainer, self.adapter, "fit")
        return self.adapter

    # ---------------------------------------------------------------- the hooks that Lightning's callback has

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the average, where no checkpoint has."""
        self._of(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the step into the average."""
        self.averaging.on_train_batch_end(trainer, self._of(trainer, pl_module), outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the epoch into the average."""
        self.averaging.on_train_epoch_end(trainer, self._of(trainer, pl_module))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        if trainer.state.fn == "fit":
            self.averaging.on_validation_epoch_start(trainer, self._of(trainer, pl_module))
            self.swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train on from the weights themselves."""
        if trainer.state.fn == "fit":
            self.averaging.on_validation_epoch_end(trainer, self._of(trainer, pl_module))
            self.swapped = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the policy."""
        self.averaging.on_train_end(trainer, self._of(trainer, pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning's callback keeps."""
        return self.averaging.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what Lightning's callback keeps."""
        self.averaging.load_state_dict(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the average as the adapter, and the weights that train beside it."""
        checkpoint["state_dict"] = self._of(trainer, pl_module).state_dict()
        self.averaging.on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.swapped:  # in the middle of a validation
            names = ("state_dict", "current_model_state")
            checkpoint["current_model_state"], checkpoint["state_dict"] = (checkpoint[name] for name in names)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average, and the weights that train."""
        self.averaging.on_load_checkpoint(trainer, self._of(trainer, pl_module), checkpoint)


class Adapter(LightningModule):
    """Parameters under their dotted names, as a module; they are shared, not copied.

    Args:
        parameters: Name in the whole module -> parameter.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]  # type: ignore[assignment]
            place.register_parameter(last, parameter)


def average_adapters(trainer: Trainer) -> None:
    """Put :class:`AdapterAveraging` around the trainer's averages of weights."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [AdapterAveraging(c) if isinstance(c, WeightAveraging) else c for c in callbacks]
