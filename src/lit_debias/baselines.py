"""What GRPO is compared with: SFT on neutral responses, and DPO on neutral over biased ones."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.optim import Optimizer

from lit_debias import distributed
from lit_debias.adapter_module import AdapterModule
from lit_debias.conversations import answer_of
from lit_debias.data.sources import ORIGIN
from lit_debias.errors import UserError
from lit_debias.grpo.loss import UpdateSize
from lit_debias.grpo.packing import pack
from lit_debias.policy import QLoRAPolicy
from lit_debias.prompt_lengths import check_responses
from lit_debias.tokens import tokens_of
from lit_debias.types import PromptBatch

Metrics = dict[str, Tensor]


class Baseline(AdapterModule):
    """Trains on the responses that come with the prompts: a group each, one optimiser step a batch.

    Responses end with the end-of-sequence token, which is trained like the others.
    """

    columns: ClassVar[tuple[str, ...]]
    """The data's columns with the responses, in the order of the group."""
    needs_reference: ClassVar[bool] = False
    """Whether the loss takes log-probs under the frozen reference."""

    def __init__(
        self,
        policy: QLoRAPolicy,
        micro_batch_tokens: int = 2048,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler, max_grad_norm)
        if micro_batch_tokens < 1:
            raise UserError("micro_batch_tokens must be positive")
        self.micro_batch_tokens, self.seed = micro_batch_tokens, seed

    @abstractmethod
    def loss(
        self, logprobs: Tensor, mask: Tensor, reference: Tensor | None, size: UpdateSize
    ) -> tuple[Tensor, Metrics]:
        """Return what B groups add to the loss of the whole update, and to its metrics.

        Args:
            logprobs: [B, G, T] of the responses, with gradient; 0 where masked.
            mask: [B, G, T] bool, True on the tokens of the responses.
            reference: [B, G, T] the same under the reference, where :attr:`needs_reference`.
            size: Totals of the update over all micro-batches and ranks.
        """

    # ---------------------------------------------------------------- one step

    @property
    def rollout_step(self) -> int:
        """Batches done, after which the data module of a resumed run goes on."""
        return self.global_step

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Make one optimiser step; how the batch is cut into micro-batches changes nothing."""
        start = time.perf_counter()
        optimizer = cast(Optimizer, self.optimizers())
        torch.manual_seed(self._dropout_seed())
        optimizer.zero_grad()
        sums: Counter[str] = Counter()
        for loss, measured, last in self._micro_batches(prompts):
            with self._gradient_sync(last):
                self.manual_backward(loss * distributed.world_size())  # DDP averages, the loss is over all ranks
            sums.update(measured)
        norm = self._optimizer_step(optimizer, f"step {self.global_step}", prompts)
        self._log({**sums, "grad_norm": norm, "step_time": time.perf_counter() - start}, bar=("loss",))

    def _dropout_seed(self) -> int:
        return (self.seed * 1_000_003 + self.global_step) * distributed.world_size() + distributed.rank()

    def _micro_batches(self, prompts: PromptBatch) -> Iterator[tuple[Tensor, dict[str, float], bool]]:
        """Yield the loss and the metrics of each part of a batch, and whether it is the last part."""
        with distributed.fail_together():
            rollout = self.policy.encode(prompts, responses(prompts, self.columns), end=True)
        size = UpdateSize.of(rollout.completion_mask, rollout.completion_ids.shape[-1])
        reference = None
        if self.needs_reference:
            reference = self.policy.logprobs(rollout, reference=True)
        micro_batches = self.policy.parts(rollout.prompt_mask, rollout.completion_mask, self.micro_batch_tokens)
        for groups in micro_batches:
            packed = pack(*(tensor[groups] for tensor in tokens_of(rollout)))
            tokens = self.policy(packed)
            mine = None if reference is None else reference[groups]
            mask = rollout.completion_mask[groups]
            loss, measured = self.loss(packed.unpack(tokens.logprobs), mask, mine, size)
            measured |= {"loss": loss.detach(), "entropy": tokens.entropy.detach().sum() / size.tokens}
            # Logging averages over ranks, so this rank's share is scaled up to the whole.
            shares = {name: float(value) * size.world_size for name, value in measured.items()}
            yield loss, shares | {"num_tokens": float(len(packed.targets))}, groups == micro_batches[-1]

    # ---------------------------------------------------------------- validation, test

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Measure the loss; metrics carry the prefix ``eval_``."""
        self._measure(prompts, "eval_")

    def test_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Measure the loss; metrics carry the prefix ``test_``."""
        self._measure(prompts, "test_")

    def _measure(self, prompts: PromptBatch, prefix: str) -> None:
        sums: Counter[str] = Counter()
        for _, measured, _ in self._micro_batches(prompts):
            sums.update(measured)
        for name, value in sums.items():
            self.log(prefix + name, value, on_epoch=True, sync_dist=True, batch_size=len(prompts))

    def setup(self, stage: str) -> None:
        """Check that every prompt has its responses before a model is loaded."""
        super().setup(stage)
        for prompts in self._tables():
            responses(prompts, self.columns)

    def configure_model(self) -> None:
        """Load the policy, and check that the model's context holds all prompts with their responses."""
        super().configure_model()
        for prompts in self._tables():
            for name in self.columns:
                texts = [answer_of(value) for value in prompts.columns[name]]
                check_responses(self.policy, prompts.asked, texts, prompts.columns[ORIGIN], name)


def responses(prompts: PromptBatch, columns: tuple[str, ...]) -> list[list[str]]:
    """Return the responses [P][G] in the order of ``columns``.

    Raises:
        UserError: the data lacks a column, or a prompt has no text there.
    """
    for name in columns:
        if name not in prompts.columns:
            known = ", ".join(column for column in prompts.columns if column != ORIGIN) or "prompts alone"
            raise UserError(
                f"data: no column '{name}' with a response to each prompt; it has: {known}; map it with "
                "data.init_args.columns"
            )
        origins = prompts.columns.get(ORIGIN, ["data"] * len(prompts))
        for origin, prompt, value in zip(origins, prompts.texts, prompts.columns[name], strict=True):
            text = answer_of(value)
            if not isinstance(text, str) or not text.strip():
                raise UserError(
                    f"{origin}: '{name}' is {text!r:.40}, and prompt {prompt!r:.60} needs a response there, a text or "
                    "one message of the assistant; leave such prompts out, for example with "
                    "data.init_args.prompt_kinds: [open, leading]"
                )
    groups = zip(*(prompts.columns[name] for name in columns), strict=True)
    return [[answer_of(value) for value in group] for group in groups]


class SFT(Baseline):
    """Supervised fine-tuning: the mean negative log-likelihood of a token of the neutral responses.

    Args:
        policy: The model that is trained.
        micro_batch_tokens: Prompts share a forward and backward pass up to so many tokens; changes memory only.
        optimizer: Builds the optimiser from the adapter's parameters; by default AdamW as PyTorch sets it.
        lr_scheduler: Builds the schedule, stepped after each optimiser step.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Seeds LoRA dropout.

    Raises:
        UserError: an option makes no sense; and in ``setup``, a prompt without ``reference``.
    """

    columns = ("reference",)

    def loss(
        self, logprobs: Tensor, mask: Tensor, reference: Tensor | None, size: UpdateSize
    ) -> tuple[Tensor, Metrics]:
        """Return the share of the mean over the update's tokens."""
        return -logprobs.sum() / size.tokens, {}


class DPO(Baseline):
    """Direct preference optimisation (arXiv 2305.18290): the neutral response over the biased one.

    The reference is the base with the adapter off, or a frozen copy of the adapter that the policy continues. DPO alone
    may make both responses less likely, and teaches no answer to end; ``sft_weight`` holds on to the neutral ones.

    Args:
        policy: The model that is trained.
        beta: Strength of the tie to the reference, positive.
        sft_weight: Weight of the neutral responses' negative log-likelihood per token, which is added to the loss of
            each pair: the alpha of RPO, arXiv 2404.19733, eq. 1; 0 is DPO.
        micro_batch_tokens: Pairs share a forward and backward pass up to so many packed tokens; changes memory only.
        optimizer: Builds the optimiser from the adapter's parameters; by default AdamW as PyTorch sets it.
        lr_scheduler: Builds the schedule, stepped after each optimiser step.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Seeds LoRA dropout.

    Raises:
        UserError: an option makes no sense; and in ``setup``, a prompt without ``reference`` or ``biased``.
    """

    columns = ("reference", "biased")
    needs_reference = True

    def __init__(
        self,
        policy: QLoRAPolicy,
        beta: float = 0.1,
        sft_weight: float = 0.0,
        micro_batch_tokens: int = 2048,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, micro_batch_tokens, optimizer, lr_scheduler, max_grad_norm, seed)
        if not beta > 0:
            raise UserError(f"DPO: beta is {beta}; write a positive number, such as 0.1")
        if not 0 <= sft_weight < math.inf:
            raise UserError(f"DPO: sft_weight is {sft_weight}; write a number from 0 up, such as 0.5")
        self.beta, self.sft_weight = beta, sft_weight

    def loss(
        self, logprobs: Tensor, mask: Tensor, reference: Tensor | None, size: UpdateSize
    ) -> tuple[Tensor, Metrics]:
        """Return the share of the mean over the update's pairs, and TRL's metrics."""
        assert reference is not None
        losses, measured = dpo_loss(logprobs.sum(-1), reference.sum(-1), self.beta)
        if self.sft_weight:
            losses = losses - self.sft_weight * logprobs[:, 0].sum(-1) / mask[:, 0].sum(-1)
        pairs = size.sequences / 2
        return losses.sum() / pairs, {name: value.float().sum() / pairs for name, value in measured.items()}


def dpo_loss(logprobs: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Return the loss of each of B pairs, arXiv 2305.18290, eq. 7, and metrics [B] without gradient.

    Args:
        logprobs: [B, 2] log-probs of the chosen and of the rejected response under the policy.
        reference: [B, 2] the same under the reference.
        beta: Scale of the implicit reward ``beta * (log pi - log pi_ref)``.

    Returns:
        ``-log sigmoid(reward of the chosen - reward of the rejected)``; and TRL's ``rewards/chosen|rejected|margins|
        accuracies`` and ``logps/chosen|rejected``.
    """
    rewards = beta * (logprobs - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    fixed, plain = rewards.detach(), logprobs.detach()
    return -logsigmoid(margins), {
        "rewards/chosen": fixed[:, 0],
        "rewards/rejected": fixed[:, 1],
        "rewards/margins": margins.detach(),
        "rewards/accuracies": margins.detach() > 0,
        "logps/chosen": plain[:, 0],
        "logps/rejected": plain[:, 1],
    }
