"""The probe: which way to log-probs and which decoder is taken, and what is refused; against plain Hugging Face."""

import logging
from types import SimpleNamespace

import pytest
import torch
from support import loaded, perturb, plain_logprobs, save_tiny_model
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
)

from lit_debias.errors import UserError
from lit_debias.forward.lean import LeanModel
from lit_debias.models.attention_windows import Reach
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.probing import ways
from lit_debias.models.probing.layouts import ARowEach, Network, OneByOne, Packed, why_not_packed
from lit_debias.packing.tokens import pack_rollout
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

PROMPTS = PromptBatch(["people from the north and people from the south are", "the rider"])
ANSWERS = [["kind because each person", "late"], ["judged on evidence and work", "the north"]]
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
SMALL = {"vocab_size": 320, "hidden_size": 32, "initializer_range": 0.3}
ATTENTION = ["q_proj", "v_proj"]
PLAIN = "Hugging Face's forward pass"

# What the family does otherwise, its model, targets, and the way and the decoder that are right for it.
FAMILIES = {
    "windows on some layers": (
        lambda: GptOssForCausalLM(
            GptOssConfig(**SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=6)
        ),
        ATTENTION,
        "packed groups",
        PLAIN,
    ),
    "local attention by places": (
        lambda: GPTNeoForCausalLM(
            GPTNeoConfig(
                **SMALL,
                num_layers=2,
                num_heads=4,
                intermediate_size=48,
                window_size=6,
                attention_types=[[["global", "local"], 1]],
                max_position_embeddings=200,
            )
        ),
        "all-linear",
        "a row for each completion",
        PLAIN,
    ),
    "ALiBi": (
        lambda: BloomForCausalLM(BloomConfig(**SMALL, n_layer=2, n_head=4)),
        "all-linear",
        "a row for each completion",
        PLAIN,
    ),
    "ALiBi by places": (
        lambda: MptForCausalLM(
            MptConfig(vocab_size=320, d_model=32, n_layers=2, n_heads=4, max_seq_len=200, initializer_range=0.3)
        ),
        "all-linear",
        "a row for each completion",
        PLAIN,
    ),
    "convolutions": (
        lambda: Lfm2ForCausalLM(Lfm2Config(**SIZES, full_attn_idxs=[1], block_auto_adjust_ff_dim=False)),
        "all-linear",
        "a row for each completion",
        f"{PLAIN}, prompt by prompt",
    ),
    "a recurrent state": (
        lambda: MambaForCausalLM(MambaConfig(vocab_size=320, hidden_size=32, state_size=4, num_hidden_layers=2)),
        ["in_proj"],
        "a row for each completion",
        f"{PLAIN}, prompt by prompt",
    ),
    "experts drawn at random in train mode": (
        lambda: PhimoeForCausalLM(
            PhimoeConfig(
                **SIZES,
                num_local_experts=2,
                num_experts_per_tok=2,
                sliding_window=None,
                router_jitter_noise=0.3,
                input_jitter_noise=0.3,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            )
        ),
        ATTENTION,
        "packed groups",
        PLAIN,
    ),
    "capped logits": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=5.0, sliding_window=6)),
        "all-linear",
        "packed groups",
        PLAIN,
    ),
    "scaled logits": (
        lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.5)),
        "all-linear",
        "packed groups",
        PLAIN,
    ),
    "divided logits": (
        lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)),
        "all-linear",
        "packed groups",
        PLAIN,
    ),
}


def saved(folder, model):
    """Save a model of another family with the tiny tokenizer, its norms and biases off their fresh values."""
    save_tiny_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_built_like_a_llama_is_right(family, tmp_path):
    make, targets, way, decoder = FAMILIES[family]
    policy = loaded(saved(tmp_path, make()), targets=targets)
    assert policy.forms.way.name == way
    perturb(policy)
    engine = LocalEngine(8)
    sampled = engine.generate(policy, PROMPTS, 2, seed=3)
    assert engine.decoders.name == decoder
    torch.testing.assert_close(sampled.logprobs, plain_logprobs(policy, sampled).detach(), rtol=1e-3, atol=1e-3)

    given = policy.encode(PROMPTS, ANSWERS, end=True)
    weights = torch.randn(given.completion_mask.shape) * given.completion_mask
    plain = plain_logprobs(policy, given)
    (plain * weights).sum().backward()
    expected = {name: p.grad.clone() for name, p in policy.trainable_parameters().items()}
    policy.zero_grad()
    packed = pack_rollout(given)
    tokens = policy(packed)
    (packed.unpack(tokens.logprobs) * weights).sum().backward()
    torch.testing.assert_close(packed.unpack(tokens.logprobs).detach(), plain.detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(policy.logprobs(given), plain.detach(), rtol=1e-3, atol=1e-3)
    found = {name: p.grad for name, p in policy.trainable_parameters().items()}
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)


def test_entropy_and_temperature_of_capped_logits_are_those_of_all_logits(tmp_path):
    make, *_ = FAMILIES["capped logits"]
    policy = loaded(saved(tmp_path, make()))
    given = policy.encode(PROMPTS, [["kind"], ["late"]])
    packed = pack_rollout(given)
    tokens = policy(packed, temperature=0.5)
    assert not tokens.entropy.requires_grad
    for number, p in enumerate(range(2)):
        prompt = given.prompt_ids[p][given.prompt_mask[p]]
        first = (policy.causal_lm(prompt[None]).logits[0, -1].detach() / 0.5).softmax(-1)
        place = int(given.completion_mask[0, 0].sum()) * number
        assert tokens.entropy[place].item() == pytest.approx(float(-(first * first.log()).sum()), rel=1e-4)
        chosen = float(first[packed.targets[place]].log())
        assert tokens.logprobs[place].item() == pytest.approx(chosen, rel=1e-4)
    assert policy(packed, entropy_grad=True).entropy.requires_grad
    torch.testing.assert_close(
        policy.logprobs_at(given, (0.5, 1.0)), torch.stack([policy.logprobs(given, 0.5), policy.logprobs(given)])
    )


@pytest.mark.parametrize("layout", [ARowEach(), OneByOne()])
def test_slower_layouts_give_what_packing_gives_also_where_completions_are_empty(tiny_model, layout):
    policy = loaded(tiny_model)
    rollout = policy.encode(PROMPTS, ANSWERS)
    rollout.completion_mask[0, 1] = False
    network = Network(policy.causal_lm, False, policy.forms.autocast)
    packed = pack_rollout(rollout)
    torch.testing.assert_close(layout(network, packed), Packed(Reach())(network, packed), rtol=1e-4, atol=1e-5)
    rollout.completion_mask.fill_(False)
    nothing = layout(network, pack_rollout(rollout))
    assert nothing.shape == (0, 32)
    nothing.sum().backward()  # a step that masks everything still has a backward pass


def test_what_cannot_be_packed_says_why_before_it_is_tried():
    alibi = FalconForCausalLM(FalconConfig(**SMALL, num_hidden_layers=1, num_attention_heads=4, alibi=True))
    assert why_not_packed(alibi) == "its ALiBi positions are not position_ids"
    convolution, *_ = FAMILIES["convolutions"]
    assert why_not_packed(convolution()) == "layers of the kind 'conv' carry a state from one completion into the next"
    bloom, *_ = FAMILIES["ALiBi"]
    assert why_not_packed(bloom()) == "it takes no position_ids"
    window, *_ = FAMILIES["windows on some layers"]
    assert why_not_packed(window()) is None


def test_a_prompt_counts_with_each_completion_where_the_policy_cannot_pack(tiny_model):
    policy = loaded(tiny_model)
    prompt, completion = torch.ones(3, 10, dtype=torch.bool), torch.ones(3, 2, 6, dtype=torch.bool)
    assert policy.parts(prompt, completion, 40) == [slice(0, 2), slice(2, 3)]  # 10 + 2 x 5 tokens each
    policy.forms.way = SimpleNamespace(packs=False)
    assert policy.parts(prompt, completion, 40) == [slice(0, 1), slice(1, 2), slice(2, 3)]  # 2 x 10 + 2 x 5
    assert policy.parts(prompt, completion, 60) == [slice(0, 2), slice(2, 3)]


# ---------------------------------------------------------------- what is refused, and what is not used


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    model = BertLMHeadModel(BertConfig(**SIZES | {"initializer_range": 0.5}, attention_probs_dropout_prob=0.0))
    with pytest.raises(UserError, match="no causal language model: what it predicts depends on the tokens that follow"):
        loaded(saved(tmp_path, model))
    with pytest.raises(UserError, match="no causal language model"):  # completions are not read by it either
        LanguageModel(str(tmp_path), 2).load(torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:.*")
def test_a_model_whose_numbers_are_not_finite_is_refused(tmp_path):
    save_tiny_model(tmp_path)
    policy = loaded(tmp_path)
    model = policy.lm.unload()
    model.model.norm.weight.data.fill_(torch.inf)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="logits are not finite"):
        loaded(tmp_path)


def test_a_forward_pass_that_fails_is_one_line(tiny_model, monkeypatch):
    def broken(*_arguments):
        raise ValueError("needs pixels")

    monkeypatch.setattr(ways, "plain_logits", broken)
    with pytest.raises(UserError, match=r"fails on plain tokens \(ValueError: needs pixels\); write another model"):
        loaded(tiny_model)


def test_memory_that_runs_out_is_not_the_models_fault(tiny_model, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Packed, "__call__", full)
    monkeypatch.setattr("lit_debias.forward.choose.why_not_lean", lambda model: "it is not")
    with pytest.raises(torch.OutOfMemoryError):
        loaded(tiny_model)


def test_a_lean_form_that_is_wrong_is_not_used(tiny_model, monkeypatch, caplog):
    original = LeanModel.rotations
    turned = lambda self, positions, dtype=None: original(self, positions + 3 * (positions > 5), dtype)  # noqa: E731
    monkeypatch.setattr(LeanModel, "rotations", turned)
    with caplog.at_level(logging.INFO):
        policy = loaded(tiny_model)
    assert policy.forms.way.name == "packed groups"
    assert policy.forms.lean_obstacle.startswith("its logits miss the model's own by ")
    assert (
        "Log-probs are computed by a slower way, packed groups (the lean forward pass: its logits miss" in caplog.text
    )
    perturb(policy)
    given = policy.encode(PROMPTS, ANSWERS)
    torch.testing.assert_close(policy.logprobs(given), plain_logprobs(policy, given).detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="the lean decoder cannot run this model, its logits miss"):
        LocalEngine(decoder="lean").prepare(policy)


def test_numbers_that_change_from_pass_to_pass_are_refused(tiny_model, monkeypatch):
    monkeypatch.setattr("lit_debias.forward.choose.why_not_lean", lambda model: "it is not")
    original = Network.__call__
    noisy = lambda self, ids, **options: original(self, ids, **options) * (1 + 1e-3 * torch.rand(ids.shape)[..., None])  # noqa: E731
    monkeypatch.setattr(Network, "__call__", noisy)
    with pytest.raises(UserError, match=r"no way to compute its log-probs agrees.*other numbers the second time"):
        loaded(tiny_model)


def test_an_adapter_that_moves_the_base_is_refused(tiny_model, monkeypatch):
    from lit_debias.policy import recipe as module

    def moving(base, source, config):
        base.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
        return original(base, source, config)

    original = module.new_adapter
    monkeypatch.setattr(module, "new_adapter", moving)
    with pytest.raises(UserError, match="moves the weights of the base"):
        loaded(tiny_model)
