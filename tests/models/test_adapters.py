"""Adapters to continue: plain LoRA is what PEFT makes of it, and what is more than that is refused by name."""

from __future__ import annotations

import dataclasses
import json
import warnings

import peft
import pytest
import torch
from command_line import run, said
from model_folders import changed, plain_logprobs
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support import loaded, perturb
from transformers import AutoModelForCausalLM

from lit_debias.errors import UserError
from lit_debias.models.adapter_config import PLAIN, read_adapter_config
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.types import PromptBatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),
    pytest.mark.filterwarnings("ignore:PiSSA changes the base"),
]
PROMPTS = PromptBatch(["the rider", "people from the north and the south"])
ANSWERS = [["was late.", "is"], ["are kind", "cook in different ways."]]


def save_adapter(model, folder, move=True, **options):
    """Save an adapter that PEFT makes, moved away from where it starts."""
    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
        for name, parameter in lm.named_parameters():
            if parameter.requires_grad and "lora_B" in name and move:
                parameter.data += 0.05 * torch.randn(parameter.shape)
        lm.save_pretrained(folder)
    return lm


PLAIN_LORA = {
    "default": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "no init": {"init_lora_weights": False},
    "ranks": {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 32}},
    "layers": {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
    "excluded": {"exclude_modules": ["q_proj"]},
}


@pytest.mark.parametrize("options", PLAIN_LORA.values(), ids=PLAIN_LORA)
@pytest.mark.parametrize("reference", ["base", "adapter"])
def test_plain_lora_is_what_peft_makes_of_it(options, reference, tiny_model, tmp_path):
    save_adapter(tiny_model, tmp_path, **options)
    changed(tmp_path, "adapter_config.json", inference_mode=reference == "base")
    policy = loaded(tiny_model, adapter=str(tmp_path), reference=reference)
    rollout = policy.encode(PROMPTS, ANSWERS)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    untouched = plain_logprobs(base, rollout)
    adapted = plain_logprobs(PeftModel.from_pretrained(base, tmp_path), rollout)
    assert (adapted - untouched).abs().max() > 1e-3
    torch.testing.assert_close(policy.logprobs(rollout), adapted, rtol=1e-4, atol=1e-4)
    expected = untouched if reference == "base" else adapted
    torch.testing.assert_close(policy.logprobs(rollout, reference=True), expected, rtol=1e-4, atol=1e-4)
    assert all(".default." in name for name in policy.trainable_parameters())


MORE_THAN_LORA = {
    "pissa": ({"init_lora_weights": "pissa"}, r"init_lora_weights \('pissa'\), which moves the base"),
    "fast pissa": ({"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights \('pissa_niter_4'\)"),
    "olora": ({"init_lora_weights": "olora"}, r"\('olora'\).*path_initial_model_for_weight_conversion"),
    "mica": ({"init_lora_weights": "mica"}, "init_lora_weights"),
    "all biases": ({"bias": "all"}, r"uses bias \('all'\)"),
    "biases": ({"bias": "lora_only"}, r"uses bias \('lora_only'\)"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, r"uses alora_invocation_tokens \(\[1, 2\]\)"),
    "dora": ({"use_dora": True}, "uses use_dora"),
    "layers twice": ({"layer_replication": [[0, 2], [0, 2]]}, "uses layer_replication"),
    "tokens": ({"trainable_token_indices": [1]}, "uses trainable_token_indices"),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, "adapter on 'lm_head' .*linear layers of the decoder"),
}


@pytest.mark.parametrize(("options", "message"), MORE_THAN_LORA.values(), ids=MORE_THAN_LORA)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapters_that_are_more_than_lora_are_refused(options, message, tiny_model, tmp_path):
    save_adapter(tiny_model, tmp_path, **options)
    with pytest.raises(UserError, match=message) as caught:
        loaded(tiny_model, adapter=str(tmp_path))
    assert f"adapter '{tmp_path}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def plain_adapter(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(tiny_model, folder)
    return folder


KNOWN = PLAIN | {"init_lora_weights", "eva_config", "runtime_config"}


@pytest.mark.parametrize("option", sorted({field.name for field in dataclasses.fields(LoraConfig)} - KNOWN))
def test_every_other_option_of_peft_is_refused_by_name(option, plain_adapter, monkeypatch):
    config = LoraConfig.from_pretrained(plain_adapter)
    setattr(config, option, "anything")
    monkeypatch.setattr("peft.PeftConfig.from_pretrained", lambda _: config)
    with pytest.raises(UserError, match=rf"uses {option} \('anything'\); name a plain LoRA adapter"):
        read_adapter_config(str(plain_adapter), 0.0)


@pytest.fixture
def copied(plain_adapter, tmp_path):
    for file in plain_adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_an_option_of_a_later_peft_is_refused_and_those_of_trainers_are_not(tiny_model, copied):
    changed(copied, "adapter_config.json", lora_dtype="bfloat16", lorap_emb_lr=1e-6, later_option=False)
    changed(copied, "adapter_config.json", auto_mapping={"unsloth_fixed": True})
    loaded(tiny_model, adapter=str(copied))
    changed(copied, "adapter_config.json", later_option={"kind": "twisted"})
    with pytest.raises(UserError, match=r"uses later_option \({'kind': 'twisted'}\); name a plain LoRA"):
        QLoRAPolicy(str(tiny_model), adapter=str(copied))  # before anything is loaded


def test_an_adapter_that_brings_embeddings_is_refused(tiny_model, copied):
    weights = load_file(copied / "adapter_model.safetensors")
    weights["base_model.model.model.embed_tokens.weight"] = torch.zeros(320, 32)
    save_file(weights, copied / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"1 weight is on one side only, such as .*embed_tokens.weight"):
        loaded(tiny_model, adapter=str(copied))


def test_an_adapter_in_bf16_is_trained_in_fp32(tiny_model, copied):
    file = copied / "adapter_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    policy = loaded(tiny_model, adapter=str(copied))
    assert {value.dtype for value in policy.trainable_parameters().values()} == {torch.float32}


def test_pissa_that_peft_has_converted_is_plain_lora(tiny_model, tmp_path):
    start = save_adapter(tiny_model, tmp_path / "start", move=False, init_lora_weights="pissa")
    start.peft_config["default"].init_lora_weights = True  # as PEFT's guide has it
    start.save_pretrained(tmp_path / "start")
    moved = save_adapter(tiny_model, tmp_path / "pissa", init_lora_weights="pissa")
    rollout = loaded(tiny_model).encode(PROMPTS, ANSWERS)
    expected = plain_logprobs(moved, rollout)
    moved.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    policy = loaded(tiny_model, adapter=str(tmp_path / "lora"), reference="base")
    torch.testing.assert_close(policy.logprobs(rollout), expected, rtol=1e-3, atol=1e-3)
    untouched = plain_logprobs(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), rollout)
    torch.testing.assert_close(policy.logprobs(rollout, reference=True), untouched, rtol=1e-4, atol=1e-4)


def test_a_variant_that_the_configuration_hides_is_refused(tiny_model, plain_adapter, monkeypatch):
    variant = peft.tuners.lora.layer.LoraLayer.resolve_lora_variant
    assert variant is not None
    monkeypatch.setattr(peft.tuners.lora.layer.LoraLayer, "resolve_lora_variant", lambda *_, **__: torch.nn.Identity())
    monkeypatch.setattr(torch.nn.Identity, "init", lambda *_, **__: None, raising=False)
    with pytest.raises(UserError, match=r"the adapter on '.*_proj' is more than plain LoRA"):
        loaded(tiny_model, adapter=str(plain_adapter))


def test_evaluation_refuses_them_before_it_measures_anything(tiny_model, tmp_path, capsys):
    save_adapter(tiny_model, tmp_path / "pissa", init_lora_weights="pissa")
    judges = json.dumps({"j": {"class_path": "Rules"}})
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Who cooks?"}\n')
    arguments = ["--model", str(tiny_model), "--data", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "out")]
    adapters = json.dumps({"first": str(tmp_path / "pissa")})
    assert run("evaluate", *arguments, "--judges", judges, "--adapters", adapters) == 2
    assert f"adapter '{tmp_path / 'pissa'}' uses init_lora_weights ('pissa')" in said(capsys)


def test_what_is_exported_is_continued(tiny_model, tmp_path):
    policy = loaded(tiny_model)
    perturb(policy)
    rollout = policy.encode(PROMPTS, ANSWERS)
    policy.lm.save_pretrained(tmp_path, selected_adapters=["default"], save_embedding_layers=False)
    again = loaded(tiny_model, adapter=str(tmp_path))
    torch.testing.assert_close(again.logprobs(rollout), policy.logprobs(rollout))
