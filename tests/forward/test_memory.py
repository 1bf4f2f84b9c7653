"""What a forward pass keeps: each piece of memory counted once, predicted from one layer, decided by what is free."""

import pytest
import torch
from support import perturb, save_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from lit_debias.forward import lean as lean_model
from lit_debias.forward.memory import KeptBytes, free_memory
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.types import PromptBatch

PROMPTS = PromptBatch(["people from the north are", "the rider was late and the lift was out of order again"])
ANSWERS = [["kind because", "late"], ["each person", "judged on evidence and work and more of the same"]]


def test_kept_bytes_by_hand():
    inputs, weight = torch.ones(4, 8, requires_grad=True), torch.ones(8, 8)
    kept = KeptBytes(there_anyway=[weight])
    with kept.counting():
        hidden = inputs @ weight  # keeps the weight, which is there anyway
        hidden.sin()  # keeps its input: 4 x 8 x 4 bytes
        hidden.cos()  # the same input again
        hidden[:2].exp()  # keeps its result: 2 x 8 x 4 bytes
    assert kept.total == 128 + 64


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """The tiny model with six layers."""
    folder = save_tiny_model(tmp_path_factory.mktemp("deep") / "tiny")
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 6
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def policy_of(folder, **options):
    torch.manual_seed(1)
    policy = QLoRAPolicy(str(folder), **{"quantization": "none", "dtype": "float32", "rank": 4, **options})
    policy = policy.load("cpu")
    perturb(policy)
    return policy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_one_layer_predicts_what_all_keep(deep_model, dtype, quantization):
    policy = policy_of(deep_model, dtype=dtype, quantization=quantization, keep_base=True, gradient_checkpointing=False)
    packed = pack_rollout(policy.encode(PROMPTS, ANSWERS))
    everything = KeptBytes(
        there_anyway=[weight for layer in policy.forms.lean_model.layers for weight in layer.weights()]
    )
    with everything.counting():
        policy(packed)
    assert 6 * one_layer(policy, packed) == pytest.approx(everything.total, rel=0.05)


def one_layer(policy, packed) -> int:
    """Return the bytes that the first layer keeps; the others are gone then."""
    kept = KeptBytes(there_anyway=policy.forms.lean_model.layers[0].weights())
    del policy.forms.lean_model.layers[1:]
    with kept.counting():
        policy.forms.way.outputs(packed)
    return kept.total


@pytest.mark.parametrize(("share", "recomputed"), [(100.0, 0), (1.3, 0), (0.7, 5), (0.0, 5)])
def test_layers_are_recomputed_where_they_do_not_fit_and_gradients_stay(deep_model, share, recomputed, monkeypatch):
    policy = policy_of(deep_model, gradient_checkpointing=False)
    free = int(share * 2 * 6 * one_layer(policy, pack_rollout(policy.encode(PROMPTS, ANSWERS))))  # half may be used
    gradients = []
    calls = []
    right = lean_model.checkpoint
    monkeypatch.setattr(lean_model, "checkpoint", lambda *args, **options: calls.append(1) or right(*args, **options))
    monkeypatch.setattr(lean_model, "free_memory", lambda device: free)
    for checkpointing in (False, None):
        policy = policy_of(deep_model, gradient_checkpointing=checkpointing)
        policy(pack_rollout(policy.encode(PROMPTS, ANSWERS))).logprobs.sum().backward()
        gradients.append([p.grad for p in policy.trainable_parameters().values()])
    assert len(calls) == recomputed
    torch.testing.assert_close(*gradients)


def test_free_memory_is_that_of_the_machine():
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
