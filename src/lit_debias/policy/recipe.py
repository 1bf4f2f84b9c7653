"""The recipe that YAML names: which model, in how many bits, with what adapter; it makes a :class:`Policy`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.forward.choose import FormOptions, choose_forms
from lit_debias.forward.forms import Forms
from lit_debias.models.adapter_config import read_adapter_config
from lit_debias.models.adapters import continued_adapter, new_adapter, trained_parameters
from lit_debias.models.base_weights import load_base
from lit_debias.models.chat import check_reserved
from lit_debias.models.checks import disable_dropout, settle_mode
from lit_debias.models.loading import load_tokenizer, set_checkpointing
from lit_debias.models.probing.probe import Probe, distances
from lit_debias.models.probing.ways import read
from lit_debias.models.prompt_encoder import PromptEncoder
from lit_debias.models.sharding import OBSTACLE, load_sharded_base
from lit_debias.models.sources import check_model
from lit_debias.policy.encoding import Sizes
from lit_debias.policy.policy import Policy
from lit_debias.support import distributed
from lit_debias.support.precision import Precision, dtype_of

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE_MOVED = 0.02  # distance of logits; the same weights and products give the same logits


class QLoRAPolicy:
    """How a causal language model that trains only its LoRA adapters is loaded.

    Nothing is loaded before :meth:`load`, so that a wrong configuration fails at once.

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
            without a lean form keep them, unless processes share the base out.
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

    reads_pictures: ClassVar[bool] = False
    """Whether prompts may show some."""

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
        check_reserved(chat_template_kwargs)
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
        self.source = model
        self.quantization, self.precision = quantization, dtype
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets
        self.adapter = adapter
        self.reference_is_base = adapter is None or reference == "base"
        self.gradient_checkpointing, self.keep_base, self.flex = gradient_checkpointing, keep_base, attention == "flex"
        self.system_prompt, self.max_prompt_tokens = system_prompt, max_prompt_tokens
        self.chat_template_kwargs: dict[str, Any] = chat_template_kwargs or {}

    def load(
        self,
        device: torch.device | str = "cpu",
        mesh: DeviceMesh | None = None,
        base: PreTrainedModel | None = None,
    ) -> Policy:
        """Load tokenizer, base and adapters onto ``device``.

        Args:
            device: Where to.
            mesh: Processes that share the layers of the base out, one dimension named ``fsdp``; all of them must call.
                Each has all of the adapters, which begin as those of the first.
            base: What a policy of the same model, quantisation and type on that device has released, instead of a new
                one: see :meth:`Policy.release`.

        Raises:
            UserError: they cannot be loaded, do not fit each other, or compute something that no form here can.
        """
        options = self._form_options(device, sharded=mesh is not None)
        options.check_device(torch.device(device))
        encoder = self._encoder()
        encoder.check(self.system_prompt)
        tokenizer = encoder.tokenizer
        config = self._adapter_config()
        base = base or self._load_base(options.dtype, device, mesh)
        untouched = read(base, Probe.shortest(base, tokenizer), self.source)
        if options.gradient_checkpointing:
            set_checkpointing(base, True)
            base.enable_input_require_grads()
        sizes = Sizes.of(base, tokenizer)
        lm = self._with_adapters(base, config)
        if mesh is not None:
            distributed.same_as_first(trained_parameters(lm).values())
        settle_mode(lm)
        probe = self._probe(base, encoder)
        if mesh is not None:  # its length is a matter of time, and all must find the same
            probe = probe.shortened(min(distributed.gather_objects(len(probe.prompt))))
        if self.reference_is_base:
            self._check_reference(lm, tokenizer, untouched)
        return self._policy(lm, encoder, sizes, choose_forms(base, probe, self.source, options))

    def _encoder(self) -> PromptEncoder:
        return PromptEncoder(load_tokenizer(self.source), self.source, self.chat_template_kwargs)

    def _probe(self, base: PreTrainedModel, encoder: PromptEncoder) -> Probe:
        return Probe.of(base, encoder.tokenizer)

    def _policy(self, lm: PeftModel, encoder: PromptEncoder, sizes: Sizes, forms: Forms) -> Policy:
        return Policy(self, lm, encoder.tokenizer, sizes, forms)

    def _form_options(self, device: torch.device | str, sharded: bool) -> FormOptions:
        if sharded and self.keep_base:
            raise UserError(f"policy: keep_base keeps a base whole, and {OBSTACLE}; leave keep_base out")
        recompute = True if sharded and self.gradient_checkpointing is None else self.gradient_checkpointing
        dtype = dtype_of(self.precision, device)
        return FormOptions(dtype, self.dropout > 0, recompute, self.keep_base, self.flex, sharded)

    def _load_base(self, dtype: torch.dtype, device: torch.device | str, mesh: DeviceMesh | None) -> PreTrainedModel:
        base = self._load_weights(dtype, device, mesh)
        base.requires_grad_(False)
        disable_dropout(base)
        settle_mode(base)
        return base

    def _load_weights(self, dtype: torch.dtype, device: torch.device | str, mesh: DeviceMesh | None) -> PreTrainedModel:
        if mesh is None:
            return load_base(self.source, self.quantization, dtype, device)
        return load_sharded_base(self.source, self.quantization, dtype, device, mesh)

    def _with_adapters(self, base: PreTrainedModel, config: LoraConfig) -> PeftModel:
        with warnings.catch_warnings():  # PEFT asks transformers for an attribute by its old name
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error of ours
            if self.adapter is None:
                return new_adapter(base, self.source, config)
            return continued_adapter(base, self.source, config, self.adapter, copy=not self.reference_is_base)

    def _check_reference(self, lm: PeftModel, tokenizer: PreTrainedTokenizerBase, untouched: Tensor) -> None:
        """Compare the frozen reference with the base before it had adapters, which it is said to be."""
        base = lm.get_base_model()
        with lm.disable_adapter():
            reference = read(base, Probe.shortest(base, tokenizer), self.source)
        if float(distances(reference, untouched).median()) > BASE_MOVED:
            raise UserError(
                f"adapter '{self.adapter}' moves the weights of the base, which is then no reference; write a plain "
                "LoRA adapter, or reference: adapter"
            )

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
