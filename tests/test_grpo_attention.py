"""Attention over packed groups in two calls: values and gradients of the dense mask."""

import pytest
import torch
from support import loaded
from torch.nn.functional import scaled_dot_product_attention

from lit_debias.grpo.attention import group_attention
from lit_debias.grpo.packing import PackedGroups, pack
from lit_debias.packed_attention import GROUPED
from lit_debias.policy import tokens_of
from lit_debias.types import PromptBatch


def packed(prompt_lengths: list[int], lengths: list[list[int]]) -> PackedGroups:
    prompts, completions = torch.tensor(prompt_lengths), torch.tensor(lengths)
    prompt_mask = torch.arange(int(prompts.max())).flip(0) < prompts[:, None]  # left padding
    mask = torch.arange(int(completions.max())) < completions[..., None]
    return pack(torch.ones_like(prompt_mask, dtype=torch.long), prompt_mask, mask.long(), mask)


@pytest.mark.parametrize(
    "groups",
    [
        packed([3, 3], [[4, 4], [4, 4]]),
        packed([1, 6], [[5, 2, 1], [1, 0, 3]]),  # ragged, with an empty completion
        packed([7], [[2, 1]]),
        packed([2, 9], [[1, 1], [1, 2]]),  # a whole row is shorter than the other's prompt
    ],
    ids=["even", "ragged", "one row", "long prompt"],
)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients_are_those_of_the_dense_mask(groups, scale):
    rows, length = groups.input_ids.shape
    tensors = [torch.randn(rows, heads, length, 8, requires_grad=True) for heads in (4, 2, 2)]
    query, key, value = tensors
    dense = scaled_dot_product_attention(
        query,
        key.repeat_interleave(2, 1),
        value.repeat_interleave(2, 1),
        attn_mask=groups.attention_mask,
        scale=scale,
    ).transpose(1, 2)
    real = torch.zeros(rows * length, dtype=torch.bool).index_fill(0, groups.positions, True).view(rows, length)
    real |= torch.arange(length) < groups.prompt_lengths[:, None]
    weights = torch.randn(dense.shape) * real[..., None, None]
    found = group_attention(query, key, value, groups, scale)
    torch.testing.assert_close(found[real], dense[real])
    assert found.isfinite().all()
    for mine, expected in zip(
        torch.autograd.grad((found * weights).sum(), tensors),
        torch.autograd.grad((dense * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


def test_bf16_comes_back_as_bf16_under_autocast():
    groups = packed([3], [[2, 1]])
    query, key, value = (torch.randn(1, 2, 6, 8).bfloat16() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = group_attention(query, key, value, groups)
    assert found.dtype == torch.bfloat16
    exact = group_attention(query.float(), key.float(), value.float(), groups)
    assert torch.equal(found, exact.bfloat16())


def test_the_policy_attends_by_groups_and_gets_the_gradients_of_sdpa(tiny_model):
    rollout_of = PromptBatch(["people from the north are", "the rider was late"])
    gradients = []
    for checkpointing in (False, True):
        for attention in (GROUPED, "sdpa"):
            torch.manual_seed(3)
            policy = loaded(tiny_model, gradient_checkpointing=checkpointing)
            assert policy.causal_lm.config._attn_implementation == GROUPED
            policy.causal_lm.set_attn_implementation(attention)
            rollout = policy.encode(rollout_of, [["kind because", "late"], ["each person", "judged on evidence"]])
            policy(pack(*tokens_of(rollout))).logprobs.sum().backward()
            gradients.append([p.grad for p in policy.trainable_parameters().values()])
    for others in gradients[1:]:
        for first, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-5)
