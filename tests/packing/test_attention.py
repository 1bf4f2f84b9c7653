"""Attention over packed groups in two calls: values and gradients of the dense mask."""

import pytest
import torch
from support import dense_flex
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from lit_debias.packing import attention
from lit_debias.packing.attention import group_attention
from lit_debias.packing.groups import PackedGroups, pack


def packed(prompt_lengths: list[int], lengths: list[list[int]]) -> PackedGroups:
    prompts, completions = torch.tensor(prompt_lengths), torch.tensor(lengths)
    prompt_mask = torch.arange(int(prompts.max())).flip(0) < prompts[:, None]  # left padding
    mask = torch.arange(int(completions.max())) < completions[..., None]
    return pack(torch.ones_like(prompt_mask, dtype=torch.long), prompt_mask, mask.long(), mask)


@pytest.mark.parametrize(
    "groups",
    [
        packed([3, 3], [[4, 4], [4, 4]]),
        packed([3, 3], [[4, 2], [4, 4]]),
        packed([2, 3], [[4, 4], [4, 4]]),
        packed([1, 6], [[5, 2, 1], [1, 0, 3]]),  # ragged, with an empty completion
        packed([7], [[2, 1]]),
        packed([2, 9], [[1, 1], [1, 2]]),  # a whole group is shorter than the other's prompt
        packed([2, 3], [[1, 1], [1, 1]]),  # prompts are all that is needed
        packed([90, 150], [[140, 30], [1, 200]]),  # several of FlexAttention's blocks
    ],
    ids=["even", "even prompts", "even completions", "ragged", "one group", "long prompt", "one token each", "long"],
)
@pytest.mark.parametrize("form", ["fused", "plain products", "flex"])
def test_values_and_gradients_are_those_of_the_dense_mask(groups, form, monkeypatch):
    monkeypatch.setattr(attention, "LARGEST_SCORES", 0 if form == "fused" else 2**22)
    group_attention = dense_flex(monkeypatch) if form == "flex" else attention.group_attention
    rows = groups.rows()
    tensors = [torch.randn(len(groups.ids), heads, 8, requires_grad=True) for heads in (4, 2, 2)]

    def row(heads: torch.Tensor) -> torch.Tensor:
        zeros = heads.new_zeros(rows.input_ids.numel(), *heads.shape[1:])
        return zeros.index_copy(0, rows.places, heads).view(*rows.input_ids.shape, *heads.shape[1:]).transpose(1, 2)

    query, key, value = map(row, tensors)
    dense = scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=rows.attention_mask
    )
    expected = rows.tokens(dense.transpose(1, 2))
    weights = torch.randn(expected.shape)
    found = group_attention(*tensors, groups)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), tensors),
        torch.autograd.grad((expected * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("largest", [0, 2**22], ids=["fused", "plain products"])
def test_bf16_is_fp32_but_for_rounding_in_either_form(largest, monkeypatch):
    monkeypatch.setattr(attention, "LARGEST_SCORES", largest)
    groups = packed([3, 2], [[2, 1], [4, 4]])
    tensors = [torch.randn(len(groups.ids), heads, 8) for heads in (4, 2, 2)]
    found = group_attention(*(tensor.bfloat16() for tensor in tensors), groups)
    assert found.dtype == torch.bfloat16
    exact = group_attention(*(tensor.bfloat16().float() for tensor in tensors), groups)
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 20])
@torch.no_grad()
def test_flex_attention_itself_over_several_blocks(window, monkeypatch):
    monkeypatch.setattr(attention, "_flex_attention", lambda: flex_attention.flex_attention)
    groups = packed([90, 150], [[140, 30], [1, 200]])
    tensors = [torch.randn(len(groups.ids), heads, 16) for heads in (4, 2, 2)]
    assert groups.block_mask().sparsity() > 30  # per cent of the blocks are passed over
    found = attention.flex_group_attention(*tensors, groups, window)
    torch.testing.assert_close(found, group_attention(*tensors, groups, window))
