"""Training of the reward model: ``lit-debias fit -c configs/reward_model.yaml``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import AdamW

from lit_debias.errors import UserError
from lit_debias.models import check_model
from lit_debias_deberta.checkpoint import Manifest, build_network, check_free, save_network
from lit_debias_deberta.losses import Regression, pairs_within, ranking_loss, regression_loss
from lit_debias_deberta.metrics import GradedAgreement
from lit_debias_deberta.network import DIMENSIONS, RewardNetwork

FIGURES = ("spearman", "pairwise_accuracy", "ece")


class RewardModel(LightningModule):
    """A reward model: an encoder over (prompt, response) with one head per dimension (after arXiv 2511.06023).

    The loss is a regression on graded labels plus ``ranking_weight`` times a Bradley-Terry term between responses to
    one prompt. A batch holds ``prompt``, ``response`` and ``prompt_id`` (lists of N strings) and ``labels`` ([N, 4]
    float, the default dimensions in their order, NaN where missing); other dimensions are columns of their own name.
    At the end of training the model is written to ``out``.

    Args:
        out: Folder for the trained model; a reward model that is there is replaced.
        encoder: Hub id, local folder, or ``pkg://PACKAGE/PATH``; the folder of a reward model is trained further.
        dimensions: Names of the heads.
        max_length: Tokens of prompt and response together.
        trainable_layers: Train only so many of the highest encoder layers; null trains the embeddings too.
        regression: ``bce`` (label as a probability) or ``mse`` (of the score).
        ranking_weight: Weight of the ranking term; 0 leaves it out.
        margin: Two labels must differ by more to be ranked, in [0, 1).
        dropout: In the heads, in [0, 1).
        optimizer: Builds the optimiser from the parameters that train.
        warmup: Share of the optimiser steps in which the learning rate rises; it falls to 0 in the rest.
        bucket_size: Pairs in one forward pass, alike in length so that little is padded, which suits a CPU; null
            reads a whole batch at once, which suits a GPU. The loss is the same.

    Raises:
        UserError: an argument is out of range, ``encoder`` names nothing, or ``out`` holds something else.
    """

    network: RewardNetwork | None

    def __init__(
        self,
        out: str,
        encoder: str = "microsoft/deberta-v3-base",
        dimensions: Sequence[str] = DIMENSIONS,
        max_length: int = 256,
        trainable_layers: int | None = None,
        regression: Regression = "bce",
        ranking_weight: float = 0.5,
        margin: float = 0.1,
        dropout: float = 0.1,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=2e-5),
        warmup: float = 0.1,
        bucket_size: int | None = None,
    ) -> None:
        super().__init__()
        check_dimensions(dimensions)
        check_model(encoder)
        if max_length < 8 or ranking_weight < 0 or not (0 <= margin < 1 and 0 <= dropout < 1 and 0 <= warmup < 1):
            raise UserError(
                f"RewardModel: max_length={max_length}, ranking_weight={ranking_weight}, margin={margin}, "
                f"dropout={dropout}, warmup={warmup}; write max_length >= 8, ranking_weight >= 0, the others in [0, 1)"
            )
        if bucket_size is not None and bucket_size < 1:
            raise UserError(f"RewardModel: bucket_size={bucket_size}; write at least 1, or null")
        check_free(Path(out))
        self.out, self.source = Path(out), encoder
        self.dimensions, self.max_length, self.dropout = list(dimensions), max_length, dropout
        self.trainable_layers = trainable_layers
        self.regression, self.ranking_weight, self.margin = regression, ranking_weight, margin
        self.make_optimizer, self.warmup = optimizer, warmup
        self.bucket_size = bucket_size
        self.network = None
        self.agreement = GradedAgreement(self.dimensions, margin)

    def configure_model(self) -> None:
        """Load the encoder, once."""
        if self.network is not None:
            return
        self.network = build_network(self.source, self.dimensions, self.max_length, self.dropout)
        if self.trainable_layers is not None:
            self.network.train_only_top(self.trainable_layers)
        self.network.train()  # from_pretrained leaves evaluation mode, and Lightning keeps what it finds

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser with a linear warm-up and decay, stepped after each batch."""
        from transformers import get_linear_schedule_with_warmup

        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise UserError(
                "the learning rate falls to 0 at the end of training; write trainer.max_epochs or max_steps"
            )
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        schedule = get_linear_schedule_with_warmup(optimizer, round(self.warmup * steps), int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---------------------------------------------------------------- steps

    def forward(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return logits [N, D] float32."""
        assert self.network is not None, "call configure_model() first"
        return self.network.read(prompts, responses, self.bucket_size)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return self._step(batch, "train")[0]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Collect scores for the figures."""
        _, logits, labels, groups = self._step(batch, "val")
        self.agreement.update(logits.sigmoid(), labels, groups)

    def _step(self, batch: Mapping[str, Any], stage: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = self(batch["prompt"], batch["response"])
        labels = labels_of(batch, self.dimensions).to(logits)
        groups = group_ids(batch["prompt_id"]).to(logits.device)
        regression = regression_loss(logits, labels, self.regression)
        ranking = ranking_loss(logits, labels, pairs_within(groups), self.margin)
        loss = regression + self.ranking_weight * ranking
        how: dict[str, Any] = {"batch_size": len(labels), "sync_dist": stage == "val"}
        self.log(f"{stage}/loss", loss, prog_bar=stage == "train", **how)
        self.log_dict({f"{stage}/regression": regression, f"{stage}/ranking": ranking}, **how)
        return loss, logits, labels, groups

    def on_validation_epoch_end(self) -> None:
        """Log how well scores and labels agree."""
        figures = {f"val/{name}": value for name, value in self.agreement.compute().items() if not math.isnan(value)}
        self.agreement.reset()
        # sync_dist: every rank holds the same figures already, and Lightning warns without it
        self.log_dict(figures, sync_dist=True)

    # ---------------------------------------------------------------- the end

    def on_fit_end(self) -> None:
        """Write the model and print the figures, on the first rank; a ``fast_dev_run`` leaves no model."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self.network is not None
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items() if "val/" in name}
        save_network(self.network, self._manifest(metrics), self.out)
        Console().print(as_table(metrics, self.dimensions, f"{self.source} -> {self.out}"))

    def _manifest(self, metrics: dict[str, float]) -> Manifest:
        return Manifest(
            dimensions=self.dimensions,
            max_length=self.max_length,
            base_model=self.source,
            data=str(getattr(self.trainer.datamodule, "path", "")),  # type: ignore[attr-defined]
            metrics=metrics,
            versions={name: version(name) for name in ("lit-debias", "torch", "transformers")},
        )


def check_dimensions(dimensions: Sequence[str]) -> None:
    """Raise :class:`UserError` where names of heads repeat, are empty, or cannot name a module."""
    if not dimensions or len(set(dimensions)) < len(dimensions) or not all(name.isidentifier() for name in dimensions):
        raise UserError(f"dimensions={list(dimensions)}: write different names of letters, digits and underscores")


def labels_of(batch: Mapping[str, Any], dimensions: Sequence[str]) -> Tensor:
    """Return the labels [N, D] of a batch, NaN where missing.

    Raises:
        UserError: a dimension is neither one of the four of ``labels`` nor a column.
    """
    columns = []
    for name in dimensions:
        if name in DIMENSIONS:
            columns.append(batch["labels"][:, DIMENSIONS.index(name)].float())
        elif name in batch:
            values = [math.nan if value is None else float(value) for value in batch[name]]
            columns.append(torch.tensor(values, device=batch["labels"].device))
        else:
            raise UserError(f"dimension '{name}': the data has no such column; its columns: {', '.join(batch)}")
    return torch.stack(columns, dim=-1)


def group_ids(prompt_ids: Sequence[str]) -> Tensor:
    """Return [N] int64, equal for equal ids on every rank and in every process."""
    digests = [hashlib.blake2b(str(name).encode(), digest_size=7).digest() for name in prompt_ids]
    return torch.tensor([int.from_bytes(digest, "big") for digest in digests])


def as_table(metrics: Mapping[str, float], dimensions: Sequence[str], title: str) -> Table:
    """Return the validation figures, one row per dimension."""
    table = Table("dimension", *FIGURES, title=title)
    for dimension in dimensions:
        figures = [metrics.get(f"val/{dimension}/{figure}", math.nan) for figure in FIGURES]
        table.add_row(dimension, *[f"{figure:.3f}" for figure in figures])
    return table
