"""Attention over packed groups that computes only what may be seen.

A prompt of S and G completions of T tokens have (S + G T)^2 pairs, of which G T (S + T) + S^2 can be seen: a fifth
at S = T = 48 and G = 8. The last token of a completion predicts nothing and is not among them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, unflatten
from torch.nn.functional import scaled_dot_product_attention

from lit_debias.packing.groups import PackedGroups


def group_attention(
    queries: Tensor, keys: Tensor, values: Tensor, packed: PackedGroups, window: int | None = None
) -> Tensor:
    """Return [M, heads, D]: every token attends to its prompt and to its own completion up to itself.

    Two calls do it: prompts causally, and every completion over its prompt and itself. The price is a copy of the
    prompt's keys and values for each completion.

    Args:
        queries: [M, heads, D].
        keys: [M, kv_heads, D]; each serves heads / kv_heads queries.
        values: Like ``keys``.
        packed: What the M tokens are.
        window: Tokens of its sequence that each one sees, itself included; None for all.
    """
    repeats, window = queries.shape[1] // keys.shape[1], packed.reached(window)
    prompt_keys, prompt_values = _prompts(keys, packed), _prompts(values, packed)
    prompts = _attention(
        _stacked(_prompts(queries, packed), repeats),
        prompt_keys.transpose(1, 2),
        prompt_values.transpose(1, 2),
        packed.prompt_bias(repeats, queries.dtype, window),
    )
    completions = _attention(
        _stacked(_completions(queries, packed), repeats),
        _with_prompt(prompt_keys, keys, packed),
        _with_prompt(prompt_values, values, packed),
        packed.completion_bias(repeats, queries.dtype, window),
    )
    of_prompts, of_completions = _unstacked(prompts, repeats), _unstacked(completions, repeats)
    if packed.prompt_places is not None:
        of_prompts = of_prompts.index_select(0, packed.real_prompt)
    if packed.completion_places is not None:
        of_completions = of_completions.index_select(0, packed.real_completion)
    return torch.cat((of_prompts, of_completions))


def flex_group_attention(
    queries: Tensor, keys: Tensor, values: Tensor, packed: PackedGroups, window: int | None = None
) -> Tensor:
    """Return what :func:`group_attention` returns, by FlexAttention (arXiv 2412.05496), for GPUs.

    One call over all tokens copies no prompt, and passes over the blocks of 128 x 128 that hold nothing to see.
    PyTorch compiles it, and has no backward pass of it on a CPU.
    """
    of_heads = (heads.transpose(0, 1)[None] for heads in (queries, keys, values))
    mask = packed.block_mask(packed.reached(window))
    attended: Tensor = _flex_attention()(*of_heads, block_mask=mask, enable_gqa=True)
    return attended[0].transpose(0, 1)


@cache
def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Return [B, heads, L, D] of queries [B, heads, L, D], keys and values [B, heads, K, D], and a bias of scores."""
    scores = len(queries) * queries.shape[1] * queries.shape[2] * keys.shape[2]
    if queries.device.type != "cpu" or scores > LARGEST_SCORES:
        return scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    products = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2)).float() + bias
    return torch.matmul(products.softmax(-1).to(values.dtype), values)


LARGEST_SCORES = 2**22
"""Up to so many scores plain products take a third of the time of torch's fused attention on a CPU."""


def _stacked(heads: Tensor, repeats: int) -> Tensor:
    """Return [B, heads / repeats, repeats x L, D] of [B, L, heads, D]: queries of one key are rows of one product."""
    return unflatten(heads, 2, (-1, repeats)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _unstacked(heads: Tensor, repeats: int) -> Tensor:
    """Return [B x L, heads, D] of what :func:`_stacked` returned."""
    return unflatten(heads, 2, (repeats, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


def _prompts(heads: Tensor, packed: PackedGroups) -> Tensor:
    """Return [P, S, heads, D] of [M, heads, D]; padding holds some token or other."""
    places = packed.prompt_places
    # A view would keep the heads of all tokens until the backward pass.
    tokens = heads[: packed.prompt_tokens].clone() if places is None else heads.index_select(0, places)
    return tokens.view(*packed.prompt_mask.shape, *tokens.shape[1:])


def _completions(heads: Tensor, packed: PackedGroups) -> Tensor:
    """Return [P x G, T - 1, heads, D] of [M, heads, D]; padding holds some token or other."""
    places = packed.completion_places
    tokens = heads[packed.prompt_tokens :] if places is None else heads.index_select(0, places)
    return unflatten(tokens, 0, packed.input_mask.flatten(0, 1).shape)


def _with_prompt(prompts: Tensor, heads: Tensor, packed: PackedGroups) -> Tensor:
    """Return [P x G, heads, S + T - 1, D]: each completion behind a copy of its prompt, [P, S, heads, D]."""
    copies = prompts[:, None].expand(-1, packed.input_mask.shape[1], -1, -1, -1).flatten(0, 1)
    return torch.cat((copies, _completions(heads, packed)), 1).transpose(1, 2)
