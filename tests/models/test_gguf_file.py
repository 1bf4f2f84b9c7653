"""What transformers' reader of GGUF files leaves behind: put into the configuration, or refused by name."""

import gguf
import numpy as np
import pytest
import torch
from gguf_files import HEADS, HIDDEN, write_gguf
from transformers import LlamaForCausalLM

from lit_debias.errors import UserError
from lit_debias.models import loading

WIDTH = HIDDEN // HEADS
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_DEBIAS_CACHE", str(tmp_path / "cache"))


def converted(tmp_path, tiny_model, add):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model, seed=1, add=add)
    return loading.load_causal_lm(str(path), dtype=torch.float32)


def factors(writer):
    """What llama.cpp's converter writes for Llama 3.1, one frequency at a time."""
    values = []
    for frequency in 10000.0 ** -(np.arange(0, WIDTH, 2) / WIDTH):
        period = 2 * np.pi / frequency
        smooth = (64 / period - 1.0) / (4.0 - 1.0)
        between = 1 / ((1 - smooth) / 8.0 + smooth)
        values.append(1.0 if period < 64 / 4.0 else 8.0 if period > 64 / 1.0 else between)
    writer.add_tensor("rope_freqs.weight", np.array(values, dtype=np.float32))


def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)


SCALED = {
    "llama 3": (factors, LLAMA_3),
    "linear": (linear, {"rope_type": "linear", "factor": 4.0}),
    "yarn": (yarn, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
}


@pytest.mark.parametrize(("add", "rope"), SCALED.values(), ids=SCALED)
def test_rope_scaling_is_restored(tmp_path, tiny_model, add, rope):
    found = converted(tmp_path, tiny_model, add)
    config = type(found.config)(**{**found.config.to_dict(), "rope_parameters": {"rope_theta": 10000.0, **rope}})
    plain = LlamaForCausalLM(config).eval()
    plain.load_state_dict(found.state_dict())
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        logits, expected = found(ids).logits, plain(ids).logits
        config.rope_parameters = {"rope_theta": 10000.0, "rope_type": "default"}
        unscaled = LlamaForCausalLM(config).eval()
        unscaled.load_state_dict(found.state_dict())
        assert not torch.allclose(expected, unscaled(ids).logits, atol=1e-2)
    assert torch.equal(logits, expected)


def odd_factors(writer):
    writer.add_tensor("rope_freqs.weight", np.arange(1, 1 + WIDTH // 2, dtype=np.float32))


def bias(writer):
    writer.add_tensor("blk.0.attn_q.bias", np.ones(HIDDEN, dtype=np.float32))


LOST = {
    "factors of something else": (odd_factors, "rope_freqs.weight, whose factors are not those of Llama 3"),
    "long rope": (
        lambda writer: writer.add_tensor("rope_factors_long.weight", np.ones(WIDTH // 2, dtype=np.float32)),
        "rope_factors_long.weight",
    ),
    "window": (lambda writer: writer.add_sliding_window(16), "attention.sliding_window = 16"),
    "soft cap": (lambda writer: writer.add_final_logit_softcapping(30.0), "final_logit_softcapping = 30.0"),
    "scale": (lambda writer: writer.add_attention_scale(0.5), "attention.scale = 0.5"),
    "experts": (lambda writer: writer.add_expert_count(4), "expert_count = 4"),
    "unknown": (lambda writer: writer.add_float32("llama.swirl", 2.0), "llama.swirl = 2.0"),
    "bias": (bias, "1 bias, such as blk.0.attn_q.bias"),
}


@pytest.mark.parametrize(("add", "name"), LOST.values(), ids=LOST)
def test_what_would_be_lost_is_refused_by_name(tmp_path, tiny_model, add, name):
    with pytest.raises(UserError, match=f"tiny.gguf' has {name}, which transformers' model would be loaded without"):
        converted(tmp_path, tiny_model, add)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_trivial_metadata_is_no_obstacle(tmp_path, tiny_model):
    def add(writer):
        writer.add_key_length(WIDTH)
        writer.add_value_length(WIDTH)
        writer.add_expert_count(0)
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_tensor("rope_freqs.weight", np.ones(WIDTH // 2, dtype=np.float32))

    assert converted(tmp_path, tiny_model, add).config.rope_parameters["rope_type"] == "default"
