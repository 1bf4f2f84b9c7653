"""What every training of a reward network shares: its options, the forward pass, what a trainer must not do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from lit_debias.plugins import Precision, UserError, check_model, dtype_of
from lit_debias_deberta.checkpoint import build_network
from lit_debias_deberta.network import RewardNetwork


class EncoderModule(LightningModule):
    """Trains a :class:`~lit_debias_deberta.network.RewardNetwork`; options as in the classes that derive from it.

    Raises:
        UserError: an option is out of range, or ``encoder`` names nothing.
    """

    network: RewardNetwork | None

    def __init__(
        self,
        encoder: str,
        max_length: int,
        trainable_layers: int | None,
        dropout: float,
        optimizer: OptimizerCallable | None,
        warmup: float,
        bucket_size: int | None,
        precision: Precision,
        lora_rank: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_model(encoder)
        if max_length < 8 or not (0 <= dropout < 1 and 0 <= warmup < 1):
            raise UserError(
                f"{name}: max_length={max_length}, dropout={dropout}, warmup={warmup}; write max_length >= 8, the "
                "others in [0, 1)"
            )
        if bucket_size is not None and bucket_size < 1:
            raise UserError(f"{name}: bucket_size={bucket_size}; write at least 1, or null")
        if lora_rank is not None and lora_rank < 1:
            raise UserError(f"{name}: lora_rank={lora_rank}; write at least 1, or null")
        self.source, self.max_length, self.dropout, self.lora_rank = encoder, max_length, dropout, lora_rank
        self.trainable_layers, self.bucket_size, self.precision = trainable_layers, bucket_size, precision
        self.make_optimizer, self.warmup = optimizer or partial(AdamW, lr=2e-5), warmup
        self.network = None

    def check_trainer(self) -> None:
        """Refuse what would harm the network in silence.

        Raises:
            UserError: the trainer's precision converts weights, or a callback averages what is not there yet.
        """
        precision = str(self.trainer.precision)
        if precision.endswith("-true") and precision != "32-true":
            raise UserError(
                f"trainer.precision: '{precision}' converts weights, which are float32 here; write 32-true, and "
                "model.init_args.precision: bfloat16"
            )
        if any(isinstance(c, StochasticWeightAveraging) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "trainer.callbacks: StochasticWeightAveraging copies the module before its network is there, and would "
                "average nothing; write EMAWeightAveraging or WeightAveraging"
            )

    def build(self, dimensions: Sequence[str]) -> RewardNetwork:
        """Return the network to train, with a head for each dimension."""
        network = build_network(self.source, dimensions, self.max_length, self.dropout)
        if self.trainable_layers is not None:
            network.train_only_top(self.trainable_layers)
        if self.lora_rank is not None:
            network.add_lora(self.lora_rank)
        return network.train()  # from_pretrained leaves evaluation mode, and Lightning keeps what it finds

    def forward(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return logits [N, D] float32."""
        assert self.network is not None, "call configure_model() first"
        bf16 = dtype_of(self.precision, self.device) == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return self.network.read(prompts, responses, self.bucket_size)

    @property
    def data_path(self) -> str:
        """What the data module reads, empty where it does not say."""
        return str(getattr(self.trainer.datamodule, "path", ""))  # type: ignore[attr-defined]
