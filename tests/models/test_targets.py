"""Where adapters sit by default, and what is said of targets that cannot carry one."""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers as tf
from model_folders import ANSWERS, PROMPTS, plain_logprobs
from peft import LoraConfig, PeftModel, get_peft_model
from support import loaded, perturb
from torch import nn

from lit_debias.errors import UserError
from lit_debias.models.targets import called_layers, choose_targets, is_linear

SIZES = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}
EXPERTS = {"num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "mm_tokens_per_image": 4,
    **{f"{name}_token_index": number for number, name in enumerate(("boi", "eoi", "image"), 300)},
}
VISION["vision_config"] |= {"image_size": 28, "patch_size": 14}
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}

MODELS = {
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, **HEADS, **EXPERTS)),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS)),
    "qwen2_moe": lambda: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**SIZES, **HEADS, **EXPERTS, shared_expert_intermediate_size=16)
    ),
    "llama4": lambda: tf.Llama4ForCausalLM(tf.Llama4TextConfig(**SIZES, **HEADS, **EXPERTS, head_dim=16)),
    "gemma3": lambda: tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(text_config={**SIZES, **HEADS, "head_dim": 16}, **VISION)
    ),
    "lfm2": lambda: tf.Lfm2ForCausalLM(
        tf.Lfm2Config(**SIZES, **HEADS, full_attn_idxs=[1], block_auto_adjust_ff_dim=False)
    ),
    "falcon_h1": lambda: tf.FalconH1ForCausalLM(
        tf.FalconH1Config(
            **SIZES,
            **HEADS,
            head_dim=16,
            mamba_d_ssm=64,
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
            mamba_n_groups=1,
        )
    ),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=320, hidden_size=32, state_size=8, num_hidden_layers=2)
    ),
    "falcon": lambda: tf.FalconForCausalLM(
        tf.FalconConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, **HEADS)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2)),
}
CHOSEN = {
    "mixtral": ATTENTION,
    "qwen3_moe": ATTENTION,
    "qwen2_moe": ATTENTION | MLP,  # of the expert that all tokens share
    "llama4": ATTENTION | MLP,
    "gemma3": ATTENTION | MLP,
    "lfm2": {"q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3"},
    "falcon_h1": ATTENTION | MLP,
}
FORBIDDEN = ("experts.", "vision", "multi_modal", "router", ".gate.", ".conv.", "mamba", "shared_expert_gate")


def build(name):
    torch.manual_seed(0)
    return MODELS[name]()


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_adapters_sit_on_attention_and_shared_mlps_and_all_of_them_learn(name):
    base = build(name)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    choose_targets(base, name, config, called_layers(base, name))
    lm = get_peft_model(base, config)
    for parameter in filter(lambda parameter: parameter.requires_grad, lm.parameters()):
        nn.init.normal_(parameter, std=0.1)
    lm(input_ids=torch.arange(12)[None], use_cache=False).logits.square().sum().backward()
    trained = {name: parameter.grad for name, parameter in lm.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == CHOSEN[name]
    assert not [name for name in trained if any(part in name for part in FORBIDDEN)]
    assert all(gradient is not None and gradient.any() for gradient in trained.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_plain_models_keep_all_linear_layers(name):
    base = build(name)
    config = LoraConfig(target_modules="all-linear")
    choose_targets(base, name, config, called_layers(base, name))
    assert config.target_modules == "all-linear"


def test_a_model_without_attention_says_what_to_write():
    base = build("mamba")
    with pytest.raises(UserError, match=r"no attention or MLP .*; write the layers, such as \['in_proj'\]"):
        choose_targets(base, "mamba", LoraConfig(target_modules="all-linear"), called_layers(base, "mamba"))


def save(name, tiny_model, folder):
    shutil.copytree(tiny_model, folder)
    build(name).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        (
            "llama",
            ["nonsense"],
            r"PEFT cannot .*'nonsense'.* not found in the base model.*such as \['down_proj', 'gate",
        ),
        ("falcon_h1", ["out_proj"], r"PEFT cannot .*'out_proj' is incompatible with Mamba-based models.*such as \["),
        ("mixtral", ["w1"], r"PEFT cannot .*without also targeting w3 because they are fused.*'q_proj'"),
        ("mixtral", ["w2"], r"adapter on 'model.layers.0.mlp.experts' \(MixtralExperts\); targets must be linear"),
        ("gemma3", ["q_proj"], r"no text calls the layer 'model.vision_tower.*q_proj'.*such as .*'q_proj'"),
    ],
    ids=["nothing", "kernel", "half", "experts", "images"],
)
def test_targets_that_cannot_be_adapted_are_named(name, targets, message, tiny_model, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        loaded(save(name, tiny_model, tmp_path / "model"), targets=targets)
    assert "\n" not in str(caught.value)


def test_targets_that_only_a_part_of_the_model_has(tiny_model, tmp_path):
    policy = loaded(save("gemma3", tiny_model, tmp_path / "model"), targets=r".*language_model.*\.q_proj")
    assert len(policy.trainable_parameters()) == 2 * 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_what_was_chosen_is_said_exported_and_continued(tiny_model, tmp_path, caplog):
    caplog.set_level("INFO", "lit_debias")
    folder = save("mixtral", tiny_model, tmp_path / "model")
    policy = loaded(folder)
    assert f"Adapters of '{folder}' sit on 8 of its layers: k_proj, o_proj, q_proj, v_proj" in caplog.text
    perturb(policy)
    rollout = policy.encode(PROMPTS, ANSWERS)
    found = policy.logprobs(rollout)
    policy.lm.save_pretrained(tmp_path / "adapter", selected_adapters=["default"], save_embedding_layers=False)
    base = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = plain_logprobs(PeftModel.from_pretrained(base, tmp_path / "adapter"), rollout)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)
    again = loaded(folder, adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(again.logprobs(rollout), found, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_an_adapter_on_what_is_never_called_is_not_continued(tiny_model, tmp_path):
    folder = save("gemma3", tiny_model, tmp_path / "model")
    lm = get_peft_model(build("gemma3"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    lm.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter '.*adapter': no text calls the layer '.*vision_tower"):
        loaded(folder, adapter=str(tmp_path / "adapter"))


def test_a_subclass_is_linear_where_it_computes_what_its_parent_does():
    class Router(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs).softmax(-1)

    class Renamed(nn.Linear):
        pass

    assert is_linear(nn.Linear(4, 3))
    assert is_linear(Renamed(4, 3))
    assert not is_linear(Router(4, 3))
    codes = Renamed(4, 3)
    codes.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    assert not is_linear(codes)
    assert not is_linear(nn.Embedding(3, 4))
