"""A forward pass for sampling alone: merged and fused weights, a cache allocated once, no module calls.

It knows the decoders of the Llama family that are built alike: RMS norms, rotary positions, grouped queries, a gated
MLP. Anything else samples with Hugging Face's own forward pass; :func:`why_not_lean` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lit_debias.inference_copy import FusedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KNOWN_MODELS = {
    "transformers.models.llama.modeling_llama.LlamaForCausalLM",
    "transformers.models.mistral.modeling_mistral.MistralForCausalLM",
    "transformers.models.qwen2.modeling_qwen2.Qwen2ForCausalLM",
    "transformers.models.qwen3.modeling_qwen3.Qwen3ForCausalLM",
}
FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # others choose frequencies by the length of the text

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Takes the layer's number, queries [N, L, heads, D], keys and values [N, L, kv_heads, D]; returns like queries."""


def why_not_lean(model: PreTrainedModel) -> str | None:
    """Return what keeps a model from the lean forward pass, or None."""
    kind, config = type(model), model.config
    if f"{kind.__module__}.{kind.__qualname__}" not in KNOWN_MODELS:
        return f"it has no lean form of {kind.__name__}"
    rotation = config.rope_parameters["rope_type"]
    if rotation not in FIXED_ROTATIONS:
        return f"it does not know rotary positions of the type '{rotation}'"
    if getattr(config, "sliding_window", None) is not None:
        return "it has no sliding window"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    return None


class LeanModel:
    """The policy's decoder with base and LoRA in one weight, see :func:`why_not_lean` for which.

    Norms, embedding and rotary frequencies are the model's own; the linear layers are copies.

    Args:
        model: Hugging Face model, with or without PEFT's LoRA layers inside.
        dtype: Type of the weights and of the computation.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        decoder: Any = model.model
        self.stale = True
        self.dtype = dtype
        self.embedding: nn.Module = decoder.embed_tokens
        self.rotary: nn.Module = decoder.rotary_emb
        self.layers = [LeanLayer(layer, dtype) for layer in decoder.layers]
        self.norm: nn.Module = decoder.norm
        self.head = FusedLinear([model.get_output_embeddings()], dtype)

    def refreshed(self) -> LeanModel:
        """Return itself, merged anew where the adapter has changed."""
        if self.stale:
            for linear in [self.head, *(linear for layer in self.layers for linear in layer.linears)]:
                linear.refresh()
            self.stale = False
        return self

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors [N, L, 1, D] of a head and of the head with its halves swapped, for positions [N, L]."""
        cos, sin = self.rotary(torch.empty(0, dtype=self.dtype, device=positions.device), positions)
        half = sin.shape[-1] // 2
        return cos[:, :, None], torch.cat((-sin[..., :half], sin[..., half:]), -1)[:, :, None]

    def __call__(self, ids: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Return the logits [N, V] after the last of ids [N, L].

        Args:
            ids: [N, L] int64.
            rotation: What :meth:`rotation` says of their positions.
            attend: Attention over a cache.
        """
        hidden: Tensor = self.embedding(ids)
        for number, layer in enumerate(self.layers):
            hidden = layer(number, hidden, rotation, attend)
        return self.head(rms_norm(hidden[:, -1], self.norm))


class LeanLayer:
    """One decoder layer; queries, keys and values are one product, gate and up another."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self.head_dim: int = attention.head_dim
        self.kv_heads: int = attention.config.num_key_value_heads
        self.heads: int = attention.config.num_attention_heads
        self.input_norm: Any = layer.input_layernorm
        self.output_norm: Any = layer.post_attention_layernorm
        self.query_norm: Any = getattr(attention, "q_norm", None)  # Qwen3 has them
        self.key_norm: Any = getattr(attention, "k_norm", None)
        self.activation: nn.Module = mlp.act_fn
        self.qkv = FusedLinear([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.output = FusedLinear([attention.o_proj], dtype)
        self.gate_up = FusedLinear([mlp.gate_proj, mlp.up_proj], dtype)
        self.down = FusedLinear([mlp.down_proj], dtype)
        self.linears = [self.qkv, self.output, self.gate_up, self.down]

    def __call__(self, number: int, hidden: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Return hidden states [N, L, H] after this layer; see :meth:`LeanModel.__call__`."""
        heads = self.qkv(rms_norm(hidden, self.input_norm)).view(*hidden.shape[:2], -1, self.head_dim)
        queries, keys = self._positioned(heads[:, :, : self.heads + self.kv_heads], rotation)
        values = heads[:, :, self.heads + self.kv_heads :]
        hidden = hidden + self.output(attend(number, queries, keys, values).flatten(2))
        gate, up = self.gate_up(rms_norm(hidden, self.output_norm)).chunk(2, -1)
        return hidden + self.down(self.activation(gate) * up)

    def _positioned(self, heads: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.query_norm is not None:
            queries, keys = heads[:, :, : self.heads], heads[:, :, self.heads :]
            heads = torch.cat((rms_norm(queries, self.query_norm), rms_norm(keys, self.key_norm)), 2)
        same, swapped = rotation
        heads = torch.addcmul(heads * same, heads.roll(self.head_dim // 2, -1), swapped)
        return heads[:, :, : self.heads], heads[:, :, self.heads :]


class KeyValueCache:
    """Keys and values of N = P x G rows, room for all columns from the start; the prompt's are computed once.

    Args:
        model: Whose cache it is.
        prompt_mask: [P, S] bool, left-padded.
        group_size: G.
        new_tokens: Columns to come after the prompt.
    """

    def __init__(self, model: LeanModel, prompt_mask: Tensor, group_size: int, new_tokens: int) -> None:
        prompts, self.filled = prompt_mask.shape
        layer = model.layers[0]
        shape = (len(model.layers), prompts * group_size, layer.kv_heads, self.filled + new_tokens, layer.head_dim)
        self.keys = torch.empty(shape, dtype=model.dtype, device=prompt_mask.device)
        self.values = torch.empty_like(self.keys)
        self.group_size = group_size
        padded = not bool(prompt_mask.all())
        self._prompt_mask = _causal(prompt_mask) if padded else None
        self._bias = self._padding_bias(prompt_mask) if padded else None

    def _padding_bias(self, prompt_mask: Tensor) -> Tensor:
        """Return [N, 1, 1, columns]: minus infinity on padding, 0 elsewhere."""
        bias = self.keys.new_zeros(self.keys.shape[1], 1, 1, self.keys.shape[3])
        hidden = ~prompt_mask.repeat_interleave(self.group_size, 0)
        bias[:, 0, 0, : self.filled].masked_fill_(hidden, -torch.inf)
        return bias

    def attend_prompt(self, number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend within the prompts, P rows, and keep their keys and values for G rows each."""
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        for cache, new in ((self.keys, keys), (self.values, values)):
            groups = cache[number].view(-1, self.group_size, *cache.shape[2:])
            groups[:, :, :, : self.filled] = new[:, None]
        repeats = queries.shape[2] // keys.shape[1]
        attended = scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys.repeat_interleave(repeats, 1),
            values.repeat_interleave(repeats, 1),
            attn_mask=self._prompt_mask,
            is_causal=self._prompt_mask is None,
        )
        return attended.transpose(1, 2)

    def attend_token(self, number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write one token of every row into the next column and attend to all columns up to it."""
        columns = self.filled + 1
        self.keys[number, :, :, self.filled] = keys[:, 0]
        self.values[number, :, :, self.filled] = values[:, 0]
        attended = scaled_dot_product_attention(
            # The queries that share a key are rows of one product; all of them see the same columns.
            queries.reshape(len(queries), keys.shape[2], -1, keys.shape[3]),
            self.keys[number, :, :, :columns],
            self.values[number, :, :, :columns],
            attn_mask=None if self._bias is None else self._bias[..., :columns],
        )
        return attended.view(queries.shape)

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self._bias = None if self._bias is None else self._bias[rows]


def _causal(prompt_mask: Tensor) -> Tensor:
    """Return [P, 1, S, S] bool; padding attends to itself, so that no row of a softmax is empty."""
    square = torch.ones(prompt_mask.shape[1], prompt_mask.shape[1], dtype=torch.bool, device=prompt_mask.device)
    diagonal = torch.eye(prompt_mask.shape[1], dtype=torch.bool, device=prompt_mask.device)
    return ((square.tril() & prompt_mask[:, None, :]) | diagonal)[:, None]


def rms_norm(values: Tensor, norm: Any) -> Tensor:
    """Return what the norm module returns, in one kernel."""
    return nn.functional.rms_norm(values, norm.weight.shape, norm.weight, norm.variance_epsilon)
