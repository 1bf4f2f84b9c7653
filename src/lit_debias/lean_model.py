"""A forward pass without module calls: fused products, norms in one kernel, attention as the caller likes.

Sampling runs it with base and LoRA in one weight over a cache that is allocated once; training and the reference with
the LoRA branch beside the base, over packed groups.

It knows the decoders of the Llama family that are built alike: RMS norms, rotary positions, grouped queries, a gated
MLP. Anything else takes Hugging Face's own forward pass; :func:`why_not_lean` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lit_debias.activation_memory import KeptBytes, free_memory
from lit_debias.fused_linear import FusedLinear
from lit_debias.grpo.attention import flex_group_attention, group_attention
from lit_debias.grpo.packing import PackedGroups

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
"""Takes the layer's number, queries [N, heads, D], keys and values [N, kv_heads, D]; returns like queries."""
Product = Callable[[FusedLinear, Tensor], Tensor]
"""``FusedLinear.merged`` or ``FusedLinear.adapted``."""


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
        self.stale = True
        self.group_attention = flex_group_attention if flex else group_attention
        self.dtype = dtype
        self.embedding: nn.Module = decoder.embed_tokens
        self.rotary: nn.Module = decoder.rotary_emb
        self.layers = [LeanLayer(layer, dtype, keep_base) for layer in decoder.layers]
        self.norm: Any = decoder.norm
        self.head = FusedLinear([model.get_output_embeddings()], dtype)

    def refreshed(self) -> LeanModel:
        """Return itself with the weights that sampling needs, merged anew where the adapter has changed."""
        if self.stale:
            for fused in [self.head, *(fused for layer in self.layers for fused in layer.linears)]:
                fused.refresh()
            self.stale = False
        return self

    @cached_property
    def compiled(self) -> Callable[[Tensor, tuple[Tensor, Tensor], Attend], Tensor]:
        """The same as calling it, compiled; what may change from call to call is the content of tensors."""
        return torch.compile(self.__call__)

    def rotation(self, positions: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return factors [N, 1, D] of a head and of the head with its halves swapped, for positions [N]."""
        cos, sin = self.rotary(torch.empty(0, dtype=dtype or self.dtype, device=positions.device), positions[None])
        half = sin.shape[-1] // 2
        return cos[0, :, None], torch.cat((-sin[..., :half], sin[..., half:]), -1)[0, :, None]

    def __call__(
        self, ids: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, wanted: Tensor | None = None
    ) -> Tensor:
        """Return the logits [N, V] after each of N tokens, with the weights that were merged last.

        Args:
            ids: [N] int64, of any sequences.
            rotation: What :meth:`rotation` says of their positions.
            attend: Attention over a cache, which knows the sequences.
            wanted: Tokens whose logits alone are returned, int64 indices.
        """
        hidden: Tensor = self.embedding(ids)
        for number, layer in enumerate(self.layers):
            hidden = layer(number, hidden, rotation, attend, FusedLinear.merged)
        return self.head.merged(rms_norm(hidden if wanted is None else hidden[wanted], self.norm))

    def predicting_states(self, packed: PackedGroups, recompute: bool | None = False) -> Tensor:
        """Return the last hidden states [N, H] that predict the completion tokens, differentiable in the LoRA weights.

        Args:
            packed: P groups.
            recompute: Keep each layer's input only, and compute the rest again in the backward pass. None does so from
                the second layer on if all of them would keep more than half of the free memory.
        """
        rotation = self.rotation(packed.positions)

        def attend(_: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return self.group_attention(queries, keys, values, packed)

        hidden: Tensor = self.embedding(packed.ids)
        for number, layer in enumerate(self.layers):
            arguments = (number, hidden, rotation, attend, FusedLinear.adapted)
            if recompute:
                hidden = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            elif recompute is None and torch.is_grad_enabled():
                kept = KeptBytes(there_anyway=(*rotation, *layer.weights()))
                with kept.counting():
                    hidden = layer(*arguments)
                recompute = kept.total * len(self.layers) > free_memory(hidden.device) // 2
            else:
                hidden = layer(*arguments)
        return rms_norm(packed.select(hidden), self.norm)


class LeanLayer:
    """One decoder layer; queries, keys and values are one product, gate and up another."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype, keep_base: bool) -> None:
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
        hidden = hidden + product(self.output, attend(number, queries, keys, values).flatten(-2))
        gate_up = product(self.gate_up, rms_norm(hidden, self.output_norm))
        return hidden + product(self.down, gated(gate_up, self.activation))

    def weights(self) -> Iterator[Tensor]:
        """Yield the frozen weights that are kept whether or not there is a backward pass."""
        norms = (self.input_norm, self.output_norm, self.query_norm, self.key_norm)
        yield from (norm.weight for norm in norms if norm is not None)
        yield from (fused.base_weight() for fused in self.linears if fused.keeps_base)

    def _positioned(self, heads: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.query_norm is not None:
            queries, keys = heads[:, : self.heads], heads[:, self.heads :]
            heads = torch.cat((rms_norm(queries, self.query_norm), rms_norm(keys, self.key_norm)), -2)
        same, swapped = rotation
        heads = torch.addcmul(heads * same, heads.roll(self.head_dim // 2, -1), swapped)
        return heads[:, : self.heads], heads[:, self.heads :]


class KeyValueCache:
    """Keys and values of N = P x G rows: the prompts' once for each group, the completions' with room for all columns.

    A group's queries meet the keys of their prompt in one product, so neither memory nor time is spent on G copies of
    it. On a CPU both are kept in fp32, where products of a few rows take half the time that they take in bf16.

    Args:
        model: Whose cache it is.
        prompt_mask: [P, S] bool, left-padded.
        group_size: G.
        new_tokens: Columns to come after the prompt.
        even: Attend to all columns, to those that are yet to come with a weight of 0, so that every token has the same
            shapes, as compiled code wants them.
    """

    def __init__(
        self, model: LeanModel, prompt_mask: Tensor, group_size: int, new_tokens: int, even: bool = False
    ) -> None:
        prompts, longest = prompt_mask.shape
        layer, device = model.layers[0], prompt_mask.device
        dtype = torch.float32 if device.type == "cpu" else model.dtype
        heads, width = (prompts, layer.kv_heads), layer.head_dim

        def for_each_layer(*shape: int) -> list[Tensor]:
            # A tensor each: malloc keeps small blocks for the next rollout, large ones come page by page every time.
            make = torch.zeros if even else torch.empty
            return [make(*heads, *shape, dtype=dtype, device=device) for _ in model.layers]

        # Keys lie column by column: products with them read them as they are.
        self.prompt_keys, self.prompt_values = for_each_layer(width, longest), for_each_layer(longest, width)
        self.own_keys = for_each_layer(group_size, width, new_tokens)
        self.own_values = for_each_layer(group_size, new_tokens, width)
        self.filled = -1  # the column of the newest token
        self._column = torch.tensor([-1], device=device) if even else None
        self._own_bias = torch.full((new_tokens,), -torch.inf, dtype=dtype, device=device) if even else None
        padded = not bool(prompt_mask.all())
        self._prompts_shape = prompt_mask.shape
        self._prompt_mask = _causal(prompt_mask) if padded else None
        self._real = prompt_mask.flatten().nonzero()[:, 0] if padded else None  # tokens among P x S
        self._bias = torch.zeros(*heads, 1, longest, dtype=dtype, device=device) if padded else None
        if self._bias is not None:
            self._bias.masked_fill_(~prompt_mask[:, None, None], -torch.inf)
        self._places = torch.arange(prompts * group_size, device=device)  # of each row among the P x G
        self._rows: Tensor | None = None  # the row in each of these places, once some are empty

    @property
    def bytes(self) -> int:
        """What all of it takes in memory."""
        parts = (self.prompt_keys, self.prompt_values, self.own_keys, self.own_values)
        return sum(tensor.nbytes for part in parts for tensor in part)

    def attend_prompt(self, number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend within the prompts, of which there are all tokens without padding, and keep their keys and values."""
        repeats = queries.shape[1] // keys.shape[1]
        queries, keys, values = (self._by_prompt(heads).transpose(1, 2) for heads in (queries, keys, values))
        self.prompt_keys[number].copy_(keys.transpose(2, 3))
        self.prompt_values[number].copy_(values)
        attended = scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(repeats, 1),
            values.repeat_interleave(repeats, 1),
            attn_mask=self._prompt_mask,
            is_causal=self._prompt_mask is None,
        )
        tokens = attended.transpose(1, 2).flatten(0, 1)
        return tokens if self._real is None else tokens[self._real]

    def _by_prompt(self, heads: Tensor) -> Tensor:
        """Return [P, S, heads, D] of the prompts' tokens [N, heads, D], zeros where there is padding."""
        if self._real is not None:
            padded = heads.new_zeros(self._prompts_shape.numel(), *heads.shape[1:])
            heads = padded.index_copy_(0, self._real, heads)
        return heads.view(*self._prompts_shape, *heads.shape[1:])

    def next_column(self) -> None:
        """Go on to the next token."""
        self.filled += 1
        if self._column is not None and self._own_bias is not None:
            self._column += 1
            self._own_bias[self.filled] = 0

    def attend_token(self, number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write one token of every row into the newest column and attend to the prompt and all columns up to it."""
        own_keys, own_values = self.own_keys[number], self.own_values[number]
        key, value, width = self._by_head(keys)[:, :, :, 0], self._by_head(values)[:, :, :, 0], queries.shape[-1]
        if self._column is None:
            own_keys[..., self.filled], own_values[..., self.filled, :] = key, value
            columns = self.filled + 1
        else:
            own_keys.index_copy_(-1, self._column, key[..., None].to(own_keys.dtype))
            own_values.index_copy_(-2, self._column, value[..., None, :].to(own_values.dtype))
            columns = own_keys.shape[-1]
        asked = self._by_head(queries).to(own_keys.dtype, memory_format=torch.contiguous_format) * width**-0.5
        of_group, of_row = asked.flatten(2, 3).flatten(0, 1), asked.flatten(0, 2)  # queries of one key, in two ways
        of_prompt = torch.bmm(of_group, self.prompt_keys[number].flatten(0, 1))  # [P x kv_heads, G x repeats, S]
        if self._bias is not None:
            of_prompt += self._bias.flatten(0, 1)
        of_own = torch.bmm(of_row, own_keys.flatten(0, 2)[..., :columns])  # [P x kv_heads x G, repeats, columns]
        if self._own_bias is not None:
            of_own += self._own_bias
        longest = of_prompt.shape[-1]
        scores = torch.cat((of_prompt.view(*of_own.shape[:2], longest), of_own), -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(own_keys.dtype)
        attended = torch.bmm(weights[..., longest:], own_values.flatten(0, 2)[:, :columns]).view(of_group.shape)
        of_prompt = weights.view(*of_group.shape[:2], -1)[..., :longest]
        attended.baddbmm_(of_prompt, self.prompt_values[number].flatten(0, 1))
        by_row = attended.view(asked.shape).transpose(1, 2).to(queries.dtype, memory_format=torch.contiguous_format)
        rows = by_row.reshape(-1, *queries.shape[1:])
        return rows if self._rows is None else rows[self._places]

    def _by_head(self, heads: Tensor) -> Tensor:
        """Return [P, kv_heads, G, heads / kv_heads, D] of rows [N, heads, D]; empty places hold any row."""
        prompts, kv_heads, members, width, _ = self.own_keys[0].shape
        in_places = heads if self._rows is None else heads[self._rows]
        return in_places.view(prompts, members, kv_heads, -1, width).transpose(1, 2)

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, in rising order; every group keeps as many places as the largest needs."""
        members = self.own_keys[0].shape[2]
        group, place = self._places[rows] // members, self._places[rows] % members
        groups, group, sizes = torch.unique(group, return_inverse=True, return_counts=True)
        number = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[group]  # within the group
        first = (sizes.cumsum(0) - sizes)[:, None].expand(-1, int(sizes.max())).clone()
        row_in = first.index_put((group, number), torch.arange(len(rows), device=rows.device))
        for of_prompts in (self.prompt_keys, self.prompt_values):
            of_prompts[:] = [of_layer[groups] for of_layer in of_prompts]
        for of_rows in (self.own_keys, self.own_values):
            of_rows[:] = [
                of_layer.transpose(1, 2)[groups[:, None], place[row_in]].transpose(1, 2).contiguous()
                for of_layer in of_rows
            ]
        self._bias = None if self._bias is None else self._bias[groups]
        self._places = group * row_in.shape[1] + number
        self._rows = None if row_in.numel() == len(rows) else row_in.flatten()


def _causal(prompt_mask: Tensor) -> Tensor:
    """Return [P, 1, S, S] bool; padding attends to itself, so that no row of a softmax is empty."""
    square = torch.ones(prompt_mask.shape[1], prompt_mask.shape[1], dtype=torch.bool, device=prompt_mask.device)
    diagonal = torch.eye(prompt_mask.shape[1], dtype=torch.bool, device=prompt_mask.device)
    return ((square.tril() & prompt_mask[:, None, :]) | diagonal)[:, None]


def rms_norm(values: Tensor, norm: Any) -> Tensor:
    """Return what the norm module returns, in one kernel where there is one."""
    if values.device.type == "cpu" and len(values) >= _MANY_ROWS and not torch.compiler.is_compiling():
        normed: Tensor = _RMSNorm.apply(values, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
        return normed
    return nn.functional.rms_norm(values, norm.weight.shape, norm.weight, norm.variance_epsilon)


_MANY_ROWS = 64


class _RMSNorm(torch.autograd.Function):
    """RMS norm [..., H] with a frozen weight [H]; on a CPU twice as fast as torch's, which has no kernel there."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = squares.mul_(1 / values.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(values, weight, scale)
        normed: Tensor = (wide * scale).to(values.dtype).mul_(weight)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        values, weight, scale = ctx.saved_tensors
        wide, slope = (tensor.to(scale.dtype) for tensor in (values, grad * weight))
        along = (slope * wide).sum(-1, keepdim=True)
        slope.addcmul_(wide, along * scale.square() * (-1 / values.shape[-1])).mul_(scale)
        return slope.to(values.dtype), None, None


def gated(gate_up: Tensor, activation: nn.Module) -> Tensor:
    """Return ``activation(gate) * up`` [N, I] of gate and up side by side [N, 2 I]."""
    if torch.is_grad_enabled() and is_silu(activation):
        product: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
        return product
    gate, up = gate_up.chunk(2, -1)
    return activation(gate) * up  # type: ignore[no-any-return]


def is_silu(activation: nn.Module) -> bool:
    """Return whether it is x * sigmoid(x), PyTorch's or Hugging Face's."""
    return type(activation).__name__ in {"SiLU", "SiLUActivation"}


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, which keeps neither factor and puts both gradients where they belong without a copy."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        both = torch.empty_like(gate_up)
        of_gate, of_up = both.chunk(2, -1)
        torch.mul(grad, nn.functional.silu(gate), out=of_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=of_gate)
        return both
