"""The random tokens that models are compared on: how many, what they leave behind, and what counts as equal."""

import pytest
import torch
from support import loaded

from lit_debias.models.probing import probe
from lit_debias.models.probing.probe import Probe, distance, moved_adapter, plain_logits
from lit_debias.models.probing.ways import Expected, Way
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

PROMPTS = PromptBatch(["people from the north and people from the south are", "the rider"])
ANSWERS = [["kind because each person", "late"], ["judged on evidence and work", "the north"]]


def test_the_probe_is_longer_than_the_window_and_no_longer_than_the_context(tiny_model):
    policy = loaded(tiny_model)
    model, tokenizer = policy.causal_lm, policy.tokenizer
    assert len(policy._probe.prompt) == 12
    assert policy._probe.prompt.min() > 2  # no control token
    model.config.sliding_window = 40
    assert len(Probe.of(model, tokenizer).prompt) == 42
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model.config.max_position_embeddings = 30
    assert len(Probe.of(model, tokenizer).prompt) == 21


def test_a_probe_is_cut_to_what_the_model_reads_in_its_time(tiny_model, monkeypatch):
    policy = loaded(tiny_model)
    policy.causal_lm.config.sliding_window = 300
    clock = iter([0.0, 10.0, 10.6])  # the second pass over 24 tokens takes 0.6 s
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(clock))
    cut = Probe.of(policy.causal_lm, policy.tokenizer)
    assert len(cut.prompt) == int(24 / 0.6 * probe.SECONDS)


def test_probing_leaves_no_trace(tiny_model):
    policy = loaded(tiny_model)
    before = {name: p.clone() for name, p in policy.trainable_parameters().items()}
    state = torch.random.get_rng_state()
    LocalEngine(2).prepare(policy)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable_parameters().items())
    with moved_adapter(policy.trainable_parameters()):
        moved = {name for name, p in policy.trainable_parameters().items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_B" in name}
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable_parameters().items())
    assert not any(module._forward_hooks for module in policy.causal_lm.modules())
    fresh = policy.logprobs(policy.encode(PROMPTS, ANSWERS))
    torch.testing.assert_close(fresh, policy.logprobs(policy.encode(PROMPTS, ANSWERS), reference=True), rtol=0, atol=0)


@pytest.mark.parametrize("able", [True, False])
def test_only_the_last_logits_are_asked_for(tiny_model, able, monkeypatch):
    policy = loaded(tiny_model)
    ids, model, asked = policy._probe.prompt, policy.causal_lm, []
    forward = model.forward

    def plain(input_ids, use_cache):
        return forward(input_ids=input_ids, use_cache=use_cache)

    def keeping(input_ids, use_cache, logits_to_keep=0):
        asked.append(logits_to_keep)
        return forward(input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)

    monkeypatch.setattr(model, "forward", keeping if able else plain)
    torch.testing.assert_close(plain_logits(model, ids, keep=3), plain_logits(model, ids)[-3:])
    assert asked == ([3, 0] if able else [])


def test_distance_by_hand():
    plain = torch.tensor([[3.0, -3.0, 0.0]] * 6)
    shifted = plain + 5  # no probability changes
    assert distance([shifted], [plain]) == 0
    assert distance([plain * 1.5], [plain]) == pytest.approx(0.5)
    first = plain.clone()
    first[:3] *= 2  # what runs over into the first tokens is not lost among the others
    assert distance([plain, first], [plain, plain]) == pytest.approx(1)
    one = plain.clone()
    one[4] *= 2  # an expert chosen otherwise
    assert distance([one], [plain]) == 0
    assert distance([plain * torch.nan], [plain]) == torch.inf


def test_what_rounding_does_to_the_model_is_allowed_and_little_more(tiny_model):
    policy = loaded(tiny_model)
    with policy.moved_adapter() as expected:
        assert expected.tolerance == 1e-3  # in fp32 rounding is less
        half = Expected.of(policy.causal_lm, policy._probe, "tiny", torch.bfloat16).tolerance
        assert 0.02 <= half < 0.3
        for apart, right in ((5e-4, True), (2e-3, False)):
            flip = torch.linspace(-1, 1, 320).sign()  # across the logits, whose mean does not count

            def way(packed, apart=apart, flip=flip):
                logits = policy.way.logits(packed)
                spread = logits.std(-1, keepdim=True, correction=0)  # the norm without the mean, by the root of 320
                return logits + apart * flip * spread

            assert (expected.missed_by(Way("other", way, None, packs=True)) is None) is right
