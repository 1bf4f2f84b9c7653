"""Weights of the base that are stored as codes: computed as Hugging Face does, or refused before they are read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from model_folders import ANSWERS, PROMPTS, changed, plain_logprobs
from safetensors.torch import load_file, save_file
from support import loaded, perturb
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
)

from lit_debias.errors import UserError
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.layers import base_weight, is_quantized
from lit_debias.packing.tokens import pack_rollout
from lit_debias.rollout.local import LocalEngine


def store_in_four_bits(tiny_model, folder, dtype, **options):
    """Save the tiny model in 4 bits; return a plain fp32 model with the numbers that these stand for."""
    shutil.copytree(tiny_model, folder)
    config = BitsAndBytesConfig(load_in_4bit=True, **options)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype).save_pretrained(folder)
    stored = AutoModelForCausalLM.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    if options.get("llm_int8_skip_modules") is not None:
        plain = untied(plain)
    for layer in filter(is_quantized, stored.modules()):
        layer.weight.quant_state.dtype = torch.float32  # code times scale, not rounded
    numbers = {
        f"{name}.weight": base_weight(layer) if is_quantized(layer) else layer.weight
        for name, layer in stored.named_modules()
        if hasattr(layer, "weight")
    }
    plain.load_state_dict({name: value.detach().float() for name, value in numbers.items()}, strict=False)
    return plain


def untied(model):
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


FOUR_BITS = {
    "nf4": (torch.float32, {"bnb_4bit_quant_type": "nf4"}),
    "nf4 of bf16, twice": (
        torch.bfloat16,
        {
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        },
    ),
    "fp4 of fp16": (torch.float16, {"bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.float16}),
    "stored as bf16": (torch.bfloat16, {"bnb_4bit_quant_storage": torch.bfloat16}),
    "some layers plain": (torch.bfloat16, {"llm_int8_skip_modules": ["lm_head", "q_proj", "down_proj"]}),
}


@pytest.mark.parametrize(("dtype", "options"), FOUR_BITS.values(), ids=FOUR_BITS)
def test_a_checkpoint_in_four_bits_computes_in_the_policys_type(dtype, options, tiny_model, tmp_path):
    plain = store_in_four_bits(tiny_model, tmp_path / "model", dtype, **options)
    policy = loaded(tmp_path / "model")
    rollout = policy.encode(PROMPTS, ANSWERS)
    torch.testing.assert_close(policy.logprobs(rollout), plain_logprobs(plain, rollout), rtol=1e-4, atol=1e-4)
    perturb(policy)
    sampled = LocalEngine(6).generate(policy, PROMPTS, 2, 1)
    torch.testing.assert_close(sampled.logprobs, policy.logprobs(sampled), rtol=1e-4, atol=1e-4)
    policy.forms.lean_model = None  # Hugging Face's forward pass
    torch.testing.assert_close(sampled.logprobs, policy.logprobs(sampled), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_checkpoint_in_four_bits_of_fp32_computes_in_bf16(quantization, tiny_model, tmp_path):
    plain = store_in_four_bits(tiny_model, tmp_path / "model", torch.float32)
    policy = loaded(tmp_path / "model", dtype="bfloat16", quantization=quantization)
    types = {p.dtype for p in policy.causal_lm.parameters() if not p.requires_grad and p.is_floating_point()}
    assert types == {torch.bfloat16}
    layer = policy.causal_lm.model.layers[0].mlp.up_proj.base_layer
    expected = plain.model.layers[0].mlp.up_proj.weight.bfloat16()
    assert torch.equal(base_weight(layer), expected)
    assert layer.compute_dtype is torch.bfloat16
    perturb(policy)
    for decoder in ("lean", "hugging_face"):
        sampled = LocalEngine(6, decoder=decoder).generate(policy, PROMPTS, 2, 1)
        torch.testing.assert_close(sampled.logprobs, policy.logprobs(sampled), rtol=0.1, atol=0.3)
    policy(pack_rollout(sampled)).logprobs.sum().backward()
    assert all(p.grad.isfinite().all() for p in policy.trainable_parameters().values())


def test_a_head_in_four_bits_is_read_as_numbers(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "untied")
    untied(AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(folder)
    plain = store_in_four_bits(folder, tmp_path / "model", torch.float32, llm_int8_skip_modules=["nothing"])
    assert is_quantized(AutoModelForCausalLM.from_pretrained(tmp_path / "model").lm_head)
    policy = loaded(tmp_path / "model")
    rollout = policy.encode(PROMPTS, ANSWERS)
    torch.testing.assert_close(policy.logprobs(rollout), plain_logprobs(plain, rollout), rtol=1e-4, atol=1e-4)


def store_in_fp8(tiny_model, folder):
    """Save the tiny model in blocks of FP8; return a plain model with the numbers that these stand for."""
    shutil.copytree(tiny_model, folder)
    file = folder / "model.safetensors"
    stored, plain = load_file(file), AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for name, weight in [*stored.items()]:
        if name.endswith("proj.weight"):
            scale = weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale[None, None]
            plain.get_parameter(name).data = stored[name].float() * scale
    save_file(stored, file, {"format": "pt"})
    return plain


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def test_fp8_is_loaded_as_plain_weights(tiny_model, tmp_path):
    folder = tmp_path / "model"
    plain = store_in_fp8(tiny_model, folder)
    changed(folder, "config.json", quantization_config=FP8)
    policy = loaded(folder)
    rollout = policy.encode(PROMPTS, ANSWERS)
    torch.testing.assert_close(policy.logprobs(rollout), plain_logprobs(plain, rollout), rtol=1e-4, atol=1e-4)
    small = loaded(folder, dtype="bfloat16")
    assert {p.dtype for p in small.causal_lm.parameters() if not p.requires_grad} == {torch.bfloat16}
    with pytest.raises(
        UserError, match=r"stored quantised \(fp8\) and cannot be quantised again; write quantization: n"
    ):
        loaded(folder, quantization="nf4")


def test_codes_that_the_configuration_does_not_speak_of(tiny_model, tmp_path):
    store_in_fp8(tiny_model, tmp_path / "model")
    for load in (loaded, lambda folder: LanguageModel(str(folder), 1).load(torch.device("cpu"))):
        with pytest.raises(UserError, match=r"'model.layers.0.mlp.down_proj.weight' is stored as F8_E4M3, and its c"):
            load(tmp_path / "model")


@pytest.mark.filterwarnings("ignore:Unknown quantization type")
def test_a_frozen_reader_refuses_what_transformers_does_not_know(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    changed(folder, "config.json", quantization_config={"quant_method": "of tomorrow"})
    with pytest.raises(UserError, match=r"\(of tomorrow\), which transformers does not know"):
        LanguageModel(str(folder), 1).load(torch.device("cpu"))


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_eight_bits_of_bitsandbytes_are_refused(quantization, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).save_pretrained(folder)
    with pytest.raises(
        UserError, match=r"stored quantised \(bitsandbytes 8-bit\), which would be read as plain numbers"
    ):
        loaded(folder, quantization=quantization)


@pytest.mark.parametrize(
    "kind", ["gptq", "awq", "hqq", "torchao", "quanto", "eetq", "fbgemm_fp8", "compressed-tensors", "of tomorrow"]
)
def test_other_codes_are_refused_before_they_are_read(kind, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    changed(folder, "config.json", quantization_config={"quant_method": kind, "bits": 4})
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"stored quantised \({kind}\), .*; write the model that it was made from"):
        loaded(folder)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_gpt_2_keeps_its_weights_transposed(quantization, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    policy = loaded(folder, quantization=quantization)
    perturb(policy)
    sampled = LocalEngine(6).generate(policy, PROMPTS, 2, 1)
    expected = plain_logprobs(policy.lm.train(), sampled)
    torch.testing.assert_close(sampled.logprobs, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(policy.logprobs(sampled), expected, rtol=1e-3, atol=1e-3)
    assert len(policy.trainable_parameters()) == 2 * 2 * 4


def test_the_configuration_is_not_changed_on_disk(tiny_model, tmp_path):
    store_in_four_bits(tiny_model, tmp_path / "model", torch.float32)
    before = (tmp_path / "model" / "config.json").read_text()
    loaded(tmp_path / "model", dtype="bfloat16")
    assert (tmp_path / "model" / "config.json").read_text() == before
    assert json.loads(before)["quantization_config"]["bnb_4bit_compute_dtype"] == "float32"


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_mxfp4_is_loaded_as_plain_weights(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 320}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2}
    plain = GptOssForCausalLM(GptOssConfig(**sizes, **heads, initializer_range=0.3)).eval()
    plain.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    for name in [name for name in stored if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = stored.pop(name).shape
        codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32))
        exponents = torch.randint(-3, 0, (experts, outputs, inputs // 32))
        stored[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        weight = (FP4[codes] * 2.0 ** exponents[..., None]).flatten(-2).transpose(1, 2)
        plain.get_parameter(name).data = weight.contiguous()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    changed(folder, "config.json", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": None})
    policy = loaded(folder)
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(policy.causal_lm(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)
