from __future__ import annotations

import pytest
import torch
from packed_groups import alone, tiny

from lit_debias.packing.groups import PackedGroups, additive, pack, token_budget
from lit_debias.packing.logprobs import selected_logprobs


def by_hand() -> PackedGroups:
    prompt_ids = torch.tensor([[0, 11, 12], [21, 22, 23]])
    prompt_mask = torch.tensor([[0, 1, 1], [1, 1, 1]]).bool()
    completion_ids = torch.tensor([[[13, 14, 0], [15, 0, 0]], [[24, 25, 26], [0, 0, 0]]])
    completion_mask = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]]).bool()
    return pack(prompt_ids, prompt_mask, completion_ids, completion_mask)


def test_layout_by_hand() -> None:
    packed = by_hand()
    assert packed.ids.tolist() == [11, 12, 21, 22, 23, 13, 24, 25]  # without 14, 15 and 26, which nothing follows
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, 2, 3, 4]
    assert packed.predictors.tolist() == [1, 5, 1, 4, 6, 7]
    assert packed.targets.tolist() == [13, 14, 15, 24, 25, 26]
    assert packed.prompt_tokens == 5


def test_rows_by_hand() -> None:
    rows = by_hand().rows()
    assert rows.input_ids.tolist() == [[11, 12, 13, 11, 11], [21, 22, 23, 24, 25]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert rows.tokens(rows.input_ids[..., None])[:, 0].equal(by_hand().ids)


def test_groups_share_a_pass_up_to_a_budget() -> None:
    prompts = torch.tensor([[0, 1], [1, 1], [0, 1], [1, 1]]).bool()
    completions = torch.tensor([[[3, 2], [3, 1]], [[3, 3], [3, 2]], [[0, 0], [0, 0]], [[1, 1], [0, 0]]])
    completions = torch.arange(3) < completions.flatten(1)[..., None]  # [P, G, T] of lengths
    sizes = {1: [1, 1, 1, 1], 9: [1, 1, 2], 10: [1, 2, 1], 12: [1, 3], 99: [4]}  # of groups with 6, 9, 1, 2 tokens
    for budget, expected in sizes.items():
        parts = token_budget(prompts, completions, budget)
        assert [part.stop - part.start for part in parts] == expected
        assert [i for part in parts for i in range(part.start, part.stop)] == [0, 1, 2, 3]


def test_attention_by_hand() -> None:
    lengths = torch.tensor([[[3, 2]], [[4, 0]]])[:, 0]
    prompt = torch.ones(2, 2, dtype=torch.long)
    mask = torch.arange(4) < lengths[..., None]
    mask = pack(prompt, prompt.bool(), mask.long(), mask).rows().attention_mask
    assert mask.shape == (2, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second completion sees the prompt, not the first completion
    ]
    assert mask[1, 0].equal(torch.ones(5, 5).tril().bool())
    padded = by_hand().rows().attention_mask[0, 0]
    assert padded[3:].int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


def test_attention_bias_is_the_additive_form() -> None:
    rows = by_hand().rows()
    bias = additive(rows.attention_mask, torch.float32)
    assert bias[rows.attention_mask].eq(0).all()
    assert bias[~rows.attention_mask].eq(torch.finfo(torch.float32).min).all()


def test_unpack_puts_values_back_and_gradients_through() -> None:
    packed = by_hand()
    values = torch.arange(1.0, 7.0, requires_grad=True)
    found = packed.unpack(values)
    assert found.tolist() == [[[1, 2, 0], [3, 0, 0]], [[4, 5, 6], [0, 0, 0]]]
    (found * 2).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [2.0] * 6


def test_nothing_counts() -> None:
    prompt = torch.ones(1, 2, dtype=torch.int64)
    packed = pack(prompt, prompt.bool(), torch.ones(1, 2, 3).long(), torch.zeros(1, 2, 3).bool())
    assert packed.ids.shape == (2,)
    assert packed.rows().input_ids.shape == (1, 2)
    assert packed.unpack(torch.zeros(0)).eq(0).all()


def test_an_empty_prompt_is_refused() -> None:
    ids = torch.ones(2, 1, dtype=torch.int64)
    completions = torch.ones(2, 1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        pack(ids, torch.tensor([[True], [False]]), completions, completions.bool())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_packed_equals_every_sequence_alone(family: str, attention: str) -> None:
    model = tiny(family, attention)
    prompt_ids, completion_ids = torch.randint(37, (3, 6)), torch.randint(37, (3, 4, 5))
    prompt_lengths = torch.tensor([2, 6, 4])
    lengths = torch.tensor([[5, 3, 1, 2], [1, 5, 5, 4], [2, 0, 5, 3]])
    prompt_mask = torch.arange(6) >= 6 - prompt_lengths[:, None]
    completion_mask = torch.arange(5) < lengths[..., None]
    weights = torch.randn(3, 4, 5, dtype=torch.float64)

    total = torch.zeros((), dtype=torch.float64)
    expected = torch.zeros(3, 4, 5, dtype=torch.float64)
    for p in range(3):
        for g in range(4):
            size = int(lengths[p, g])
            if size:
                one = alone(model, prompt_ids[p][prompt_mask[p]], completion_ids[p, g, :size])
                expected[p, g, :size] = one.detach()
                total = total + (one * weights[p, g, :size]).sum()
    body = list(model.model.parameters())
    expected_gradients = torch.autograd.grad(total, body)

    packed = pack(prompt_ids, prompt_mask, completion_ids, completion_mask)
    rows = packed.rows()
    mask = rows.attention_mask if attention == "sdpa" else additive(rows.attention_mask, torch.float64)
    hidden = rows.tokens(model.model(rows.input_ids, attention_mask=mask, position_ids=rows.position_ids)[0])
    head = model.lm_head.weight.detach()
    found = packed.unpack(selected_logprobs(packed.select(hidden), head, packed.targets, columns=8).logprobs)
    gradients = torch.autograd.grad((found * weights).sum(), body)

    # norms and rotary angles are float32 inside, whatever the model's dtype
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-5, rtol=1e-4)
