"""Attention over packed groups that computes only what their mask leaves: a dense mask wastes most of its square.

A packed row of a prompt of S and G completions of T tokens has (S + G T)^2 pairs, of which G T (S + T) + S^2 can be
seen: a fifth at S = T = 48 and G = 8.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_debias.grpo.packing import PackedGroups


def group_attention(
    queries: Tensor, keys: Tensor, values: Tensor, packed: PackedGroups, scale: float | None = None
) -> Tensor:
    """Return [P, L, heads, D]: attention under ``packed.attention_mask``, something else on padding.

    Two calls do it: prompts causally, and every completion over its prompt and itself. The price is a copy of the
    prompt's keys and values for each completion.

    Args:
        queries: [P, heads, L, D].
        keys: [P, kv_heads, L, D]; each serves heads / kv_heads queries.
        values: Like ``keys``.
        packed: P groups packed in rows of L tokens.
        scale: Multiplies the scores; None for 1 / sqrt(D).
    """
    dtype, repeats, longest = queries.dtype, queries.shape[1] // keys.shape[1], packed.longest_prompt
    with torch.autocast(queries.device.type, enabled=False):
        # fp32 although the rest is bf16: on CPUs the backward pass of short bf16 attention takes twice as long.
        queries, keys, values = queries.float(), keys.float(), values.float()
        prompts = scaled_dot_product_attention(
            queries[:, :, :longest],
            keys[:, :, :longest].repeat_interleave(repeats, 1),
            values[:, :, :longest].repeat_interleave(repeats, 1),
            is_causal=True,
            scale=scale,
        )
        completions = scaled_dot_product_attention(
            _completions(queries, packed).flatten(0, 1),
            _with_prompt(keys, packed, repeats),
            _with_prompt(values, packed, repeats),
            attn_mask=packed.completion_bias,
            scale=scale,
        )
    rest = packed.input_ids.shape[1] - longest
    attended = torch.nn.functional.pad(prompts.to(dtype), (0, 0, 0, rest)).transpose(1, 2)
    real = completions.transpose(1, 2).flatten(0, 1)[packed.completion_mask.flatten()]
    return attended.flatten(0, 1).index_copy(0, packed.positions, real.to(dtype)).view(attended.shape)


def _completions(heads: Tensor, packed: PackedGroups) -> Tensor:
    """Return [P, G, heads, T, D] of [P, heads, L, D]; where the mask is off, some token or other."""
    tokens = heads.transpose(1, 2).flatten(0, 1).index_select(0, packed.completion_positions)
    return tokens.view(*packed.completion_mask.shape, *tokens.shape[1:]).transpose(2, 3)


def _with_prompt(heads: Tensor, packed: PackedGroups, repeats: int) -> Tensor:
    """Return [P x G, kv_heads x repeats, S + T, D] of [P, kv_heads, L, D], copied once."""
    own = _completions(heads, packed)
    prompt = heads[:, None, :, : packed.longest_prompt].expand(-1, own.shape[1], -1, -1, -1)
    repeated = [part.unsqueeze(3).expand(-1, -1, -1, repeats, -1, -1) for part in (prompt, own)]
    return torch.cat(repeated, 4).flatten(2, 3).flatten(0, 1)
