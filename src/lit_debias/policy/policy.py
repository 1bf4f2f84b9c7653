"""The policy: a frozen, optionally 4-bit base, LoRA adapters in fp32, and the reference that hides in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_debias.forward.forms import Forms
from lit_debias.models.adapters import REFERENCE, TRAINED, trained_parameters
from lit_debias.packing.groups import PackedGroups, token_budget
from lit_debias.packing.logprobs import TokenLogprobs, logits_logprobs, logprobs_at, selected_logprobs
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.encoding import PolicyTokens, Sizes
from lit_debias.support import distributed
from lit_debias.types import Rollout, Support

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lit_debias.policy.recipe import QLoRAPolicy

FORWARD_TOKENS = 8192  # packed tokens of a pass without gradient, which keeps next to nothing


class Policy(PolicyTokens):
    """A loaded model and all that is asked of it: token ids, log-probs, the reference, and forms to sample from.

    Args:
        recipe: What it was loaded from.
        lm: PEFT's model around Hugging Face's.
        tokenizer: Of the model.
        sizes: What the model says of token ids.
        forms: How it computes.
    """

    def __init__(
        self, recipe: QLoRAPolicy, lm: PeftModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes, forms: Forms
    ) -> None:
        super().__init__(
            tokenizer, sizes, recipe.source, recipe.system_prompt, recipe.max_prompt_tokens, recipe.chat_template_kwargs
        )
        self.recipe, self.lm, self.forms = recipe, lm, forms

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The Hugging Face model with the adapters inside its layers."""
        model: PreTrainedModel = self.lm.get_base_model()
        return model

    @property
    def is_sharded(self) -> bool:
        """Whether processes share the base out: all must make the same forward and backward passes."""
        return self.forms.sharded

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the trained adapter by name."""
        return trained_parameters(self)

    def adapter_weights(self) -> dict[str, Tensor]:
        """Return a copy of the trained adapter's weights by name."""
        return {name: parameter.detach().clone() for name, parameter in self.trainable_parameters().items()}

    @contextlib.contextmanager
    def with_adapter(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the context the trained adapter has the weights that :meth:`adapter_weights` returned once."""
        now = self.adapter_weights()
        self._put(weights)
        try:
            yield
        finally:
            self._put(now)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trainable_parameters().items():
            parameter.copy_(weights[name])

    def train(self, mode: bool = True) -> Policy:
        """Stay in the mode it was loaded in; Lightning calls ``eval()`` around validation."""
        return self

    def release(self) -> PreTrainedModel:
        """Take the adapters off, and return the base, which another policy may be loaded around; this one is done."""
        base: PreTrainedModel = self.lm.unload()
        return base

    # ---------------------------------------------------------------- log-probs

    def forward(
        self, packed: PackedGroups, temperature: float = 1.0, entropy_grad: bool = False, support: Support | None = None
    ) -> TokenLogprobs:
        """Return fp32 log-probs [N] of the N packed completion tokens and entropies [N] in nats, within a support."""
        outputs, head = self.forms.way.outputs(packed), self.forms.way.head
        if head is None:
            return logits_logprobs(outputs, packed.targets, temperature, entropy_grad, support)
        return selected_logprobs(
            outputs,
            head.weight,
            packed.targets,
            temperature,
            bias=head.bias,
            entropy=True,
            entropy_grad=entropy_grad,
            support=support,
        )

    @torch.no_grad()
    def logprobs(self, rollout: Rollout, temperature: float = 1.0, reference: bool = False) -> Tensor:
        """Return log-probs [P, G, T] fp32 of a rollout's tokens at ``temperature``; 0 where masked.

        Args:
            rollout: Any rollout, also one from :meth:`encode`.
            temperature: Divides the logits.
            reference: Under the frozen reference instead of the trained adapter.
        """
        return self.logprobs_at(rollout, (temperature,), reference)[0]

    @torch.no_grad()
    def logprobs_at(
        self,
        rollout: Rollout,
        temperatures: tuple[float, ...],
        reference: bool = False,
        supports: tuple[Support | None, ...] | None = None,
    ) -> Tensor:
        """Return :meth:`logprobs` at K temperatures, each within a support if given, from one pass: [K, P, G, T]."""
        parts = []
        with self.as_reference() if reference else contextlib.nullcontext():
            for groups in self.in_step(self.parts(rollout.prompt_mask, rollout.completion_mask, FORWARD_TOKENS)):
                packed = pack_rollout(rollout, groups)
                within = [support and support[groups][packed.completion_mask] for support in supports or ()]
                values = self._logprobs_at(packed, temperatures, within or [None] * len(temperatures))
                parts.append(torch.stack([packed.unpack(row) for row in values]))
        return torch.cat(parts, dim=1)

    def _logprobs_at(
        self, packed: PackedGroups, temperatures: tuple[float, ...], supports: list[Support | None]
    ) -> Tensor:
        outputs, head, targets = self.forms.way.outputs(packed), self.forms.way.head, packed.targets
        if head is not None:
            return logprobs_at(outputs, head.weight, targets, temperatures, head.bias, supports=supports)
        asked = zip(temperatures, supports, strict=True)
        return torch.stack([logits_logprobs(outputs, targets, t, support=within).logprobs for t, within in asked])

    def parts(self, prompt_mask: Tensor, completion_mask: Tensor, tokens: int) -> list[slice]:
        """Cut P groups into neighbours that share a forward pass of at most so many tokens.

        See :func:`lit_debias.packing.groups.token_budget`; where the policy cannot pack, each completion counts its
        prompt once more.
        """
        return token_budget(prompt_mask, completion_mask, tokens, packs=self.forms.way.packs)

    def in_step(self, parts: Sequence[slice]) -> Iterator[slice]:
        """Yield parts that the caller makes a pass over, and then make those that other processes have more of.

        Collective where the policy :attr:`is_sharded`, and of no effect elsewhere.
        """
        idle = self.most(len(parts)) - len(parts)  # agreed before the first pass, which is collective itself
        yield from parts
        self.forms.idle(idle)

    def most(self, number: int) -> int:
        """Return the largest of the numbers of all processes where they share the base out, else this one's."""
        return max(distributed.gather_objects(number)) if self.is_sharded else number

    def failing_together(self) -> AbstractContextManager[None]:
        """Return the context in which no process goes on where another fails, if they share the base out.

        See :func:`lit_debias.support.distributed.fail_together`: those that went on would wait for the layers' parts.
        """
        return distributed.fail_together() if self.is_sharded else contextlib.nullcontext()

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within the context the model is the frozen reference: adapters off, or the frozen copy of ``adapter``."""
        if self.recipe.reference_is_base:
            with self.lm.disable_adapter():
                yield
            return
        self.lm.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self.lm.set_adapter(TRAINED)

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """Within the context the model is the untouched base, without a system prompt: one yardstick for all arms.

        :meth:`as_reference` is something else: for a policy that continues an adapter it is that adapter.
        """
        system_prompt, self.system_prompt = self.system_prompt, None
        try:
            with self.lm.disable_adapter():
                yield
        finally:
            self.system_prompt = system_prompt
