"""The QLoRA policy: a frozen, optionally 4-bit base, LoRA adapters in fp32, and the reference that hides in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lit_debias.activation_memory import free_memory
from lit_debias.adapters import REFERENCE, TRAINED, continued_adapter, new_adapter
from lit_debias.errors import UserError
from lit_debias.grpo.logprobs import TokenLogprobs, logprobs_at, selected_logprobs
from lit_debias.grpo.packing import PackedGroups, pack, token_budget
from lit_debias.inference_copy import InferenceCopy, fingerprint
from lit_debias.lean_model import LeanModel, why_not_lean
from lit_debias.model_checks import check_adapters, check_head, disable_dropout, read_adapter_config
from lit_debias.models import check_model, load_causal_lm, load_tokenizer, nf4_config, render_chat, set_checkpointing
from lit_debias.native_model import NativeModel, why_not_native
from lit_debias.precision import Precision, dtype_of
from lit_debias.tokens import end_of_sequence_ids, pad, tokens_of
from lit_debias.types import PromptBatch, Rollout

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORWARD_TOKENS = 8192  # packed tokens of a pass without gradient, which keeps next to nothing


class QLoRAPolicy(nn.Module):
    """A causal language model that trains only its LoRA adapters.

    The base is loaded by :meth:`load`, not by the constructor, so that a wrong configuration fails at once.

    Args:
        model: Base model: a local folder, ``pkg://PACKAGE/FILE.gguf``, or a hub id.
        quantization: ``nf4`` (4-bit NormalFloat with double quantisation, QLoRA) or ``none``.
        dtype: Type of the frozen weights, or of the computation where they are 4-bit. LoRA weights are always fp32.
            ``auto`` is bfloat16 where the device has instructions for it, and float32 elsewhere; on such a CPU bfloat16
            takes 7 to 60 times as long.
        rank: LoRA rank.
        alpha: LoRA scale; the update is ``alpha / rank * B @ A``.
        dropout: LoRA dropout. Above 0, sampling and training see different networks. (The base's own is always off.)
        targets: Names of the linear layers that get an adapter, or ``all-linear``.
        adapter: Folder of an adapter to continue from.
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
        system_prompt: System message put before every prompt; needs a chat template.
        max_prompt_tokens: Longest prompt, in tokens after the chat template.

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
    ) -> None:
        super().__init__()
        check_model(model)
        if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
            # jsonargparse turns null into this text where it is an option inside a class on the command line
            instead = "write null in a file" if adapter == "None" else "write the folder of a PEFT adapter"
            raise UserError(f"adapter '{adapter}': no adapter_config.json there; {instead}, or leave it out")
        if rank < 1 or not 0 <= dropout < 1 or max_prompt_tokens < 1:
            raise UserError(
                f"policy: rank={rank}, dropout={dropout}, max_prompt_tokens={max_prompt_tokens}; "
                "write rank >= 1, 0 <= dropout < 1, max_prompt_tokens >= 1"
            )
        if attention == "flex" and dropout:
            raise UserError("policy: attention 'flex' knows no LoRA dropout; write attention: sdpa or dropout: 0")
        self.source = model
        self.quantization = quantization
        self.precision = dtype
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets
        self.adapter = adapter
        self.reference_is_base = adapter is None or reference == "base"
        self.gradient_checkpointing = gradient_checkpointing
        self.keep_base = keep_base
        self.flex = attention == "flex"
        self.system_prompt = system_prompt
        self.max_prompt_tokens = max_prompt_tokens
        self.lm: PeftModel | None = None
        self._inference: InferenceCopy | None = None
        self._lean: LeanModel | None = None
        self._native: NativeModel | None = None
        self._sampled: list[int] = []  # of which weights, see _notice_changes
        self.lean_obstacle: str | None = "the policy is not loaded"
        """What keeps this model from the lean forward pass, or None."""

    # ---------------------------------------------------------------- loading

    def load(self, device: torch.device | str = "cpu") -> None:
        """Load tokenizer, base and adapters onto ``device``; does nothing when they are there."""
        if self.lm is not None:
            return
        self._check_attention(torch.device(device))
        self.dtype = dtype_of(self.precision, device)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.source)
        if self.system_prompt and not self.tokenizer.chat_template:
            raise UserError(f"policy: model '{self.source}' has no chat template, so it takes no system_prompt")
        config = self._adapter_config()
        quantization = {"quantization_config": nf4_config(self.dtype)} if self.quantization == "nf4" else {}
        base = load_causal_lm(self.source, dtype=self.dtype, device_map={"": device}, **quantization)
        base.requires_grad_(False)
        # bitsandbytes on CPUs repacks 4-bit weights whenever eval() and train() alternate: always train mode.
        base.train()
        disable_dropout(base)
        check_head(base, self.source)
        if self.gradient_checkpointing:
            set_checkpointing(base, True)
            base.enable_input_require_grads()
        self.eos_token_ids = end_of_sequence_ids(base, self.tokenizer)
        with warnings.catch_warnings():  # PEFT asks transformers for an attribute by its old name
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error of ours
            if self.adapter is None:
                self.lm = new_adapter(base, self.source, config)
            else:
                self.lm = continued_adapter(base, self.source, config, self.adapter, copy=not self.reference_is_base)
        check_adapters(self.lm)
        self.lm.train()  # PEFT calls eval() for a frozen adapter
        self.lean_obstacle = why_not_lean(base)
        if self.flex and self.lean_obstacle:
            raise UserError(
                f"policy: attention 'flex' needs the lean forward pass, and {self.lean_obstacle}; write attention: sdpa"
            )
        if self.lean_obstacle is None:
            self._lean = LeanModel(base, self.dtype, self._keeps_base(base), self.flex)

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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the trained adapter by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    # ---------------------------------------------------------------- tokens

    def encode_prompts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return ids [P, S] int64, left-padded, and mask [P, S] bool; the chat template is applied if there is one.

        Raises:
            UserError: a prompt has no tokens, or more than ``max_prompt_tokens``.
        """
        rows = [self.prompt_ids(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if not 0 < len(row) <= self.max_prompt_tokens:
                raise UserError(
                    f"prompt {text!r:.60} has {len(row)} tokens; prompts need 1 to {self.max_prompt_tokens} "
                    "(policy.max_prompt_tokens)"
                )
        return pad(rows, self._pad_id, left=True, device=self.device)

    def encode(self, prompts: PromptBatch, completions: list[list[str]], *, end: bool = False) -> Rollout:
        """Return given completions [P][G] as a rollout without behaviour log-probs (all 0).

        Args:
            prompts: P prompts.
            completions: Their texts.
            end: Append the end-of-sequence token, which a policy must learn and a score of a text leaves out.
        """
        flat = [text for group in completions for text in group]
        ending = [self._end_id] if end else []
        rows = [self.tokenizer.encode(text, add_special_tokens=False) + ending for text in flat]
        return self.rollout_of(prompts, self.encode_prompts(prompts.texts), rows, completions)

    def rollout_of(
        self, prompts: PromptBatch, encoded: tuple[Tensor, Tensor], rows: list[list[int]], texts: list[list[str]]
    ) -> Rollout:
        """Return given tokens as a rollout without behaviour log-probs (all 0).

        Args:
            prompts: P prompts.
            encoded: Their ids and mask [P, S], left-padded.
            rows: [P x G] token ids of the completions, group by group.
            texts: [P][G] what they say.
        """
        ids, mask = pad(rows, self._pad_id, left=False, device=self.device)
        shape = (len(prompts), len(texts[0]), ids.shape[1])
        return Rollout(
            prompts=prompts,
            prompt_ids=encoded[0],
            prompt_mask=encoded[1],
            completion_ids=ids.view(shape),
            completion_mask=mask.view(shape),
            logprobs=torch.zeros(shape, device=self.device),
            truncated=torch.zeros(shape[:2], dtype=torch.bool, device=self.device),
            texts=texts,
        )

    def decode(self, completion_ids: Tensor, completion_mask: Tensor) -> list[list[str]]:
        """Return texts [P][G] of ids [P, G, T] without special tokens."""
        return [
            [str(self.tokenizer.decode(ids[mask], skip_special_tokens=True)) for ids, mask in zip(*group, strict=True)]
            for group in zip(completion_ids.cpu(), completion_mask.cpu(), strict=True)
        ]

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)  # masked everywhere, so any id will do

    @property
    def _end_id(self) -> int:
        if not self.eos_token_ids:
            raise UserError(f"policy: model '{self.source}' has no end-of-sequence token to train")
        own = self.tokenizer.eos_token_id
        return self.eos_token_ids[0] if own is None else int(own)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a prompt, in the chat template if there is one."""
        if not self.tokenizer.chat_template:
            return list(self.tokenizer.encode(text))
        rendered = render_chat(self.tokenizer, self.source, text, self.system_prompt)
        return list(self.tokenizer.encode(rendered, add_special_tokens=False))

    # ---------------------------------------------------------------- log-probs

    def forward(self, packed: PackedGroups, temperature: float = 1.0, entropy_grad: bool = False) -> TokenLogprobs:
        """Return fp32 log-probs [N] of the N packed completion tokens, and the entropy [N] in nats."""
        head = self.causal_lm.get_output_embeddings()
        return selected_logprobs(
            self._predicting_states(packed),
            head.weight,
            packed.targets,
            temperature,
            bias=head.bias,
            entropy=True,
            entropy_grad=entropy_grad,
        )

    def _predicting_states(self, packed: PackedGroups) -> Tensor:
        if self._lean is not None and not self.dropout:
            return self._lean.predicting_states(packed, recompute=self.gradient_checkpointing)
        decoder = getattr(self.causal_lm, self.causal_lm.base_model_prefix)
        rows = packed.rows()
        # Other kinds of attention add the mask to the scores, where True would count as 1.
        boolean = self.causal_lm.config._attn_implementation == "sdpa"
        with self.autocast():
            output = decoder(
                input_ids=rows.input_ids,
                attention_mask=rows.attention_mask if boolean else rows.attention_bias(self.dtype),
                position_ids=rows.position_ids,
                use_cache=False,
            )
        return packed.select(rows.tokens(output.last_hidden_state))

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
    def logprobs_at(self, rollout: Rollout, temperatures: tuple[float, ...], reference: bool = False) -> Tensor:
        """Return :meth:`logprobs` at K temperatures, [K, P, G, T], from one forward pass."""
        head = self.causal_lm.get_output_embeddings()
        tokens, parts = tokens_of(rollout), []
        with self.as_reference() if reference else contextlib.nullcontext():
            for groups in token_budget(rollout.prompt_mask, rollout.completion_mask, FORWARD_TOKENS):
                packed = pack(*(tensor[groups] for tensor in tokens))
                states = self._predicting_states(packed)
                values = logprobs_at(states, head.weight, packed.targets, temperatures, bias=head.bias)
                parts.append(torch.stack([packed.unpack(row) for row in values]))
        return torch.cat(parts, dim=1)

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
