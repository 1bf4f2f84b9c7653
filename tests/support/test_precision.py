"""Which type a model computes in: `auto` never emulates."""

import pytest
import torch

from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.support.precision import dtype_of, multiplies_bf16


@pytest.fixture(params=[True, False], ids=["bf16 CPU", "fp32 CPU"])
def fast(request, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    return torch.bfloat16 if request.param else torch.float32


def test_auto_is_the_type_that_the_cpu_multiplies_in(fast):
    assert dtype_of("auto", "cpu") == fast
    assert dtype_of("bfloat16", "cpu") == torch.bfloat16
    assert dtype_of("float32", "cpu") == torch.float32


def test_a_device_of_which_nothing_is_known_computes_in_fp32():
    assert not multiplies_bf16("meta")
    assert dtype_of("auto", "meta") == torch.float32


@pytest.mark.parametrize("bf16", [True, False])
def test_a_gpu_is_asked_without_emulation(bf16, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or bf16)
    assert dtype_of("auto", "cuda") == (torch.bfloat16 if bf16 else torch.float32)
    assert asked == [{"including_emulation": False}]


def test_a_policy_computes_in_it(fast, tiny_model):
    policy = QLoRAPolicy(str(tiny_model), quantization="nf4", rank=2)
    policy.load()
    assert policy.dtype == policy.causal_lm.model.embed_tokens.weight.dtype == fast
    assert policy.causal_lm.model.layers[0].mlp.down_proj.base_layer.compute_dtype == fast
