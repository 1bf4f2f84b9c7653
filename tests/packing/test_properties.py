"""What holds for groups of any lengths: every token once, in its place, seeing its own sequence alone."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_groups import alone, tiny
from torch import Tensor, nn

from lit_debias.packing.groups import pack, token_budget
from lit_debias.packing.logprobs import selected_logprobs


@st.composite
def groups(draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prompt ids and mask [P, S], completion ids and mask [P, G, T]; padding of prompts on either side."""
    count, size, longest, members, tokens = (draw(st.integers(1, most)) for most in (4, 5, 5, 4, 5))
    lengths = torch.tensor(draw(st.lists(st.integers(1, longest), min_size=count, max_size=count)))
    left = draw(st.booleans())
    place = torch.arange(longest)
    prompt_mask = place >= longest - lengths[:, None] if left else place < lengths[:, None]
    shape = (count, members)
    drawn = draw(st.lists(st.integers(0, tokens), min_size=count * members, max_size=count * members))
    completion_mask = torch.arange(tokens) < torch.tensor(drawn).view(shape)[..., None]
    generator = torch.Generator().manual_seed(size)
    ids = [torch.randint(37, mask.shape, generator=generator) for mask in (prompt_mask, completion_mask)]
    return ids[0], prompt_mask, ids[1], completion_mask


def sequences(prompt_ids: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """Return each prompt with its completions, without padding."""
    prompts = [row[real] for row, real in zip(prompt_ids, prompt_mask, strict=True)]
    completions = [[row[real] for row, real in zip(*group, strict=True)] for group in zip(ids, mask, strict=True)]
    return list(zip(prompts, completions, strict=True))


@given(groups())
def test_every_token_that_predicts_is_there_once_and_in_order(given_groups):
    packed = pack(*given_groups)
    prompts = [prompt for prompt, _ in sequences(*given_groups)]
    completions = [(len(prompt), one[:-1]) for prompt, several in sequences(*given_groups) for one in several]
    assert packed.ids.tolist() == torch.cat([*prompts, *(one for _, one in completions)]).tolist()
    places = [torch.arange(len(prompt)) for prompt in prompts] + [n + torch.arange(len(one)) for n, one in completions]
    assert packed.positions.tolist() == torch.cat(places).tolist()
    assert packed.targets.equal(given_groups[2][given_groups[3]])
    assert packed.unpack(packed.targets).equal(given_groups[2] * given_groups[3])


@given(groups())
def test_what_predicts_a_token_is_the_token_before_it(given_groups):
    packed = pack(*given_groups)
    pairs = [(prompt, one) for prompt, several in sequences(*given_groups) for one in several]
    before = torch.cat([torch.cat([prompt, one])[len(prompt) - 1 : -1] for prompt, one in pairs])
    assert packed.ids[packed.predictors].equal(before)
    token = given_groups[3].nonzero(as_tuple=True)
    lengths = given_groups[1].sum(1)
    assert packed.positions[packed.predictors].equal(lengths[token[0]] + token[2] - 1)


@given(groups())
def test_a_token_attends_to_its_own_sequence_up_to_itself(given_groups):
    rows = pack(*given_groups).rows()
    for row, (prompt, completions) in enumerate(sequences(*given_groups)):
        ids, attends = rows.input_ids[row], rows.attention_mask[row, 0]
        at = len(prompt)
        assert ids[:at].equal(prompt)
        for completion in completions:
            for token in range(len(completion) - 1):
                seen = ids[attends[at + token]]
                assert seen.equal(torch.cat([prompt, completion[: token + 1]]))
            at += max(0, len(completion) - 1)
        for token in range(len(prompt)):
            assert ids[attends[token]].equal(prompt[: token + 1])
        assert attends[at:].sum() == len(ids) - at  # padding sees itself


@given(groups(), st.integers(1, 60))
def test_parts_are_within_the_budget_and_as_large_as_it_allows(given_groups, budget):
    _, prompt_mask, _, mask = given_groups
    sizes = [int(p.sum() + c[:, 1:].sum()) for p, c in zip(prompt_mask, mask, strict=True)]
    parts = token_budget(prompt_mask, mask, budget)
    assert [group for part in parts for group in range(part.start, part.stop)] == list(range(len(sizes)))
    for part in parts:
        assert part.stop - part.start == 1 or sum(sizes[part]) <= budget
    for part in parts[:-1]:
        assert sum(sizes[part]) + sizes[part.stop] > budget


@cache
def frozen() -> nn.Module:
    torch.manual_seed(0)
    return tiny("llama", "sdpa").requires_grad_(False)


@given(groups())
@settings(max_examples=8)
def test_log_probs_are_those_of_every_sequence_alone(given_groups):
    model = frozen()
    packed = pack(*given_groups)
    rows = packed.rows()
    hidden = model.model(rows.input_ids, attention_mask=rows.attention_mask, position_ids=rows.position_ids)[0]
    states = packed.select(rows.tokens(hidden))
    found = selected_logprobs(states, model.lm_head.weight, packed.targets, columns=8).logprobs
    pairs = [(prompt, one) for prompt, several in sequences(*given_groups) for one in several if len(one)]
    expected = [alone(model, prompt, one) for prompt, one in pairs]
    torch.testing.assert_close(found, torch.cat([found[:0], *expected]), atol=1e-5, rtol=1e-5)
