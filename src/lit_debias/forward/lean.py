"""A forward pass without module calls: fused products, norms in one kernel, attention as the caller likes.

Sampling runs it with base and LoRA in one weight over a cache that is allocated once; training and the reference with
the LoRA branch beside the base, over packed groups.

It knows decoders that are built like Llama: RMS norms, rotary positions, grouped queries, a gated MLP. :class:`Family`
says in what they differ. Anything else takes Hugging Face's own forward pass, and :func:`why_not_lean` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_debias.forward.functions import Norm, gated, rms_norm
from lit_debias.forward.linear import FusedLinear
from lit_debias.forward.memory import KeptBytes, free_memory
from lit_debias.packing.attention import flex_group_attention, group_attention
from lit_debias.packing.groups import PackedGroups

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """In what the models of one class differ from Llama, where their modules do not say it themselves."""

    window_of_all: bool = False
    """Whether all layers have the configuration's window; otherwise each one's attention says which it has."""
    offset_norms: bool = False
    """Whether norms multiply by 1 + weight, in fp32."""
    mlp_norm: str = "post_attention_layernorm"
    """The norm before the MLP."""
    attention_outcome_norm: str | None = None
    """The norm of what the attention adds to the states."""
    mlp_outcome_norm: str | None = None
    """The norm of what the MLP adds."""
    rotary_kinds: bool = False
    """Whether positions are turned otherwise in layers with a window than in those without."""


FAMILIES = {
    "transformers.models.llama.modeling_llama.LlamaForCausalLM": Family(),
    "transformers.models.mistral.modeling_mistral.MistralForCausalLM": Family(window_of_all=True),
    "transformers.models.qwen2.modeling_qwen2.Qwen2ForCausalLM": Family(),
    "transformers.models.qwen3.modeling_qwen3.Qwen3ForCausalLM": Family(),
    "transformers.models.gemma.modeling_gemma.GemmaForCausalLM": Family(offset_norms=True),
    "transformers.models.gemma3.modeling_gemma3.Gemma3ForCausalLM": Family(
        offset_norms=True,
        mlp_norm="pre_feedforward_layernorm",
        attention_outcome_norm="post_attention_layernorm",
        mlp_outcome_norm="post_feedforward_layernorm",
        rotary_kinds=True,
    ),
}
FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # others choose frequencies by the length of the text

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Takes the layer's number, queries [N, heads, D], keys and values [N, kv_heads, D]; returns like queries."""
Rotations = dict[str | None, tuple[Tensor, Tensor]]
"""See :meth:`LeanModel.rotations`."""
Product = Callable[[FusedLinear, Tensor], Tensor]
"""``FusedLinear.merged`` or ``FusedLinear.adapted``."""


def why_not_lean(model: PreTrainedModel) -> str | None:
    """Return what keeps a model from the lean forward pass, or None."""
    config, family = model.config, _family_of(model)
    if family is None:
        return f"it has no lean form of {type(model).__name__}"
    rotations = config.rope_parameters.values() if family.rotary_kinds else [config.rope_parameters]
    for rotation in (parameters["rope_type"] for parameters in rotations):
        if rotation not in FIXED_ROTATIONS:
            return f"it does not know rotary positions of the type '{rotation}'"
    for option in ("use_bidirectional_attention", "attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, option, None):
            return f"it does not know {option}"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    return None


def _family_of(model: PreTrainedModel) -> Family | None:
    kind = type(model)
    return FAMILIES.get(f"{kind.__module__}.{kind.__qualname__}")


class LeanModel:
    """The policy's decoder, see :func:`why_not_lean` for which.

    Norms, embedding and rotary frequencies are the model's own; so are the linear layers, fused.

    Args:
        model: Hugging Face model, with or without PEFT's LoRA layers inside.
        dtype: Type of the weights and of the computation.
        keep_base: See :class:`FusedLinear`.
        flex: Attend over packed groups by FlexAttention.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, keep_base: bool = False, flex: bool = False) -> None:
        decoder: Any = model.model
        family = _family_of(model)
        assert family is not None, why_not_lean(model)
        self.stale = True
        self.group_attention = flex_group_attention if flex else group_attention
        self.dtype = dtype
        self.embedding: nn.Module = decoder.embed_tokens
        self.rotary: nn.Module = decoder.rotary_emb
        self.layers = [LeanLayer(layer, family, dtype, keep_base) for layer in decoder.layers]
        self.rotary_kinds = list(dict.fromkeys(layer.rotary_kind for layer in self.layers))
        self.norm = _norm(decoder.norm, family)
        self.head = FusedLinear([model.get_output_embeddings()], dtype)

    def refreshed(self) -> LeanModel:
        """Return itself with the weights that sampling needs, merged anew where the adapter has changed."""
        if self.stale:
            for fused in [self.head, *(fused for layer in self.layers for fused in layer.linears)]:
                fused.refresh()
            self.stale = False
        return self

    @property
    def embedding_scale(self) -> float:
        """What the embedding multiplies its weight by, rounded like it."""
        scale: Tensor = getattr(self.embedding, "embed_scale", torch.ones(()))
        return scale.to(self.dtype).item()

    @cached_property
    def compiled(self) -> Callable[[Tensor, Rotations, Attend], Tensor]:
        """The same as calling it, compiled; what may change from call to call is the content of tensors."""
        return torch.compile(self.__call__)

    def rotations(self, positions: Tensor, dtype: torch.dtype | None = None) -> Rotations:
        """Return, for each kind of layers, factors [N, 1, D] of a head and of the head with its halves swapped.

        Args:
            positions: [N].
            dtype: Of the factors; None for the model's.
        """
        like = torch.empty(0, dtype=dtype or self.dtype, device=positions.device)
        return {kind: self._rotation(like, positions, kind) for kind in self.rotary_kinds}

    def _rotation(self, like: Tensor, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(like, positions[None], *(() if kind is None else (kind,)))
        half = sin.shape[-1] // 2
        return cos[0, :, None], torch.cat((-sin[..., :half], sin[..., half:]), -1)[0, :, None]

    def __call__(self, ids: Tensor, rotations: Rotations, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """Return the logits [N, V] after each of N tokens, with the weights that were merged last.

        Args:
            ids: [N] int64, of any sequences.
            rotations: What :meth:`rotations` says of their positions.
            attend: Attention over a cache, which knows the sequences.
            wanted: Tokens whose logits alone are returned, int64 indices.
        """
        hidden: Tensor = self.embedding(ids)
        for number, layer in enumerate(self.layers):
            hidden = layer(number, hidden, rotations[layer.rotary_kind], attend, FusedLinear.merged)
        return self.head.merged(rms_norm(hidden if wanted is None else hidden[wanted], self.norm))

    def predicting_states(self, packed: PackedGroups, recompute: bool | None = False) -> Tensor:
        """Return the last hidden states [N, H] that predict the completion tokens, differentiable in the LoRA weights.

        Args:
            packed: P groups.
            recompute: Keep each layer's input only, and compute the rest again in the backward pass. None does so from
                the second layer on if all of them would keep more than half of the free memory.
        """
        rotations = self.rotations(packed.positions)

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return self.group_attention(queries, keys, values, packed, self.layers[number].window)

        hidden: Tensor = self.embedding(packed.ids)
        for number, layer in enumerate(self.layers):
            arguments = (number, hidden, rotations[layer.rotary_kind], attend, FusedLinear.adapted)
            if recompute:
                hidden = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            elif recompute is None and torch.is_grad_enabled():
                kept = KeptBytes(there_anyway=(*rotations[layer.rotary_kind], *layer.weights()))
                with kept.counting():
                    hidden = layer(*arguments)
                recompute = kept.total * len(self.layers) > free_memory(hidden.device) // 2
            else:
                hidden = layer(*arguments)
        return rms_norm(packed.select(hidden), self.norm)


class LeanLayer:
    """One decoder layer; queries, keys and values are one product, gate and up another."""

    def __init__(self, layer: nn.Module, family: Family, dtype: torch.dtype, keep_base: bool) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self.head_dim: int = attention.head_dim
        self.kv_heads: int = attention.config.num_key_value_heads
        self.heads: int = attention.config.num_attention_heads
        self.window = _window(attention, family)
        self.rotary_kind: str | None = attention.layer_type if family.rotary_kinds else None
        self.input_norm = _norm(layer.input_layernorm, family)
        self.mlp_norm = _norm(getattr(layer, family.mlp_norm), family)
        outcomes = (family.attention_outcome_norm, family.mlp_outcome_norm)
        self.attention_outcome_norm, self.mlp_outcome_norm = (
            None if name is None else _norm(getattr(layer, name), family) for name in outcomes
        )
        self.query_norm: Norm | None = None
        self.key_norm: Norm | None = None
        if hasattr(attention, "q_norm"):
            # What attends divides scores by the root of head_dim; where a model has another scale, queries bring it.
            scale = attention.scaling / self.head_dim**-0.5
            self.query_norm, self.key_norm = _norm(attention.q_norm, family, scale), _norm(attention.k_norm, family)
        self.activation: nn.Module = mlp.act_fn
        self.qkv = FusedLinear([attention.q_proj, attention.k_proj, attention.v_proj], dtype, keep_base)
        self.output = FusedLinear([attention.o_proj], dtype, keep_base)
        self.gate_up = FusedLinear([mlp.gate_proj, mlp.up_proj], dtype, keep_base)
        self.down = FusedLinear([mlp.down_proj], dtype, keep_base)
        self.linears = [self.qkv, self.output, self.gate_up, self.down]

    def __call__(
        self, number: int, hidden: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, product: Product
    ) -> Tensor:
        """Return hidden states [N, H] after this layer; see :class:`LeanModel`."""
        heads = product(self.qkv, rms_norm(hidden, self.input_norm)).view(len(hidden), -1, self.head_dim)
        queries, keys = self._positioned(heads[:, : self.heads + self.kv_heads], rotation)
        values = heads[:, self.heads + self.kv_heads :]
        outcome = product(self.output, attend(number, queries, keys, values).flatten(-2))
        if self.attention_outcome_norm is not None:
            outcome = rms_norm(outcome, self.attention_outcome_norm)
        hidden = hidden + outcome
        outcome = product(self.down, gated(product(self.gate_up, rms_norm(hidden, self.mlp_norm)), self.activation))
        if self.mlp_outcome_norm is not None:
            outcome = rms_norm(outcome, self.mlp_outcome_norm)
        return hidden + outcome

    def weights(self) -> Iterator[Tensor]:
        """Yield the frozen weights that are kept whether or not there is a backward pass."""
        of_states = (self.input_norm, self.attention_outcome_norm, self.mlp_norm, self.mlp_outcome_norm)
        norms = (*of_states, self.query_norm, self.key_norm)
        yield from (norm.weight for norm in norms if norm is not None)
        yield from (fused.base_weight() for fused in self.linears if fused.keeps_base)

    def _positioned(self, heads: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = heads[:, : self.heads], heads[:, self.heads :]
            heads = torch.cat((rms_norm(queries, self.query_norm), rms_norm(keys, self.key_norm)), -2)
        same, swapped = rotation
        heads = torch.addcmul(heads * same, heads.roll(self.head_dim // 2, -1), swapped)
        return heads[:, : self.heads], heads[:, self.heads :]


def _window(attention: Any, family: Family) -> int | None:
    """Return how many tokens the latest one sees, itself included; None for all."""
    window: int | None = getattr(attention.config if family.window_of_all else attention, "sliding_window", None)
    return window


def _norm(module: Any, family: Family, scale: float = 1.0) -> Norm:
    """Return a norm, and what it returns times ``scale``."""
    if family.offset_norms:
        return Norm((1.0 + module.weight.detach().float()) * scale, module.eps)
    return Norm(module.weight if scale == 1.0 else module.weight.detach() * scale, module.variance_epsilon)
