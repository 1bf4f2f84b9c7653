"""Training of the reward model: ``lit-debias fit -c configs/reward_model.yaml``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor

from lit_debias.plugins import Precision, UserError, counted
from lit_debias_deberta import human_text as human
from lit_debias_deberta.batches import check_dimensions, group_ids, labels_of
from lit_debias_deberta.calibration import fit_calibration
from lit_debias_deberta.checkpoint import (
    MANIFEST,
    TEST,
    Manifest,
    check_free,
    find,
    load_network,
    read_manifest,
    save_network,
    save_test,
)
from lit_debias_deberta.encoder_module import EncoderModule
from lit_debias_deberta.examination import FAIRNESS, ScoredResponses, as_json, examine, flat
from lit_debias_deberta.losses import Regression, pairs_within, ranking_loss, regression_loss
from lit_debias_deberta.metrics import GradedResponses, agreement
from lit_debias_deberta.network import DIMENSIONS
from lit_debias_deberta.tables import examination_tables, human_tables, validation_table


class RewardModel(EncoderModule):
    """A reward model: an encoder over (prompt, response) with one head per dimension (after arXiv 2511.06023).

    The loss is a regression on graded labels plus ``ranking_weight`` times a Bradley-Terry term between responses to
    one prompt. A batch holds ``prompt``, ``response`` and ``prompt_id`` (lists of N strings) and ``labels`` ([N, 4]
    float, the default dimensions in their order, NaN where missing); other dimensions are columns of their own name.
    At the end of training the model is written to ``out``, with a calibration fitted on the validation responses.
    ``validate`` and ``test`` read it from there; ``test`` writes its figures to ``test.json`` beside it.

    Args:
        out: Folder for the trained model; a reward model that is there is replaced.
        encoder: Hub id, local folder, or ``pkg://PACKAGE/PATH`` of an encoder or a causal language model; the folder of
            a reward model is trained further.
        dimensions: Names of the heads.
        max_length: Tokens of prompt and response together.
        trainable_layers: Train only so many of the highest encoder layers; null trains the embeddings too.
        lora_rank: Train LoRA adapters of this rank in the linear layers of what would train, and merge them at the end;
            null trains the weights. For a causal language model as the encoder.
        regression: ``bce`` (label as a probability) or ``mse`` (of the score).
        ranking_weight: Weight of the ranking term; 0 leaves it out.
        margin: Two labels must differ by more to be ranked, in [0, 1).
        dropout: In the heads, in [0, 1).
        optimizer: Builds the optimiser from the parameters that train; by default AdamW with the learning rate 2e-5.
        warmup: Share of the optimiser steps in which the learning rate rises; it falls to 0 in the rest.
        bucket_size: Pairs in one forward pass, alike in length so that little is padded, which suits a CPU; null
            reads a whole batch at once, which suits a GPU. The loss is the same.
        human_text: Folder with StereoSet, CrowS-Pairs or CBBQ, on which ``test`` measures the fairness head too;
            :mod:`lit_debias_deberta.human_text` says how it is laid out. Nothing is trained on it.
        precision: Type of the encoder's products, whatever the trainer's precision says; weights and heads are float32.
            ``auto`` is bfloat16 where the device has instructions for it, and float32 elsewhere.

    Raises:
        UserError: an argument is out of range, ``encoder`` or ``human_text`` names nothing, or ``out`` holds
            something else.
    """

    def __init__(
        self,
        out: str,
        encoder: str = "microsoft/deberta-v3-base",
        dimensions: Sequence[str] = DIMENSIONS,
        max_length: int = 256,
        trainable_layers: int | None = None,
        lora_rank: int | None = None,
        regression: Regression = "bce",
        ranking_weight: float = 0.5,
        margin: float = 0.1,
        dropout: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        warmup: float = 0.1,
        bucket_size: int | None = None,
        human_text: str | None = None,
        precision: Precision = "auto",
    ) -> None:
        super().__init__(
            encoder, max_length, trainable_layers, dropout, optimizer, warmup, bucket_size, precision, lora_rank
        )
        check_dimensions(dimensions)
        if ranking_weight < 0 or not 0 <= margin < 1:
            raise UserError(
                f"RewardModel: ranking_weight={ranking_weight}, margin={margin}; write ranking_weight >= 0, and margin "
                "in [0, 1)"
            )
        if human_text is not None:
            human.check_folder(human_text)
            if FAIRNESS not in dimensions:
                raise UserError(f"human_text measures the head '{FAIRNESS}'; write it into dimensions, or leave it out")
        check_free(Path(out))
        self.out, self.dimensions, self.human_text = Path(out), list(dimensions), human_text
        self.regression, self.ranking_weight, self.margin = regression, ranking_weight, margin
        self.is_trained = False
        self.graded = GradedResponses()
        self.tested: list[ScoredResponses] = []

    def setup(self, stage: str) -> None:
        """Check what a stage needs before a model is loaded.

        Raises:
            UserError: there is no trained model to measure, it has other heads, or several devices would test it.
        """
        if stage == "test" and self.trainer.world_size > 1:
            raise UserError("test looks at all responses together; write --trainer.devices 1")
        self.check_trainer()
        self.is_trained = stage != "fit"
        if self.is_trained and self.network is None:
            dimensions = read_manifest(find(str(self.out))).dimensions
            if dimensions != self.dimensions:
                raise UserError(f"reward model '{self.out}' has the heads {dimensions}; write them as model.dimensions")

    def configure_model(self) -> None:
        """Load the encoder to train, or the trained model in any other stage; once."""
        if self.network is not None:
            return
        if self.is_trained:
            self.network = load_network(self.out)
            return
        self.network = self.build(self.dimensions)

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

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return self._step(batch, "train")[0]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Collect logits for the figures and the calibration."""
        _, logits, labels, groups = self._step(batch, "val")
        self.graded.update(logits, labels, groups)

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
        """Log how well scores and labels agree, and calibrate each head."""
        logits, labels, groups = self.graded.compute()
        self.graded.reset()
        figures = {"val": {"dimensions": agreement(logits.sigmoid(), labels, groups, self.dimensions, self.margin)}}
        # sync_dist: every rank holds the same figures already, and Lightning warns without it
        self.log_dict(flat(figures), sync_dist=True)
        if self.network is not None and not self.trainer.sanity_checking:
            columns = zip(self.dimensions, logits.T, labels.T, strict=True)
            self.network.calibration = {name: fit_calibration(*column) for name, *column in columns}

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Collect what :func:`~lit_debias_deberta.examination.examine` looks at."""
        assert self.network is not None
        logits = self(batch["prompt"], batch["response"]).cpu()
        labels = labels_of(batch, self.dimensions).cpu()
        splits = [str(split) for split in batch.get("split", ["test"] * len(logits))]
        kinds = [kind or "" for kind in batch.get("hard_negative", [""] * len(logits))]
        groups = group_ids(batch["prompt_id"])
        self.tested.append(ScoredResponses(splits, kinds, groups, labels, logits, self.network.scores(logits)))

    def on_test_epoch_end(self) -> None:
        """Write and print the figures of the test splits, and those on text by people."""
        figures = examine(ScoredResponses.join(self.tested), self.dimensions, self.margin)
        self.tested.clear()
        self.log_dict(
            {f"test/{name.removeprefix('all/')}": value for name, value in flat({"all": figures["all"]}).items()}
        )
        console = Console()
        console.print(*examination_tables(figures), sep="\n")
        content = {"splits": figures}
        if self.human_text is not None:
            pairs = human.read(self.human_text)
            console.print(f"scoring {counted(len(pairs), 'pair')} of texts by people; minutes on a CPU")
            content["human_text"] = human.measure(pairs, self._fairness)
            console.print(*human_tables(content["human_text"]), sep="\n")
        if not self.trainer.fast_dev_run and (self.out / MANIFEST).is_file():  # type: ignore[attr-defined]
            save_test({"data": self.data_path, **as_json(content)}, flat(figures), self.out)
            console.print(f"figures: {self.out / TEST}", soft_wrap=True)

    def _fairness(self, prompts: list[str], responses: list[str]) -> Tensor:
        assert self.network is not None
        scores = self.network.scores(self.network.read(prompts, responses, batch_size=64))
        return scores[:, self.dimensions.index(FAIRNESS)].cpu()

    # ---------------------------------------------------------------- the end

    def on_fit_end(self) -> None:
        """Write the model and print the figures, on the first rank; a ``fast_dev_run`` leaves no model."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self.network is not None
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items() if "val/" in name}
        self.network.merge_lora()
        save_network(self.network, self._manifest(metrics), self.out)
        Console().print(validation_table(metrics, self.dimensions, f"{self.source} -> {self.out}"))

    def _manifest(self, metrics: dict[str, float]) -> Manifest:
        return Manifest(
            dimensions=self.dimensions,
            max_length=self.max_length,
            base_model=self.source,
            data=self.data_path,
            metrics=metrics,
            versions={name: version(name) for name in ("lit-debias", "torch", "transformers")},
        )
