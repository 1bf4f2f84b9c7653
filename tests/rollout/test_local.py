"""Sampling: distributions, end of sequence, dropped rows, seeds."""

import pytest
import torch
from support import loaded, perturb

from lit_debias.errors import UserError
from lit_debias.rollout.decoders import HuggingFaceDecoder
from lit_debias.rollout.local import Decoding, LocalEngine
from lit_debias.rollout.sampling import Choice, Sampler, inverse_cdf
from lit_debias.types import PromptBatch

PROMPTS = PromptBatch(["people from the north are", "the rider", "each person should be judged on their own work"])


@pytest.fixture(scope="module")
def policy(tiny_model):
    torch.manual_seed(1)
    policy = loaded(tiny_model)
    perturb(policy)
    return policy


def test_inverse_cdf_by_hand():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]]).expand(5, -1)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 0.76, 0.99999])
    assert inverse_cdf(probabilities, uniforms).tolist() == [1, 1, 3, 4, 4]


@pytest.mark.parametrize("size", [255, 256, 1000])  # of less than a block, of one, of several and a part
def test_inverse_cdf_of_many_tokens_is_a_search_in_one_cumulated_sum(size):
    torch.manual_seed(0)
    weights = torch.rand(300, size, dtype=torch.float64) * (torch.rand(300, size) < 0.02)
    weights[:, size // 2] = 1.0
    uniforms = torch.rand(300, dtype=torch.float64)
    cumulated = weights.cumsum(-1)
    expected = [
        next(token for token, sum_ in enumerate(row) if sum_ > uniform * row[-1])
        for row, uniform in zip(cumulated.tolist(), uniforms.tolist(), strict=True)
    ]
    assert inverse_cdf(weights, uniforms).tolist() == expected


def test_inverse_cdf_takes_no_impossible_token_where_rounding_oversteps_a_block():
    weights = torch.zeros(1, 512)
    weights[0, 0], weights[0, 257] = 2**24 - 1, 4.0  # whose float32 sum is 2**24 + 4, one too many
    uniform = torch.tensor([(2**24 - 1) / (2**24 + 4)])
    assert uniform * (2**24 + 4) == 2**24 - 1  # where the first block ends
    assert inverse_cdf(weights, uniform).tolist() == [257]


@pytest.mark.parametrize("size", [3, 700])
def test_inverse_cdf_takes_no_impossible_token_at_either_end(size):
    torch.manual_seed(0)
    weights = torch.zeros(2000, size)
    weights[:, 1:-1] = torch.rand(2000, size - 2) + 0.1
    for uniform, token in ((0.0, 1), (1 - 2**-24, size - 2), (1.0, size - 2)):
        assert set(inverse_cdf(weights, torch.full((2000,), uniform)).tolist()) == {token}


def test_inverse_cdf_never_takes_an_impossible_token_at_the_end():
    assert inverse_cdf(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([1.0])).tolist() == [1]


def test_sampling_follows_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0])
    uniforms = (torch.arange(6000) + 0.5) / 6000
    tokens, logprobs, kept = Sampler(temperature=2.0)(logits.expand(6000, -1), uniforms)
    assert kept is None
    expected = (logits / 2).softmax(-1)
    torch.testing.assert_close(tokens.bincount(minlength=3) / 6000, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_top_k_and_top_p_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert Sampler(top_k=2).filtered(logits).isfinite().tolist() == [[True, True, False, False]]
    assert Sampler(top_p=0.5).filtered(logits).isfinite().tolist() == [[True, False, False, False]]
    assert Sampler(top_p=0.6).filtered(logits).isfinite().tolist() == [[True, True, False, False]]
    assert Sampler(top_k=4).filtered(logits) is logits
    _, logprob, kept = Sampler(top_k=2)(logits, torch.tensor([0.0]))
    assert kept.tolist() == [[True, True, False, False]]
    assert logprob.item() == pytest.approx(torch.tensor(0.5 / 0.8).log().item())  # renormalised


def test_min_p_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert Sampler(min_p=0.25).filtered(logits).isfinite().tolist() == [[True, True, True, False]]  # 0.15 / 0.5 = 0.3
    assert Sampler(min_p=0.5).filtered(logits).isfinite().tolist() == [[True, True, False, False]]
    assert Sampler(min_p=0.99).filtered(logits).isfinite().tolist() == [[True, False, False, False]]


def test_tokens_as_probable_as_the_last_one_stay():
    logits = torch.tensor([[0.1, 0.4, 0.1, 0.3, 0.1]]).log()
    assert Sampler(top_k=3).filtered(logits).isfinite().all()
    assert Sampler(top_k=2).filtered(logits).isfinite().tolist() == [[False, True, False, True, False]]
    assert Sampler(min_p=0.5).filtered(torch.zeros(1, 4)).isfinite().all()
    assert int(Sampler(top_p=0.5).filtered(torch.zeros(1, 4)).isfinite().sum()) == 2  # the fewest that reach a half


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"top_k": 5, "top_p": 0.7, "min_p": 0.3},
        {"top_k": 9, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_filters_are_those_of_hugging_face(options, temperature):
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 40)
    logits[:, 11] = -torch.inf  # as a model may say of a token
    warpers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}  # in the order of HF
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    for name, warper in warpers.items():
        if name in options:
            expected = warper(options[name])(None, expected)
    tokens, logprobs, kept = Sampler(temperature, **options)(logits, torch.rand(50))
    assert torch.equal(kept, expected.isfinite())
    chosen = expected.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, chosen)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("weights", ["merged", "live"])
def test_logits_that_are_no_numbers_are_one_line(tiny_model, bad, greedy, weights):
    policy, engine = loaded(tiny_model), LocalEngine(4, weights=weights, top_k=3)
    engine.prepare(policy)
    with torch.no_grad():
        policy.causal_lm.model.norm.weight[3] = bad
    with pytest.raises(UserError, match=r"logits that are not finite .* for prompt 1 of the batch"):
        engine.generate(policy, PROMPTS, 2, seed=0, greedy=greedy)


@pytest.mark.parametrize("size", [3, 700])
def test_no_number_still_chooses_a_token_that_exists(size):
    tokens, logprobs, _ = Sampler()(torch.full((2, size), torch.nan), torch.tensor([0.1, 0.9]))
    assert bool(((tokens >= 0) & (tokens < size)).all())
    assert not logprobs.isfinite().any()


def test_what_the_generation_config_asks_for_besides_is_said_once(policy, monkeypatch):
    said = []
    monkeypatch.setattr("lit_debias.rollout.local.rank_zero_info", said.append)
    monkeypatch.setattr(policy.causal_lm.generation_config, "repetition_penalty", 1.3)
    monkeypatch.setattr(policy.causal_lm.generation_config, "suppress_tokens", [])
    engine = LocalEngine(2)
    for _ in range(2):
        engine.generate(policy, PROMPTS, 2, seed=0)
    assert [text for text in said if "generation_config" in text] == [
        "The model's generation_config.json asks for repetition_penalty=1.3. Rollouts leave that out: they follow the "
        "policy itself, and the engine's own options."
    ]


@pytest.mark.parametrize("weights", ["merged", "live"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_log_probs_are_those_of_the_update(policy, weights, temperature):
    rollout = LocalEngine(12, temperature, weights=weights).generate(policy, PROMPTS, 4, seed=3)
    torch.testing.assert_close(policy.logprobs(rollout, temperature), rollout.logprobs, rtol=1e-4, atol=1e-4)


def test_greedy_completions_are_those_of_hugging_face(policy):
    rollout = LocalEngine(10).generate(policy, PROMPTS, 1, seed=0, greedy=True)
    for p in range(len(PROMPTS)):
        prompt = rollout.prompt_ids[p][rollout.prompt_mask[p]]
        expected = policy.inference_model().generate(
            prompt[None], attention_mask=torch.ones_like(prompt)[None], max_new_tokens=10, do_sample=False
        )[0, len(prompt) :]
        assert rollout.completion_ids[p, 0][rollout.completion_mask[p, 0]].tolist() == expected.tolist()


def test_seeds_decide_and_groups_differ(policy):
    engine = LocalEngine(8)
    first, again = (engine.generate(policy, PROMPTS, 4, seed=5) for _ in range(2))
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert not torch.equal(first.completion_ids, engine.generate(policy, PROMPTS, 4, seed=6).completion_ids)
    assert len({tuple(row) for row in first.completion_ids[0].tolist()}) == 4


def test_ranks_sample_differently_and_together_like_one_process(policy, monkeypatch):
    engine = LocalEngine(8)
    pair = PromptBatch(PROMPTS.texts[:1] * 2)
    whole = engine.generate(policy, pair, 4, seed=5)
    monkeypatch.setattr("lit_debias.support.distributed.world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("lit_debias.support.distributed.rank", lambda rank=rank: rank)
        mine = engine.generate(policy, PromptBatch(pair.texts[:1]), 4, seed=5)
        assert torch.equal(mine.completion_ids[0], whole.completion_ids[rank])
    assert not torch.equal(whole.completion_ids[0], whole.completion_ids[1])


class Scripted:
    """Chooses given tokens, row by row, whatever the logits say."""

    def __init__(self, script):
        self.script = torch.tensor(script)
        self.step = 0
        self.batch_sizes = []

    def __call__(self, logits, uniforms):
        rows = uniforms.long()
        self.batch_sizes.append(len(rows))
        tokens = self.script[rows, self.step]
        self.step += 1
        return Choice(tokens, -tokens.float())


def test_the_first_end_token_counts_and_nothing_after_it(policy):
    script = [[5, 2, 8, 8, 8, 8], [5, 6, 7, 2, 8, 8], [4, 4, 4, 4, 4, 4], [9, 2, 8, 8, 8, 8]]
    sampler = Scripted(script)
    decoding = Decoding(torch.arange(4.0)[:, None].expand(-1, 6), (2, 9), sampler)
    ids, mask = policy.encode_prompts(["the rider"])
    decoding.run(HuggingFaceDecoder(policy.inference_model()), ids, mask, group_size=4)
    assert decoding.lengths.tolist() == [2, 4, 6, 1]
    assert decoding.finished.tolist() == [True, True, False, True]  # the third was truncated
    assert decoding.ids.tolist() == [[5, 2, 0, 0, 0, 0], [5, 6, 7, 2, 0, 0], [4] * 6, [9, 0, 0, 0, 0, 0]]
    assert decoding.logprobs[0].tolist() == [-5, -2, 0, 0, 0, 0]
    assert decoding.mask().sum(1).tolist() == [2, 4, 6, 1]
    assert sampler.batch_sizes == [4, 4, 2, 2, 1, 1]  # rows are dropped once half of them are done


def test_dropping_finished_rows_changes_no_other_row(policy):
    policy.eos_token_ids = tuple(range(3, 60))  # ends come early and at different steps
    try:
        many = LocalEngine(16).generate(policy, PROMPTS, 6, seed=1)
    finally:
        policy.eos_token_ids = (2,)
    assert 0 < many.truncated.float().mean() < 1 or many.lengths.unique().numel() > 2
    torch.testing.assert_close(policy.logprobs(many), many.logprobs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"max_new_tokens": 0}, {"temperature": 0.0}, {"temperature": float("inf")}, {"temperature": float("nan")}),
        *({"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 1.0}, {"min_p": float("nan")}),
    ],
)
def test_senseless_values_are_refused(arguments):
    with pytest.raises(UserError, match="engine: "):
        LocalEngine(**arguments)
