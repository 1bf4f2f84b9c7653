"""The policy: encoding, reference, merged copy, quantised base."""

import dataclasses

import pytest
import torch
from policy_answers import ANSWERS, PROMPTS, log_probs_and_gradients
from support import dense_flex, loaded, perturb, save_tiny_model, without_lean
from torch import nn

from lit_debias.errors import UserError
from lit_debias.forward.choose import FormOptions
from lit_debias.models.adapters import TRAINED
from lit_debias.models.layers import merged_weight
from lit_debias.models.loading import end_of_sequence_ids
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch


def test_a_fresh_adapter_is_the_reference(tiny_model):
    policy = loaded(tiny_model)
    rollout = policy.encode(PROMPTS, ANSWERS)
    torch.testing.assert_close(policy.logprobs(rollout), policy.logprobs(rollout, reference=True), rtol=0, atol=0)


def test_the_reference_ignores_training_and_training_is_restored(tiny_model):
    policy = loaded(tiny_model)
    rollout = policy.encode(PROMPTS, ANSWERS)
    before = policy.logprobs(rollout)
    perturb(policy)
    after = policy.logprobs(rollout)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(policy.logprobs(rollout, reference=True), before)
    torch.testing.assert_close(policy.logprobs(rollout), after)


def test_log_probs_are_those_of_hugging_face(tiny_model):
    policy = loaded(tiny_model)
    perturb(policy)
    rollout = policy.encode(PROMPTS, ANSWERS)
    found = policy.logprobs(rollout, temperature=0.7)
    for p in range(2):
        for g in range(2):
            prompt = rollout.prompt_ids[p][rollout.prompt_mask[p]]
            answer = rollout.completion_ids[p, g][rollout.completion_mask[p, g]]
            logits = policy.causal_lm(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            expected = (logits / 0.7).log_softmax(-1).gather(-1, answer[:, None])[:, 0]
            torch.testing.assert_close(found[p, g][: len(answer)], expected, rtol=1e-4, atol=1e-5)
            assert not found[p, g][len(answer) :].any()


def test_eager_attention_sees_the_same_groups(tiny_model):
    policy = loaded(tiny_model)
    perturb(policy)
    rollout = policy.encode(PROMPTS, ANSWERS)
    expected = policy.logprobs(rollout)
    without_lean(policy)
    policy.causal_lm.set_attn_implementation("eager")
    torch.testing.assert_close(policy.logprobs(rollout), expected, rtol=1e-4, atol=1e-5)


def test_two_temperatures_cost_one_forward(tiny_model):
    policy = loaded(tiny_model)
    rollout = policy.encode(PROMPTS, ANSWERS)
    both = policy.logprobs_at(rollout, (0.5, 1.0))
    torch.testing.assert_close(both[0], policy.logprobs(rollout, 0.5))
    torch.testing.assert_close(both[1], policy.logprobs(rollout, 1.0))


def test_continuing_an_adapter_against_the_base(tiny_model, tmp_path):
    first = loaded(tiny_model)
    rollout = first.encode(PROMPTS, ANSWERS)
    base = first.logprobs(rollout)
    perturb(first)
    trained = first.logprobs(rollout)
    first.lm.save_pretrained(tmp_path)

    second = loaded(tiny_model, adapter=str(tmp_path), reference="base")
    torch.testing.assert_close(second.logprobs(rollout), trained)
    torch.testing.assert_close(second.logprobs(rollout, reference=True), base)
    assert (trained - base).abs().max() > 1e-3
    with second.as_reference():
        pass
    torch.testing.assert_close(second.logprobs(rollout), trained)
    assert list(second.lm.peft_config) == ["default"]  # no copy that nobody asks


def test_continuing_from_an_adapter_keeps_a_frozen_copy_as_reference(tiny_model, tmp_path):
    first = loaded(tiny_model)
    perturb(first)
    rollout = first.encode(PROMPTS, ANSWERS)
    trained = first.logprobs(rollout)
    first.lm.save_pretrained(tmp_path)

    second = loaded(tiny_model, adapter=str(tmp_path))
    assert all("reference" not in name for name in second.trainable_parameters())
    torch.testing.assert_close(second.logprobs(rollout), trained)
    perturb(second)
    assert (second.logprobs(rollout) - trained).abs().max() > 1e-3
    torch.testing.assert_close(second.logprobs(rollout, reference=True), trained)
    names = set(second.trainable_parameters())
    assert names
    with second.as_reference():
        assert not second.trainable_parameters().keys() - names
    assert set(second.trainable_parameters()) == names


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_inference_copy_is_base_plus_lora_and_follows_training(tiny_model, quantization):
    policy = loaded(tiny_model, quantization=quantization)
    perturb(policy)
    ids = torch.arange(3, 12)[None]
    copy = policy.forms.merged()
    torch.testing.assert_close(copy(ids).logits, policy.causal_lm(ids).logits, rtol=2e-3, atol=2e-3)
    perturb(policy)
    torch.testing.assert_close(policy.forms.merged()(ids).logits, policy.causal_lm(ids).logits, rtol=2e-3, atol=2e-3)
    assert copy.training is False


def test_the_policy_is_the_network_that_samples_but_4_bit_layers_stay_in_train_mode(tiny_model):
    policy = loaded(tiny_model, quantization="nf4", dropout=0.5)
    policy.forms.merged()
    policy.eval().train()  # as Lightning does around validation
    training = {name for name, module in policy.causal_lm.named_modules() if module.training}
    projections = {name for name, _ in policy.causal_lm.named_modules() if name.endswith("_proj")}
    assert training == {name + part for name in projections for part in ("", ".base_layer", ".lora_dropout.default")}


def test_the_inference_copy_shares_what_no_adapter_touches(tiny_model):
    policy = loaded(tiny_model, targets=["q_proj"])
    copy = policy.forms.merged()
    assert copy.model.embed_tokens.weight is policy.causal_lm.model.embed_tokens.weight
    assert copy.model.layers[0].mlp.up_proj.weight is policy.causal_lm.model.layers[0].mlp.up_proj.weight
    assert isinstance(copy.model.layers[0].self_attn.q_proj, nn.Linear)


def test_merging_never_moves_a_quantised_base(tiny_model):
    policy = loaded(tiny_model, quantization="nf4")
    layer = policy.causal_lm.model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.quant_type == "nf4"
    assert layer.base_layer.weight.quant_state.nested  # double quantisation
    packed = layer.base_layer.weight.data.clone()
    for _ in range(3):
        perturb(policy)
        policy.forms.merged()
    assert torch.equal(layer.base_layer.weight.data, packed)


def test_merged_weight_by_hand(tiny_model):
    policy = loaded(tiny_model, rank=2, alpha=6.0)
    layer = policy.causal_lm.model.layers[1].mlp.down_proj
    perturb(policy)
    expected = layer.base_layer.weight + 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged_weight(layer), expected)


def test_only_fp32_adapters_are_trained(tiny_model):
    policy = loaded(tiny_model, dtype="bfloat16")
    assert policy.causal_lm.model.embed_tokens.weight.dtype == torch.bfloat16
    trained = policy.trainable_parameters()
    assert trained
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        policy = loaded(tiny_model, gradient_checkpointing=checkpointing)
        perturb(policy)
        policy(pack_rollout(policy.encode(PROMPTS, ANSWERS))).logprobs.sum().backward()
        gradients.append([p.grad for p in policy.trainable_parameters().values()])
        with policy.forms.live() as live:
            assert not live.is_activation_checkpointing  # it would switch the key-value cache off
        assert policy.causal_lm.is_activation_checkpointing is checkpointing
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "up_proj"]], ids=["all", "some"])
@pytest.mark.parametrize(
    "options",
    [{"keep_base": True}, {"keep_base": False}, {"gradient_checkpointing": True}, {"attention": "flex"}],
    ids=str,
)
def test_training_has_the_log_probs_and_gradients_of_hugging_face(
    tiny_model, quantization, targets, options, monkeypatch
):
    dense_flex(monkeypatch)
    monkeypatch.setattr(FormOptions, "check_device", lambda *_: None)
    policy = loaded(tiny_model, quantization=quantization, targets=targets, **options)
    perturb(policy)
    found = [log_probs_and_gradients(policy) for _ in range(2)][1]  # the second time with what the first has kept
    reference = policy.logprobs(policy.encode(PROMPTS, ANSWERS), reference=True)
    without_lean(policy)
    expected = log_probs_and_gradients(policy)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    plain = policy.logprobs(policy.encode(PROMPTS, ANSWERS), reference=True)
    torch.testing.assert_close(reference, plain, rtol=1e-4, atol=1e-5)


def test_flex_attention_says_where_it_cannot_be(tiny_model, monkeypatch):
    with pytest.raises(UserError, match="'flex' trains on CUDA devices alone; write attention: sdpa"):
        loaded(tiny_model, attention="flex")
    monkeypatch.setattr(FormOptions, "check_device", lambda *_: None)
    monkeypatch.setattr("lit_debias.forward.choose.why_not_lean", lambda model: "it has no sliding window")
    with pytest.raises(UserError, match="needs the lean forward pass, and it has no sliding window; write"):
        loaded(tiny_model, attention="flex")


def test_dropout_is_hugging_faces_business(tiny_model):
    policy = loaded(tiny_model, dropout=0.5)
    perturb(policy)
    torch.manual_seed(0)
    first, _ = log_probs_and_gradients(policy)
    second, _ = log_probs_and_gradients(policy)
    assert not torch.equal(first, second)


def test_a_plain_base_is_kept_once(tiny_model):
    policy = loaded(tiny_model)
    attention = policy.causal_lm.model.layers[0].self_attn
    before = attention.k_proj.base_layer.weight.clone()
    log_probs_and_gradients(policy)
    fused = policy.forms.lean_model.layers[0].qkv.base
    assert attention.k_proj.base_layer.weight.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    assert torch.equal(attention.k_proj.base_layer.weight, before)


def test_a_quantised_base_is_kept_where_memory_allows(tiny_model, monkeypatch):
    size = loaded(tiny_model).causal_lm.num_parameters() * 4
    for free, kept in ((4 * size, True), (4 * size - 4, False)):
        monkeypatch.setattr("lit_debias.forward.choose.free_memory", lambda device, free=free: free)
        policy = loaded(tiny_model, quantization="nf4")
        log_probs_and_gradients(policy)
        assert (policy.forms.lean_model.layers[0].qkv.base is not None) is kept


def test_the_chat_template_and_the_system_prompt_are_applied(tiny_model):
    policy = loaded(tiny_model, system_prompt="Be fair.")
    ids, mask = policy.encode_prompts(["hello there", "hi"])
    text = policy.tokenizer.decode(ids[0][mask[0]])
    assert text == (
        "<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not mask[1, 0]  # the shorter prompt is padded on the left
    assert mask[1, -1]


def test_a_model_without_chat_template_works(tmp_path):
    policy = loaded(save_tiny_model(tmp_path, chat_template=None))
    ids, mask = policy.encode_prompts(["the rider"])
    assert policy.tokenizer.decode(ids[0][mask[0]]) == "the rider"
    with pytest.raises(UserError, match="no chat template"):
        loaded(tmp_path, system_prompt="Be fair.")


def test_every_end_of_sequence_id_counts(tiny_model):
    policy = loaded(tiny_model)
    policy.causal_lm.generation_config.eos_token_id = [7, 9]
    assert end_of_sequence_ids(policy.causal_lm, policy.tokenizer) == (2, 7, 9)


def test_encode_keeps_texts_and_masks(tiny_model):
    policy = loaded(tiny_model)
    rollout = policy.encode(PROMPTS, ANSWERS)
    assert policy.decode(rollout.completion_ids, rollout.completion_mask) == ANSWERS
    assert rollout.prompts is PROMPTS
    assert dataclasses.asdict(rollout)["truncated"].sum() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "./nowhere"}, "no such file or folder"),
        ({"model": "pkg://no_such_package/x.gguf"}, "is not installed"),
        ({"adapter": "nowhere"}, "no adapter_config.json"),
        ({"rank": 0}, "rank >= 1"),
        ({"dropout": 1.0}, "dropout < 1"),
        ({"dropout": 0.1, "attention": "flex"}, "knows no LoRA dropout; write attention: sdpa or dropout: 0"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(tiny_model, arguments, message):
    with pytest.raises(UserError, match=message):
        QLoRAPolicy(**{"model": str(tiny_model), **arguments})


def test_wrong_targets_and_long_prompts_are_named(tiny_model):
    with pytest.raises(UserError, match=r"nonsense.* not found in the base model.*write linear layers of its decoder"):
        loaded(tiny_model, targets=["nonsense"])
    with pytest.raises(UserError, match="tokens; prompts need 1 to 5"):
        loaded(tiny_model, max_prompt_tokens=5).encode_prompts(["a long prompt with many words"])


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_share_a_base_to_the_bit(tiny_model, tmp_path, quantization):
    """One after the other around one base, as an evaluation has them, and each around a base of its own."""
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        policy = loaded(tiny_model)
        perturb(policy)
        folders.append(str(tmp_path / str(seed)))
        policy.lm.save_pretrained(folders[-1], selected_adapters=[TRAINED])

    def answers(policy):
        prompts = PromptBatch(["The riders were", "Nurses"])
        rollout = LocalEngine(8).generate(policy, prompts, 2, seed=3)
        return rollout.texts, policy.logprobs(rollout), policy.logprobs(rollout, reference=True)

    shared, base = [], None
    for adapter in (None, *folders, None):
        policy = QLoRAPolicy(str(tiny_model), quantization, "float32", adapter=adapter).load("cpu", base=base)
        shared.append(answers(policy))
        base = policy.release()
    alone = [
        answers(QLoRAPolicy(str(tiny_model), quantization, "float32", adapter=adapter).load())
        for adapter in (None, *folders, None)
    ]
    for (texts, own, reference), (expected, own_alone, reference_alone) in zip(shared, alone, strict=True):
        assert texts == expected
        assert torch.equal(own, own_alone)
        assert torch.equal(reference, reference_alone)
    assert not torch.equal(shared[1][1], shared[2][1])
