"""Tiny models of the architectures that have a lean form."""

import pytest
import torch
import transformers
from support import save_tiny_model

from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


GEMMA3 = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 24,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    },
}


def build(kind: str, options: dict) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config_of = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config"))
    config = config_of(**{**SIZES, **options})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():  # fresh norms are ones and fresh biases zeros, which would hide that they are left out
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("lean") / "tiny")


@pytest.fixture(scope="module")
def policy(model_folder):
    policy = QLoRAPolicy(str(model_folder), quantization="nf4", dtype="bfloat16", rank=4)
    policy.load("cpu")
    return policy


def assert_rollouts_follow_training(policy):
    engine, prompts = LocalEngine(12), PromptBatch(["the rider", "people from the north are"])
    for seed in range(2):
        with torch.no_grad():
            for name, parameter in policy.trainable_parameters().items():
                if "lora_B" in name:
                    parameter.add_(0.3 * torch.randn(parameter.shape))
        policy.weights_changed()
        rollout = engine.generate(policy, prompts, 4, seed)
        difference = (policy.logprobs(rollout) - rollout.logprobs).abs()[rollout.completion_mask]
        assert difference.mean() < 0.1
