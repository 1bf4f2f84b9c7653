"""Attention windows, per layer: sampling, log-probs and gradients of the plain model, one sequence at a time."""

import cuda_graphs
import pytest
import torch
import transformers
from support import dense_flex, perturb, train_tokenizer

from lit_debias.forward.cache import KeyValueCache
from lit_debias.forward.lean import LeanModel
from lit_debias.packing.attention import group_attention
from lit_debias.packing.groups import pack
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.choose import DecoderChoice
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {
    "layer_types": KINDS,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 24,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    },
}
SHORT, MIDDLE = 4, 17  # shorter than every prompt; longer than the prompts, shorter than the longest with its answer
MODELS = {
    "mistral": ("Mistral", {"sliding_window": SHORT}),
    "mistral, in answers alone": ("Mistral", {"sliding_window": MIDDLE}),
    "qwen2, from a layer on": ("Qwen2", {"use_sliding_window": True, "sliding_window": SHORT, "max_window_layers": 1}),
    "qwen3, layer by layer": ("Qwen3", {"use_sliding_window": True, "sliding_window": SHORT, "layer_types": KINDS}),
    "gemma 3": ("Gemma3", {**GEMMA, "sliding_window": SHORT}),
    "gemma 3, in answers alone": ("Gemma3", {**GEMMA, "sliding_window": MIDDLE}),
    "gemma 3, never": ("Gemma3", {**GEMMA, "sliding_window": 400}),
}
PROMPTS = PromptBatch(["people from the north are", "the rider was late"])
ANSWERS = [["kind because of their own work", "late"], ["each person", "judged on evidence and work"]]


def save(folder, kind, options):
    """Save a tiny model with a tokenizer; a fresh norm would hide that it is left out."""
    torch.manual_seed(0)
    config_of = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config"))
    model = getattr(transformers, f"{kind}ForCausalLM")(config_of(**{**SIZES, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    train_tokenizer(chat_template=None).save_pretrained(folder)
    return folder


def load(folder, **options):
    torch.manual_seed(1)
    policy = QLoRAPolicy(str(folder), **{"quantization": "none", "dtype": "float32", "rank": 4, **options})
    policy = policy.load("cpu")
    perturb(policy)
    assert policy.forms.lean_obstacle is None
    return policy


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def policy(request, tmp_path_factory):
    return load(save(tmp_path_factory.mktemp("windows") / "tiny", *request.param))


def plain(policy, rollout):
    """Return log-probs [P, G, T] of the Hugging Face model, one sequence at a time."""
    rows = torch.zeros(rollout.completion_mask.shape)
    for p, g in torch.cartesian_prod(*map(torch.arange, rows.shape[:2])).tolist():
        prompt = rollout.prompt_ids[p][rollout.prompt_mask[p]]
        answer = rollout.completion_ids[p, g][rollout.completion_mask[p, g]]
        logits = policy.causal_lm(torch.cat([prompt, answer])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        rows[p, g, : len(answer)] = logits.log_softmax(-1).gather(-1, answer[:, None])[:, 0]
    return rows


def gradients(policy, total):
    return torch.autograd.grad(total, list(policy.trainable_parameters().values()))


@pytest.mark.parametrize("attention", ["group", "flex"])
def test_log_probs_and_gradients_are_those_of_every_sequence_alone(policy, attention, monkeypatch):
    rollout = policy.encode(PROMPTS, ANSWERS)
    assert len(set(rollout.prompt_mask.sum(1).tolist())) == 2
    expected = plain(policy, rollout)
    weights = torch.randn(expected.shape)
    if attention == "flex":
        monkeypatch.setattr(policy.forms.lean_model, "group_attention", dense_flex(monkeypatch))
    packed = pack_rollout(rollout)
    found = packed.unpack(policy(packed).logprobs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    of_lean, of_plain = (gradients(policy, (values * weights).sum()) for values in (found, expected))
    for mine, theirs in zip(of_lean, of_plain, strict=True):
        assert (mine - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("form", ["plain", "graphed"])
def test_sampling_records_the_log_probs_of_every_sequence_alone(policy, form, monkeypatch):
    cuda_graphs.emulate(monkeypatch)
    monkeypatch.setattr(DecoderChoice, "_check_machine", lambda *_: None)
    monkeypatch.setattr(policy, "eos_token_ids", tuple(range(3, 40)))  # rows end early, and are dropped
    engine = LocalEngine(24, decoder="lean", cuda_graph=form == "graphed")
    rollout = engine.generate(policy, PROMPTS, 4, seed=1)
    assert rollout.completion_mask.sum(2).unique().numel() > 2
    with torch.no_grad():
        expected = plain(policy, rollout)
    torch.testing.assert_close(rollout.logprobs, expected, rtol=1e-4, atol=1e-4)


def test_greedy_answers_are_those_of_generate(policy):
    rollout = LocalEngine(24, decoder="lean").generate(policy, PROMPTS, 1, seed=0, greedy=True)
    for p, mask in enumerate(rollout.prompt_mask):
        prompt = rollout.prompt_ids[p][mask][None]
        options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": list(policy.eos_token_ids)}
        whole = policy.forms.merged().generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert rollout.completion_ids[p, 0][rollout.completion_mask[p, 0]].equal(whole[0, prompt.shape[1] :])


def test_what_the_update_sees_by_hand():
    ids = torch.ones(2, 3, dtype=torch.long)
    mask = torch.tensor([[[1, 1, 1, 1]], [[1, 1, 1, 1]]]).bool()
    packed = pack(ids, torch.tensor([[0, 1, 1], [1, 1, 1]]).bool(), mask.long(), mask)
    seen = packed.prompt_bias(1, torch.float32, window=2)[0, 0] == 0
    assert seen.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    first, second = (packed.completion_bias(1, torch.float32, window=3)[:, 0] == 0).int().tolist()
    assert first == [  # two tokens of a prompt and a place that is empty, three tokens of a completion
        [1, 1, 0, 1, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    assert second == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]


def test_a_window_that_no_text_reaches_costs_nothing(tmp_path):
    policy = load(save(tmp_path / "tiny", "Gemma3", {**GEMMA, "sliding_window": 12}))
    packed = pack(
        *(torch.ones(shape, dtype=kind) for shape in ((1, 5), (1, 2, 8)) for kind in (torch.long, torch.bool))
    )
    assert packed.reached(12) is None  # five of a prompt, and seven that another token follows
    assert packed.reached(11) == 11
    cache = KeyValueCache(policy.forms.lean(), torch.ones(1, 5, dtype=torch.bool), 2, new_tokens=7)
    [sight] = cache._sights.values()
    cache.next_column()
    assert (sight.prompt_mask, sight.prompt_bias, sight.own_bias, sight.start) == (None, None, None, 0)
    assert len(KeyValueCache(policy.forms.lean(), torch.ones(1, 5, dtype=torch.bool), 2, new_tokens=8)._sights) == 2


@pytest.mark.parametrize("decoder", ["lean", "auto"])
def test_a_rollout_follows_training_in_bf16_on_a_4_bit_base(decoder, tmp_path):
    policy = load(
        save(tmp_path / "tiny", "Gemma3", {**GEMMA, "sliding_window": 6}), quantization="nf4", dtype="bfloat16"
    )
    rollout = LocalEngine(24, decoder=decoder).generate(policy, PROMPTS, 4, seed=0)
    difference = (policy.logprobs(rollout) - rollout.logprobs).abs()[rollout.completion_mask]
    assert difference.mean() < 0.1


@torch.no_grad()
def test_bf16_is_as_near_to_fp32_as_hugging_faces(tmp_path):
    folder = save(tmp_path / "tiny", "Gemma3", {**GEMMA, "sliding_window": SHORT})
    exact = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.randint(3, 300, (1, 200))
    everything = torch.ones_like(ids, dtype=torch.bool)
    packed = pack(ids[:, :1], everything[:, :1], ids[None, :, 1:], everything[None, :, 1:])
    lean = LeanModel(model, torch.bfloat16).predicting_states(packed)
    lean = model.lm_head(lean).float().log_softmax(-1)
    expected, usual = (each(ids).logits[0, :-1].float().log_softmax(-1) for each in (exact, model))
    assert (lean - expected).abs().mean() < 1.2 * (usual - expected).abs().mean()
    assert (lean - usual).abs().mean() < 1.2 * (usual - expected).abs().mean()


@pytest.mark.parametrize("window", [1, 3, 140])
@pytest.mark.parametrize("form", ["group", "flex"])
def test_groups_attend_as_far_as_the_window_says(window, form, monkeypatch):
    attention = dense_flex(monkeypatch) if form == "flex" else group_attention
    lengths, answers = torch.tensor([90, 150]), torch.tensor([[140, 30], [1, 200]])
    prompt_mask = torch.arange(150).flip(0) < lengths[:, None]
    mask = torch.arange(200) < answers[..., None]
    groups = pack(torch.ones_like(prompt_mask, dtype=torch.long), prompt_mask, mask.long(), mask)
    query, key, value = tensors = [torch.randn(len(groups.ids), heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    segment = groups.positions.new_tensor([-1] * groups.prompt_tokens + groups.input_mask.nonzero()[:, 1].tolist())
    group = torch.cat([groups.prompt_mask.nonzero()[:, 0], groups.input_mask.nonzero()[:, 0]])
    distance = groups.positions[:, None] - groups.positions
    seen = (group[:, None] == group) & ((segment == -1) | (segment[:, None] == segment))
    seen &= (distance >= 0) & (distance < window) & ((segment[:, None] != -1) | (segment == -1))
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(2, 1)) * 8**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(2, 1))
    found = attention(*tensors, groups, window)
    torch.testing.assert_close(found, expected)
    slope = torch.randn(expected.shape)
    both = [torch.autograd.grad((each * slope).sum(), tensors) for each in (found, expected)]
    torch.testing.assert_close(*both)
