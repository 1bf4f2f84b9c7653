"""What only a GPU can show: recorded graphs and compiled attention compute what the plain forms do."""

import pytest
import torch
from policy_answers import ANSWERS, PROMPTS, log_probs_and_gradients
from support import perturb

from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(model, **options) -> QLoRAPolicy:
    torch.manual_seed(1)
    policy = QLoRAPolicy(str(model), **{"quantization": "none", "dtype": "float32", "rank": 4, **options})
    policy.load("cuda")
    perturb(policy)
    return policy


@pytest.mark.parametrize("torch_compile", [False, True])
def test_a_graphed_engine_samples_what_the_other_one_does(tiny_model, torch_compile):
    policy = on_gpu(tiny_model)
    policy.eos_token_ids = tuple(range(3, 60))  # rows end early, and are dropped
    for seed in range(3):
        plain, graphed = (
            LocalEngine(24, **options).generate(policy, PROMPTS, 8, seed)
            for options in ({}, {"cuda_graph": True, "torch_compile": torch_compile})
        )
        assert torch.equal(plain.completion_ids, graphed.completion_ids)
        torch.testing.assert_close(plain.logprobs, graphed.logprobs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_flex_attention_has_the_log_probs_and_gradients_of_the_other_form(tiny_model, quantization):
    found = [
        log_probs_and_gradients(on_gpu(tiny_model, attention=attention, quantization=quantization))
        for attention in ("sdpa", "flex")
    ]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_flex_attention_follows_other_lengths(tiny_model):
    policies = [on_gpu(tiny_model, attention=attention) for attention in ("sdpa", "flex")]
    for length in (1, 40, 200):
        answers = [[f"{text} word" * length for text in group] for group in ANSWERS]
        rollouts = [policy.encode(PROMPTS, answers) for policy in policies]
        values = [policy.logprobs(rollout) for policy, rollout in zip(policies, rollouts, strict=True)]
        torch.testing.assert_close(*values, rtol=1e-3, atol=1e-3)
