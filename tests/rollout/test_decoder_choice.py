"""Decoders that rely on less, and which decoder a rollout takes: the fastest that gives the plain model's logits."""

import logging

import pytest
import torch
from support import loaded, perturb

from lit_debias.errors import UserError
from lit_debias.rollout.decoders import Decoder, HuggingFaceDecoder
from lit_debias.rollout.local import LocalEngine
from lit_debias.rollout.plain_decoders import PromptwiseDecoder, RecomputingDecoder
from lit_debias.types import PromptBatch

PROMPTS = PromptBatch(["people from the north and people from the south are", "the rider"])


@pytest.mark.parametrize("kind", [PromptwiseDecoder, RecomputingDecoder])
def test_plain_decoders_give_the_logits_of_the_usual_one(tiny_model, kind):
    policy = loaded(tiny_model)
    ids, mask = policy.encode_prompts(["the rider", "people from the north are kind", "why"])
    tokens = torch.randint(3, 300, (6, 4))

    def decode(decoder: Decoder) -> list[torch.Tensor]:
        found = [decoder.start(ids, mask, 2, 4), decoder.step(tokens[:, 0])]
        decoder.keep(torch.tensor([0, 1, 5]))  # the second group is dropped whole
        found.append(decoder.step(tokens[[0, 1, 5], 1]))
        decoder.keep(torch.tensor([2]))
        return [*found, decoder.step(tokens[[5], 2])]

    with torch.inference_mode():
        found, expected = decode(kind(policy.inference_model())), decode(HuggingFaceDecoder(policy.inference_model()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_that_is_wrong_is_not_used(tiny_model, monkeypatch, caplog):
    original = HuggingFaceDecoder.keep
    monkeypatch.setattr(HuggingFaceDecoder, "keep", lambda self, rows: original(self, rows.flip(0)))
    policy, engine = loaded(tiny_model), LocalEngine(4, decoder="hugging_face")
    with caplog.at_level(logging.INFO):
        engine.prepare(policy)
        engine.generate(policy, PROMPTS, 2, seed=0)
    assert engine.decoders.name == "Hugging Face's forward pass, prompt by prompt"
    assert (
        caplog.text.count("Rollouts use Hugging Face's forward pass, prompt by prompt (as configured; not Hugging") == 1
    )
    assert "its logits miss the model's own by" in caplog.text


def test_a_policy_that_no_decoder_samples_is_refused(tiny_model, monkeypatch):
    for kind in (PromptwiseDecoder, RecomputingDecoder, HuggingFaceDecoder):
        monkeypatch.setattr(kind, "start", lambda self, ids, mask, size, new: torch.zeros(len(ids) * size, 320))
    with pytest.raises(UserError, match=r"no decoder gives the logits of model .*; write decoder: auto and weights"):
        LocalEngine(decoder="hugging_face").prepare(loaded(tiny_model))


def test_each_policy_is_compared_once(tiny_model):
    first, second, choice = loaded(tiny_model), loaded(tiny_model), LocalEngine(4).decoders
    assert [choice.settle(policy) for policy in (first, first, second)] == [True, False, True]


def test_a_trained_adapter_is_compared_as_it_is(tiny_model):
    policy = loaded(tiny_model)
    perturb(policy)
    LocalEngine(4).prepare(policy)  # the plain model is asked anew, not remembered
