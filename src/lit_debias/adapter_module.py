"""What every module that trains the policy's adapter shares: optimiser, its step, logging, adapter-only checkpoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_debias.data import PromptDataModule
from lit_debias.data.sources import ORIGIN
from lit_debias.errors import UserError
from lit_debias.metrics import OVER_RANKS
from lit_debias.policy import QLoRAPolicy
from lit_debias.prompt_lengths import check_prompts
from lit_debias.types import PromptBatch


class AdapterModule(LightningModule):
    """Trains the adapter of a :class:`QLoRAPolicy` with manual optimisation.

    Args:
        policy: The model that is trained.
        optimizer: Builds the optimiser from the adapter's parameters.
        lr_scheduler: Builds the schedule, stepped after each optimiser step.
        max_grad_norm: Gradients are scaled down to this norm.

    Raises:
        UserError: ``max_grad_norm`` is not positive.
    """

    remedy: ClassVar[str] = "lower the learning rate"
    """What to do where a gradient is not finite."""
    new_tokens: int = 1
    """Tokens of the longest completion that is sampled."""

    def __init__(
        self,
        policy: QLoRAPolicy,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
    ) -> None:
        super().__init__()
        if not max_grad_norm > 0:
            raise UserError("max_grad_norm must be positive")
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the adapter alone; on_load_checkpoint compares the names
        self.policy = policy
        self.make_optimizer, self.make_scheduler = optimizer, lr_scheduler
        self.max_grad_norm = max_grad_norm

    # ---------------------------------------------------------------- parts of a step

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        strategy = self.trainer.strategy
        if last or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return cast(AbstractContextManager[None], strategy.block_backward_sync())

    def _optimizer_step(self, optimizer: Optimizer, name: str, prompts: PromptBatch) -> float:
        """Clip, step, and return the norm of the gradient before clipping; an error says the step's name and prompt."""
        parameters = self.policy.trainable_parameters().values()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        if not math.isfinite(norm):  # the same on every rank: gradients have been averaged
            raise FloatingPointError(
                f"the gradient of {name} is not finite (first prompt: {prompts.texts[0]!r:.60}); "
                f"{self.remedy}; the last checkpoint is untouched"
            )
        optimizer.step()
        self.policy.weights_changed()
        if self.make_scheduler is not None:
            cast(LRScheduler, self.lr_schedulers()).step()
        return norm

    def _log(self, values: Mapping[str, float], bar: Collection[str] = ()) -> None:
        for name, value in values.items():
            how, shown = OVER_RANKS.get(name, "mean"), name in bar
            self.log(name, value, shown, on_step=True, on_epoch=False, reduce_fx=how, sync_dist=True, batch_size=1)

    # ---------------------------------------------------------------- Lightning's life cycle

    def setup(self, stage: str) -> None:
        """Silence what does not apply; subclasses check the data here, before a model is loaded."""
        # The state after the optimiser step, which Lightning warns of, is the one to resume from.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")

    def configure_model(self) -> None:
        """Load the policy onto this rank's device, and check the prompts; called for every stage, loads once."""
        self.policy.load(self.trainer.strategy.root_device)
        for prompts in self._tables():
            check_prompts(self.policy, prompts.asked, prompts.columns[ORIGIN], self.new_tokens)

    def _tables(self) -> list[PromptBatch]:
        """Return every split of the data that this stage reads, with file and row of each prompt in ``ORIGIN``."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PromptDataModule):
            return []
        tables = [rows for rows in data.rows.values() if rows is not None]
        return [data.collate({name: list(rows[name]) for name in rows.column_names}) for rows in tables]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser over the adapter's parameters, and the schedule if there is one."""
        optimizer = self.make_optimizer(self.policy.trainable_parameters().values())
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [self.make_scheduler(optimizer)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter; leave the base out."""
        trained = self.policy.trainable_parameters()
        checkpoint["state_dict"] = {f"policy.{name}": parameter.detach() for name, parameter in trained.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another adapter, before Lightning copies what it holds.

        Raises:
            UserError: names or shapes differ.
        """
        expected = {f"policy.{name}": tuple(p.shape) for name, p in self.policy.trainable_parameters().items()}
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if expected != found:
            odd = min(set(expected.items()) ^ set(found.items()))
            raise UserError(
                f"the checkpoint does not fit the policy (first difference: {odd[0]} {list(odd[1])}); "
                "write the model, rank and targets that it was trained with"
            )
        self.policy.weights_changed()
