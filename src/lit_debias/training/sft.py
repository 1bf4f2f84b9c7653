"""Supervised fine-tuning on the neutral responses."""

from __future__ import annotations

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_debias.data.sources import ORIGIN
from lit_debias.errors import UserError
from lit_debias.grpo.loss import UpdateSize
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.support.text import as_figure
from lit_debias.training.adapter_module import Metrics
from lit_debias.training.anchor import ProseAnchor
from lit_debias.training.baseline import Baseline
from lit_debias.types import PromptBatch


class SFT(Baseline):
    """Supervised fine-tuning: the mean negative log-likelihood of a token of the neutral responses.

    Args:
        policy: The model that is trained.
        weights: Column of the data with a number from 0 up, by which the loss of a prompt's tokens is multiplied;
            ``skew_weight`` is the one that ``balance`` of the data module adds. Without it, all weigh 1.
        micro_batch_tokens: Prompts share a forward and backward pass up to so many tokens; changes memory only.
        optimizer: Builds the optimiser from the adapter's parameters; by default AdamW as PyTorch sets it.
        lr_scheduler: Builds the schedule, stepped after each optimiser step.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Seeds LoRA dropout; null takes the seed of ``seed_everything``.
        anchor: Holds the policy to ordinary prose, which training on short answers makes more surprising.

    Raises:
        UserError: an option makes no sense; and in ``setup``, a prompt without ``reference`` or without a weight.
    """

    columns = ("reference",)

    def __init__(
        self,
        policy: QLoRAPolicy,
        weights: str | None = None,
        micro_batch_tokens: int = 2048,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        seed: int | None = None,
        anchor: ProseAnchor | None = None,
    ) -> None:
        super().__init__(policy, micro_batch_tokens, optimizer, lr_scheduler, max_grad_norm, seed, anchor)
        self.weight_column = weights

    def weights_of(self, prompts: PromptBatch) -> list[float] | None:
        """Return the column of weights, [P].

        Raises:
            UserError: there is none, or a value is no number from 0 up.
        """
        name = self.weight_column
        if name is None:
            return None
        if name not in prompts.columns:
            raise UserError(
                f"SFT: weights is '{name}', and the data has no such column; name one of its columns, or write "
                "balance: skew in the data's init_args, which adds skew_weight"
            )
        values = zip(prompts.columns.get(ORIGIN, ["data"] * len(prompts)), prompts.columns[name], strict=True)
        return [_weight(value, f"{origin}: '{name}'") for origin, value in values]

    def loss(
        self, logprobs: Tensor, mask: Tensor, reference: Tensor | None, weights: Tensor | None, size: UpdateSize
    ) -> tuple[Tensor, Metrics]:
        """Return the share of the mean over the update's tokens, each times its prompt's weight."""
        per_prompt = logprobs.sum((1, 2))
        return -(per_prompt if weights is None else weights * per_prompt).sum() / size.tokens, {}


def _weight(value: object, where: str) -> float:
    weight = as_figure(value)
    if weight is None or weight < 0:
        raise UserError(f"{where} is {value!r:.40}; write a number from 0 up, by which the loss is multiplied")
    return weight
