"""What GRPO is compared with: SFT on neutral responses, and DPO on neutral over biased ones."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_debias.conversations import answer_of
from lit_debias.data.sources import ORIGIN
from lit_debias.errors import UserError
from lit_debias.grpo.loss import UpdateSize
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.lengths import check_responses
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.support import distributed
from lit_debias.support.seeds import seed_at, seed_of_rank, seed_of_run
from lit_debias.training.adapter_module import AdapterModule, Metrics, Part
from lit_debias.training.anchor import ProseAnchor
from lit_debias.types import PromptBatch, Rollout


@dataclass(frozen=True)
class Lesson:
    """A batch's responses on their way through the update."""

    rollout: Rollout
    """The responses as if they had been sampled, [P, G, T]."""
    reference_logprobs: Tensor | None
    """[P, G, T], where the loss takes them."""
    size: UpdateSize
    weights: Tensor | None = None
    """[P] of the prompts, where the data weighs them."""


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
        seed: int | None = None,
        anchor: ProseAnchor | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler, max_grad_norm, anchor)
        if micro_batch_tokens < 1:
            raise UserError("micro_batch_tokens must be positive")
        self.micro_batch_tokens, self.seed = micro_batch_tokens, seed_of_run(seed)

    @abstractmethod
    def loss(
        self, logprobs: Tensor, mask: Tensor, reference: Tensor | None, weights: Tensor | None, size: UpdateSize
    ) -> tuple[Tensor, Metrics]:
        """Return what B groups add to the loss of the whole update, and to its metrics.

        Args:
            logprobs: [B, G, T] of the responses, with gradient; 0 where masked.
            mask: [B, G, T] bool, True on the tokens of the responses.
            reference: [B, G, T] the same under the reference, where :attr:`needs_reference`.
            weights: [B] of the groups, where :meth:`weights_of` has some.
            size: Totals of the update over all micro-batches and ranks.
        """

    def weights_of(self, prompts: PromptBatch) -> list[float] | None:
        """Return what each prompt weighs in the loss, [P]; None where all weigh the same."""
        return None

    # ---------------------------------------------------------------- one step

    @property
    def rollout_step(self) -> int:
        """Batches done, after which the data module of a resumed run goes on."""
        return self.global_step

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Make one optimiser step; how the batch is cut into micro-batches changes nothing."""
        start = time.perf_counter()
        torch.manual_seed(self._dropout_seed())
        lesson = self._encode(prompts)
        sums, norm = self.optimise(
            self._micro_batches(lesson), partial(self._part, lesson), f"step {self.global_step}", prompts
        )
        self._log({**sums, "grad_norm": norm, "step_time": time.perf_counter() - start}, shown=("loss",))

    def _dropout_seed(self) -> int:
        return seed_of_rank(seed_at(self.seed, self.global_step))

    def _encode(self, prompts: PromptBatch) -> Lesson:
        """Tokenise the responses, and ask the reference about them where the loss needs it."""
        with distributed.fail_together():
            rollout = self.policy.encode(prompts, responses(prompts, self.columns), end=True)
            given = self.weights_of(prompts)
        size = UpdateSize.of(rollout.completion_mask, rollout.completion_ids.shape[-1])
        weights = None if given is None else torch.tensor(given, device=rollout.completion_ids.device)
        reference = self.policy.logprobs(rollout, reference=True) if self.needs_reference else None
        return Lesson(rollout, reference, size, weights)

    def _micro_batches(self, lesson: Lesson) -> list[slice]:
        rollout = lesson.rollout
        return self.policy.parts(rollout.prompt_mask, rollout.completion_mask, self.micro_batch_tokens)

    def _part(self, lesson: Lesson, groups: slice) -> Part:
        """Return what a micro-batch adds to the loss and to the metrics."""
        size = lesson.size
        packed = pack_rollout(lesson.rollout, groups)
        tokens = self.policy(packed)
        reference, weights = (
            None if whole is None else whole[groups] for whole in (lesson.reference_logprobs, lesson.weights)
        )
        mask = lesson.rollout.completion_mask[groups]
        loss, measured = self.loss(packed.unpack(tokens.logprobs), mask, reference, weights, size)
        measured |= {"loss": loss.detach(), "entropy": tokens.entropy.detach().sum() / size.tokens}
        # Logging averages over ranks, so this rank's share is scaled up to the whole.
        shares = {name: float(value) * size.world_size for name, value in measured.items()}
        return loss, shares | {"num_tokens": float(len(packed.targets))}

    # ---------------------------------------------------------------- validation, test

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Measure the loss; metrics carry the prefix ``eval_``."""
        self._measure(prompts, "eval_")

    def test_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Measure the loss; metrics carry the prefix ``test_``."""
        self._measure(prompts, "test_")

    def _measure(self, prompts: PromptBatch, prefix: str) -> None:
        sums: Counter[str] = Counter()
        lesson = self._encode(prompts)
        for groups in self.policy.in_step(self._micro_batches(lesson)):
            _, measured = self._part(lesson, groups)
            sums.update(measured)
        for name, value in sums.items():
            self.log(prefix + name, value, on_epoch=True, sync_dist=True, batch_size=len(prompts))

    def setup(self, stage: str) -> None:
        """Check that every prompt has its responses before a model is loaded."""
        super().setup(stage)
        for prompts in self._tables():
            responses(prompts, self.columns)
            self.weights_of(prompts)

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
