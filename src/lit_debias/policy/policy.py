"""The QLoRA policy: a frozen, optionally 4-bit base, LoRA adapters in fp32, and the reference that hides in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_debias.errors import UserError
from lit_debias.forward.lean import LeanModel, why_not_lean
from lit_debias.forward.memory import free_memory
from lit_debias.forward.merged_copy import InferenceCopy
from lit_debias.forward.native import NativeModel, why_not_native
from lit_debias.models.adapter_config import read_adapter_config
from lit_debias.models.adapters import REFERENCE, TRAINED, continued_adapter, new_adapter
from lit_debias.models.base_weights import load_base
from lit_debias.models.checks import disable_dropout, settle_mode
from lit_debias.models.layers import fingerprint
from lit_debias.models.loading import load_tokenizer, set_checkpointing
from lit_debias.models.probing.layouts import why_not_packed
from lit_debias.models.probing.probe import Probe, distances, moved_adapter, without_adapter_dropout
from lit_debias.models.probing.ways import Expected, Way, first_right, own_ways, plain_head, read
from lit_debias.models.sources import check_model
from lit_debias.packing.groups import PackedGroups, pack, token_budget
from lit_debias.packing.logprobs import TokenLogprobs, logits_logprobs, logprobs_at, selected_logprobs
from lit_debias.packing.tokens import tokens_of
from lit_debias.policy.encoding import PolicyTokens
from lit_debias.support.precision import Precision, dtype_of
from lit_debias.types import Rollout, Support

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

LEAN = "the lean forward pass"
BASE_MOVED = 0.02  # distance of logits; the same weights and products give the same logits
FORWARD_TOKENS = 8192  # packed tokens of a pass without gradient, which keeps next to nothing


class QLoRAPolicy(PolicyTokens):
    """A causal language model that trains only its LoRA adapters.

    The base is loaded by :meth:`load`, not by the constructor, so that a wrong configuration fails at once.

    Args:
        model: Base model: a local folder, ``pkg://PACKAGE/FILE.gguf``, or a hub id.
        quantization: ``nf4`` (4-bit NormalFloat with double quantisation, QLoRA) or ``none``. Weights that are
            stored in 4 bits of bitsandbytes stay so with both; FP8 and MXFP4 need ``none``, which loads them as plain
            weights; other stored formats are refused.
        dtype: Type of the frozen weights, or of the computation where they are 4-bit. LoRA weights are always fp32.
            ``auto`` is bfloat16 where the device has instructions for it, and float32 elsewhere; on such a CPU bfloat16
            takes 7 to 60 times as long.
        rank: LoRA rank.
        alpha: LoRA scale; the update is ``alpha / rank * B @ A``.
        dropout: LoRA dropout. Above 0, sampling and training see different networks. (The base's own is always off.)
        targets: Names of the linear layers that get an adapter, a pattern of whole names, or ``all-linear``: those of
            the text decoder but the output layer, and in mixtures of experts and hybrids those of attention and of MLPs
            that all tokens pass, as the log then says.
        adapter: Folder of an adapter to continue from: plain LoRA, nothing that moves the base or trains it.
        reference: What the frozen reference is where an ``adapter`` is continued: a frozen copy of that adapter, or the
            base without it.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more compute. null does
            so where keeping them would take more than half of the free memory, by what the first layer keeps; models
            without a lean form keep them.
        keep_base: Keep a 4-bit base in ``dtype`` too, so that no pass dequantises it: faster, 2 bytes a parameter in
            bf16, the same numbers up to rounding. null keeps it where it takes at most a quarter of the free memory;
            decide it yourself where a run must resume bitwise on another machine.
        attention: How training attends over packed groups. ``sdpa`` is PyTorch's fused attention; ``flex`` is
            FlexAttention, compiled, which copies no prompt: for GPUs, and models that have a lean form.
        system_prompt: System message put before every prompt that has none of its own; needs a chat template.
        max_prompt_tokens: Longest prompt, in tokens after the chat template.
        chat_template_kwargs: Variables of the chat template, such as ``{enable_thinking: false}`` for Qwen3, or
            ``{chat_template: NAME}`` where a tokenizer has several.

    Raises:
        UserError: an argument names nothing or makes no sense.
    """

    def __init__(
        self,
        model: str,
        quantization: Literal["nf4", "none"] = "nf4",
        dtype: Precision = "auto",
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        adapter: str | None = None,
        reference: Literal["adapter", "base"] = "adapter",
        gradient_checkpointing: bool | None = None,
        keep_base: bool | None = None,
        attention: Literal["sdpa", "flex"] = "sdpa",
        system_prompt: str | None = None,
        max_prompt_tokens: int = 1024,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, system_prompt, max_prompt_tokens, chat_template_kwargs)
        check_model(model)
        if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
            # jsonargparse turns null into this text where it is an option inside a class on the command line
            instead = "write null in a file" if adapter == "None" else "write the folder of a PEFT adapter"
            raise UserError(f"adapter '{adapter}': no adapter_config.json there; {instead}, or leave it out")
        if adapter is not None:
            read_adapter_config(adapter, dropout)  # refuses what is no plain LoRA before anything is loaded
        if rank < 1 or not 0 <= dropout < 1 or max_prompt_tokens < 1:
            raise UserError(
                f"policy: rank={rank}, dropout={dropout}, max_prompt_tokens={max_prompt_tokens}; "
                "write rank >= 1, 0 <= dropout < 1, max_prompt_tokens >= 1"
            )
        if attention == "flex" and dropout:
            raise UserError("policy: attention 'flex' knows no LoRA dropout; write attention: sdpa or dropout: 0")
        self.quantization = quantization
        self.precision = dtype
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets
        self.adapter = adapter
        self.reference_is_base = adapter is None or reference == "base"
        self.gradient_checkpointing = gradient_checkpointing
        self.keep_base = keep_base
        self.flex = attention == "flex"
        self.lm: PeftModel | None = None
        self._inference: InferenceCopy | None = None
        self._lean: LeanModel | None = None
        self._native: NativeModel | None = None
        self._sampled: list[int] = []  # of which weights, see _notice_changes
        self.lean_obstacle: str | None = "the policy is not loaded"
        """What keeps this model from the lean forward pass, or None."""

    # ---------------------------------------------------------------- loading

    def load(self, device: torch.device | str = "cpu") -> QLoRAPolicy:
        """Load tokenizer, base and adapters onto ``device``, unless they are there, and return the policy."""
        if self.lm is not None:
            return self
        self._check_attention(torch.device(device))
        self.dtype = dtype_of(self.precision, device)
        self.read_tokenizer(load_tokenizer(self.source))
        config = self._adapter_config()
        base = load_base(self.source, self.quantization, self.dtype, device)
        base.requires_grad_(False)
        disable_dropout(base)
        settle_mode(base)
        untouched = read(base, Probe.shortest(base, self.tokenizer), self.source)
        if self.gradient_checkpointing:
            set_checkpointing(base, True)
            base.enable_input_require_grads()
        self.read_sizes(base)
        with warnings.catch_warnings():  # PEFT asks transformers for an attribute by its old name
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error of ours
            if self.adapter is None:
                self.lm = new_adapter(base, self.source, config)
            else:
                self.lm = continued_adapter(base, self.source, config, self.adapter, copy=not self.reference_is_base)
        settle_mode(self.lm)
        self._probe = Probe.of(base, self.tokenizer)
        if self.reference_is_base:
            self._check_reference(untouched)
        self._choose_way(base, self._probe)
        return self

    def _check_reference(self, untouched: Tensor) -> None:
        """Compare the frozen reference with the base before it had adapters, which it is said to be."""
        with self.as_reference():
            reference = read(self.causal_lm, Probe.shortest(self.causal_lm, self.tokenizer), self.source)
        if float(distances(reference, untouched).median()) > BASE_MOVED:
            raise UserError(
                f"adapter '{self.adapter}' moves the weights of the base, which is then no reference; write a plain "
                "LoRA adapter, or reference: adapter"
            )

    def _choose_way(self, base: PreTrainedModel, probe: Probe) -> None:
        """Take the fastest way to log-probs that agrees with the plain model (:mod:`lit_debias.models.probing`)."""
        obstacle = why_not_lean(base)
        with moved_adapter(self.trainable_parameters()), without_adapter_dropout(base):
            expected = Expected.of(base, probe, self.source, self.dtype)
            head = plain_head(base, probe.prompt[-8:])
            if head is None:
                obstacle = obstacle or "its logits are not its last hidden states times the output layer"
            ways = own_ways(base, self.autocast, head)
            if obstacle is None:
                self._lean = LeanModel(base, self.dtype, self._keeps_base(base), self.flex)
                if not self.dropout:
                    ways.insert(0, Way(LEAN, partial(self._lean_states, self._lean), head, packs=True))
            self.way, wrong = first_right(ways, expected, self.source)
        self.lean_obstacle = obstacle or wrong.get(LEAN)
        if self.lean_obstacle:
            self._lean = None
        if self.flex and self.lean_obstacle:
            raise UserError(
                f"policy: attention 'flex' needs the lean forward pass, and {self.lean_obstacle}; write attention: sdpa"
            )
        if wrong or not self.way.packs:
            why = "; ".join(f"{name}: {reason}" for name, reason in wrong.items()) or why_not_packed(base)
            rank_zero_info(f"Log-probs are computed by a slower way, {self.way.name} ({why}).")

    def _check_attention(self, device: torch.device) -> None:
        if self.flex and device.type != "cuda":
            raise UserError("policy: attention 'flex' trains on CUDA devices alone; write attention: sdpa")

    def train(self, mode: bool = True) -> QLoRAPolicy:
        """Stay in train mode, see :meth:`load`; Lightning calls ``eval()`` around validation."""
        return self

    def _keeps_base(self, base: PreTrainedModel) -> bool:
        if self.keep_base is not None:
            return self.keep_base
        size = base.num_parameters() * torch.finfo(self.dtype).bits // 8
        return size <= free_memory(base.device) // 4

    def _adapter_config(self) -> LoraConfig:
        from peft import LoraConfig

        if self.adapter is not None:
            return read_adapter_config(self.adapter, self.dropout)
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
        )

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The Hugging Face model with the adapters inside its layers."""
        assert self.lm is not None, "call load() first"
        model: PreTrainedModel = self.lm.get_base_model()
        return model

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the trained adapter by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    # ---------------------------------------------------------------- log-probs

    def forward(
        self, packed: PackedGroups, temperature: float = 1.0, entropy_grad: bool = False, support: Support | None = None
    ) -> TokenLogprobs:
        """Return fp32 log-probs [N] of the N packed completion tokens and entropies [N] in nats, within a support."""
        outputs, head = self.way.outputs(packed), self.way.head
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

    def _lean_states(self, lean: LeanModel, packed: PackedGroups) -> Tensor:
        return lean.predicting_states(packed, recompute=self.gradient_checkpointing)

    def autocast(self) -> torch.autocast:
        """Return the context in which fp32 adapters and bf16 weights compute together."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

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
        tokens, parts = tokens_of(rollout), []
        with self.as_reference() if reference else contextlib.nullcontext():
            for groups in self.parts(rollout.prompt_mask, rollout.completion_mask, FORWARD_TOKENS):
                packed = pack(*(tensor[groups] for tensor in tokens))
                within = [support and support[groups][packed.completion_mask] for support in supports or ()]
                values = self._logprobs_at(packed, temperatures, within or [None] * len(temperatures))
                parts.append(torch.stack([packed.unpack(row) for row in values]))
        return torch.cat(parts, dim=1)

    def _logprobs_at(
        self, packed: PackedGroups, temperatures: tuple[float, ...], supports: list[Support | None]
    ) -> Tensor:
        outputs, head, targets = self.way.outputs(packed), self.way.head, packed.targets
        if head is not None:
            return logprobs_at(outputs, head.weight, targets, temperatures, head.bias, supports=supports)
        asked = zip(temperatures, supports, strict=True)
        return torch.stack([logits_logprobs(outputs, targets, t, support=within).logprobs for t, within in asked])

    def parts(self, prompt_mask: Tensor, completion_mask: Tensor, tokens: int) -> list[slice]:
        """Cut P groups into neighbours that share a forward pass of at most so many tokens.

        See :func:`lit_debias.packing.groups.token_budget`; where the policy cannot pack, each completion counts its
        prompt once more.
        """
        return token_budget(prompt_mask, completion_mask, tokens, packs=self.way.packs)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within the context the model is the frozen reference: adapters off, or the frozen copy of ``adapter``."""
        assert self.lm is not None, "call load() first"
        if self.reference_is_base:
            with self.lm.disable_adapter():
                yield
            return
        self.lm.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self.lm.set_adapter(TRAINED)

    # ---------------------------------------------------------------- sampling

    def inference_model(self) -> PreTrainedModel:
        """Return the copy to sample from, base and adapter in one weight, up to date with the adapter."""
        self._notice_changes()
        if self._inference is None:
            self._inference = InferenceCopy(self.causal_lm, self.dtype)
        return self._inference.refreshed()

    def lean_model(self) -> LeanModel:
        """Return the lean form, merged for sampling; where there is no :attr:`lean_obstacle`."""
        assert self._lean is not None, self.lean_obstacle
        self._notice_changes()
        return self._lean.refreshed()

    @property
    def native_obstacle(self) -> str | None:
        """What keeps this model from the native forward pass, or None; compiles it where that is all that is left."""
        return self.lean_obstacle or (why_not_native(self._lean) if self._lean else None)

    def native_model(self) -> NativeModel:
        """Return the native form, merged for sampling; where there is no :attr:`native_obstacle`."""
        assert self._lean is not None, self.lean_obstacle
        self._notice_changes()
        if self._native is None:
            self._native = NativeModel(self._lean)
        return self._native.refreshed()

    @contextlib.contextmanager
    def live_model(self) -> Iterator[PreTrainedModel]:
        """Within the context, the training weights themselves, able to use a key-value cache."""
        if not self.gradient_checkpointing:
            yield self.causal_lm
            return
        set_checkpointing(self.causal_lm, False)
        try:
            yield self.causal_lm
        finally:
            set_checkpointing(self.causal_lm, True)

    @contextlib.contextmanager
    def moved_adapter(self) -> Iterator[Expected]:
        """Within the context, the adapter is moved a little, and what the plain model then says of a probe is known.

        What samples is compared with it, see :mod:`lit_debias.models.probing.probe`.
        """
        with moved_adapter(self.trainable_parameters()), without_adapter_dropout(self.causal_lm):
            yield Expected.of(self.causal_lm, self._probe, self.source, self.dtype)

    def _notice_changes(self) -> None:
        """Look whether the adapter has changed: averages of weights, for one, swap it in place and tell nobody."""
        before, self._sampled = self._sampled, fingerprint(self.trainable_parameters().values())
        if before != self._sampled:
            self.weights_changed()

    def weights_changed(self) -> None:
        """Say that the adapter changed; what is sampled from next is refreshed."""
        for copy in (self._inference, self._lean, self._native):
            if copy is not None:
                copy.stale = True
