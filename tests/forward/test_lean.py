"""The lean forward pass against Hugging Face's own: same logits, whatever the model's details."""

from functools import partial

import cuda_graphs
import pytest
import torch
import transformers
from lean_models import GEMMA3, LLAMA31, SIZES, assert_rollouts_follow_training, build, model_folder, policy  # noqa: F401  (fixtures among them)
from torch import nn
from transformers.activations import GELUTanh

from lit_debias.errors import UserError
from lit_debias.forward import functions as lean_functions
from lit_debias.forward import lean as lean_model
from lit_debias.forward import linear as fused_linear
from lit_debias.forward.functions import Norm
from lit_debias.forward.lean import LeanModel, why_not_lean
from lit_debias.forward.linear import FusedLinear
from lit_debias.forward.memory import KeptBytes
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.choose import DecoderChoice
from lit_debias.rollout.decoders import HuggingFaceDecoder, LeanDecoder
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MODELS = {
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied, every bias": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 16}),
    "llama, one key for all": ("Llama", {"num_key_value_heads": 1}),
    "llama 3.1 rope": ("Llama", {"rope_parameters": {**LLAMA31, "rope_theta": 1e4}}),
    "yarn rope": ("Llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "other activation, epsilon": ("Llama", {"hidden_act": "gelu", "rms_norm_eps": 0.5}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma 3": ("Gemma3", {"head_dim": 16, **GEMMA3}),
}


@pytest.mark.parametrize("shape", [(70, 24), (65, 3, 8)])  # hidden states, and heads as Qwen3 has them
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_norm_of_many_rows_is_torchs(shape, dtype, monkeypatch):
    torch.manual_seed(0)
    values, grad = (torch.randn(shape, dtype=dtype) * 3 for _ in range(2))
    values[0] = 0  # where epsilon is all there is
    norm, found = Norm(torch.rand(shape[-1], dtype=dtype) + 0.5, 1e-5), []
    for many in (64, 1000):
        monkeypatch.setattr(lean_functions, "_MANY_ROWS", many)
        given = values.clone().requires_grad_()
        result = lean_functions.rms_norm(given, norm)
        assert ("_RMSNorm" in type(result.grad_fn).__name__) == (many == 64)
        result.backward(grad)
        found.append((result.detach(), given.grad))
    for own, torchs in zip(*found, strict=True):
        torch.testing.assert_close(own, torchs, **({"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}))
    assert torch.equal(given.detach(), values)


@pytest.mark.parametrize("rows", [3, 70])  # torch's kernel, and ours
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_a_norm_with_an_offset_is_rounded_once(rows, scale):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    module, values = Gemma3RMSNorm(24), torch.randn(rows, 24).bfloat16() * 3
    module.weight.data = torch.randn(24).bfloat16()
    found = lean_functions.rms_norm(values, lean_model._norm(module, lean_model.Family(offset_norms=True), scale))
    wide = values.float() * values.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, (wide * (1 + module.weight.float()) * scale).bfloat16(), rtol=0.005, atol=1e-6)
    if scale == 1.0:
        torch.testing.assert_close(found, module(values), rtol=0.005, atol=1e-6)


class Plain(nn.Module):
    """The same function, under a name that says nothing."""

    def __init__(self, activation):
        super().__init__()
        self.forward = activation.forward


@pytest.mark.parametrize("activation", [nn.SiLU(), GELUTanh()], ids=["silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gated_product_is_torchs_to_the_bit_and_keeps_its_input_alone(activation, dtype):
    values, grad = torch.randn(5, 12, dtype=dtype) * 3, torch.randn(5, 6, dtype=dtype)
    found = []
    for function, kept in ((activation, 60), (Plain(activation), 60 + 30)):  # autograd keeps activation(gate) too
        given = values.clone().requires_grad_()
        counted = KeptBytes(there_anyway=())
        with counted.counting():
            result = lean_functions.gated(given, function)
        assert counted.total == kept * dtype.itemsize
        result.backward(grad)
        found.append((result.detach(), given.grad))
    for own, torchs in zip(*found, strict=True):
        assert torch.equal(own, torchs)


@pytest.mark.parametrize("activation", [nn.SiLU(), GELUTanh()], ids=["silu", "gelu"])
def test_the_gradient_of_the_gated_product_by_finite_differences(activation):
    values = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: lean_functions.gated(values, activation), (values,))


def test_the_gradient_of_the_norm_by_finite_differences():
    torch.manual_seed(0)
    norm = Norm(torch.rand(3, dtype=torch.float64) + 0.5, 1e-5)
    values = torch.randn(64, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: lean_functions.rms_norm(values, norm), (values,))


@pytest.mark.parametrize("graphed", [False, True], ids=["plain", "graphed"])
@pytest.mark.parametrize(("kind", "options"), MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_logits_are_those_of_hugging_face(kind, options, graphed, monkeypatch):
    graphs = cuda_graphs.emulate(monkeypatch)
    model = build(kind, options)
    assert why_not_lean(model) is None
    lean, plain = LeanDecoder(LeanModel(model, torch.float32).refreshed(), graphed=graphed), HuggingFaceDecoder(model)
    ids = torch.randint(3, 97, (3, 9))
    mask = torch.arange(9) >= torch.tensor([[0], [4], [8]])  # left padding, down to one token
    first = [decoder.start(ids, mask, 2, 6) for decoder in (lean, plain)]
    torch.testing.assert_close(*first, rtol=1e-4, atol=1e-4)
    rows = 6
    for step in range(6):
        if step in (2, 4):  # rows of all prompts go, then all but one
            kept = torch.tensor([0, 3, 5] if step == 2 else [1])
            rows = len(kept)
            for decoder in (lean, plain):
                decoder.keep(kept)
        tokens = torch.randint(3, 97, (rows,))
        torch.testing.assert_close(lean.step(tokens), plain.step(tokens), rtol=1e-4, atol=1e-4)
    assert graphs.replays == (3 if graphed else 0)  # recorded at the first step, and anew each time rows go


@torch.no_grad()
def test_groups_may_shrink_unevenly_and_again():
    model = build("Llama", {})
    lean, plain = LeanDecoder(LeanModel(model, torch.float32).refreshed()), HuggingFaceDecoder(model)
    mask = torch.arange(5) >= torch.tensor([[0], [2], [1]])
    ids = torch.randint(3, 97, (3, 5))
    for decoder in (lean, plain):
        decoder.start(ids, mask, 4, 6)
    rows = 12
    for kept in (None, [0, 2, 3, 5], None, [1, 2, 3], None):  # three, one and no row of a group are left; then two, one
        if kept is not None:
            rows = len(kept)
            for decoder in (lean, plain):
                decoder.keep(torch.tensor(kept))
        tokens = torch.randint(3, 97, (rows,))
        torch.testing.assert_close(lean.step(tokens), plain.step(tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_no_padding_is_read(monkeypatch):
    lean = LeanModel(build("Llama", {}), torch.float32).refreshed()
    decoder, embedding, read = LeanDecoder(lean), lean.embedding, []
    monkeypatch.setattr(lean, "embedding", lambda ids: read.append(ids.tolist()) or embedding(ids))
    decoder.start(torch.tensor([[0, 0, 5], [7, 8, 9]]), torch.tensor([[False, False, True], [True] * 3]), 2, 1)
    assert read == [[5, 7, 8, 9]]


@torch.no_grad()
def test_prompts_of_one_length_need_no_mask_and_give_the_same():
    model = build("Llama", {})
    lean, plain = LeanDecoder(LeanModel(model, torch.float32).refreshed()), HuggingFaceDecoder(model)
    ids, mask = torch.randint(3, 97, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    for decoder in (lean, plain):
        decoder.start(ids, mask, 3, 1)
    tokens = torch.randint(3, 97, (6,))
    torch.testing.assert_close(lean.step(tokens), plain.step(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("Gemma2", {"head_dim": 8}, "no lean form of Gemma2ForCausalLM"),
        ("Gemma3", {"final_logit_softcapping": 30.0}, "does not know final_logit_softcapping"),
        ("Gemma3", {"attn_logit_softcapping": 50.0}, "does not know attn_logit_softcapping"),
        ("Gemma3", {"use_bidirectional_attention": True}, "does not know use_bidirectional_attention"),
        ("Gemma3", {"rope_parameters": {"full_attention": DYNAMIC}}, "'dynamic'"),
        ("Llama", {"rope_parameters": DYNAMIC}, "'dynamic'"),
    ],
)
def test_what_the_lean_pass_does_not_know_is_named(kind, options, reason):
    assert reason in why_not_lean(build(kind, options))


def test_a_class_of_ones_own_is_not_known_by_its_parent():
    class Mine(transformers.LlamaForCausalLM):
        pass

    assert "Mine" in why_not_lean(Mine(transformers.LlamaConfig(**SIZES)))


def test_a_fused_linear_by_hand(monkeypatch):
    first, second = nn.Linear(2, 1), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0]]))
        first.bias.fill_(10.0)
        second.weight.copy_(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    inputs = torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]])
    expected = [[[13.0, 7.0, 11.0]], [[12.0, 4.0, 6.0]]]
    for dtype in (torch.float32, torch.bfloat16):
        for packs in (fused_linear._onednn_packs, lambda weight: False):  # with and without the CPU's help
            monkeypatch.setattr(fused_linear, "_onednn_packs", packs)
            linear = FusedLinear([first, second], dtype)
            linear.refresh()
            assert linear.merged(inputs.to(dtype)).tolist() == linear.adapted(inputs.to(dtype)).tolist() == expected


def test_a_rollout_follows_training_in_bf16_on_a_4_bit_base(policy):
    assert_rollouts_follow_training(policy)


def test_the_engine_says_which_decoder_it_uses(policy, caplog):
    caplog.set_level("INFO")
    prompts = PromptBatch(["the rider"])
    for arguments, said in (
        ({"decoder": "lean"}, "the lean decoder (as configured)"),
        ({"decoder": "hugging_face"}, "Hugging Face's forward pass (as configured)"),
        ({"weights": "live"}, "Hugging Face's forward pass (weights are live)"),
    ):
        caplog.clear()
        engine = LocalEngine(2, **arguments)
        for _ in range(2):
            engine.generate(policy, prompts, 2, 0)
        assert caplog.messages == [f"Rollouts use {said}."]


def test_asking_for_the_lean_decoder_where_it_cannot_be_is_an_error(policy, monkeypatch):
    with pytest.raises(UserError, match="merged weights only"):
        LocalEngine(weights="live", decoder="lean")
    monkeypatch.setattr(policy.forms, "lean_obstacle", "it has no lean form of Mine")
    with pytest.raises(UserError, match="no lean form of Mine; write decoder: auto"):
        LocalEngine(2, decoder="lean").generate(policy, PromptBatch(["the rider"]), 2, 0)


def assert_samples_what_the_plain_engine_does(model_folder, **options):
    policy = QLoRAPolicy(str(model_folder), quantization="none", dtype="float32", rank=4)
    policy = policy.load("cpu")
    policy.eos_token_ids = tuple(range(3, 40))  # rows end early, and are dropped
    engines = [LocalEngine(6), LocalEngine(6, **options)]
    for prompts in (["the rider", "people from the north are"], ["the rider", "the north"]):
        plain, other = (engine.generate(policy, PromptBatch(prompts), 4, seed=1) for engine in engines)
        assert plain.completion_ids.equal(other.completion_ids)
        torch.testing.assert_close(plain.logprobs, other.logprobs, atol=1e-4, rtol=0)
        assert other.completion_mask.sum(2).unique().numel() > 2


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own compiler imports what it deprecates
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.processes)])
def test_the_compiled_decoder_samples_what_the_other_one_does(backend, model_folder, caplog, monkeypatch):
    """Run as it was traced; torch's translation into C++ takes a quarter of a minute, and has its own run."""
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    assert_samples_what_the_plain_engine_does(model_folder, torch_compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    said = "Rollouts use the lean decoder (as configured), which is compiled first: that takes a minute or so."
    assert caplog.messages.count(said) == 1


def test_a_graphed_engine_samples_what_the_other_one_does(model_folder, monkeypatch):
    graphs = cuda_graphs.emulate(monkeypatch)
    monkeypatch.setattr(DecoderChoice, "_check_machine", lambda *_: None)
    assert_samples_what_the_plain_engine_does(model_folder, cuda_graph=True)
    assert graphs.replays > 2


def test_a_graph_needs_a_gpu(policy):
    with pytest.raises(UserError, match="cuda_graph needs a CUDA device; write cuda_graph: false"):
        LocalEngine(6, cuda_graph=True).generate(policy, PromptBatch(["the rider"]), 2, seed=1)


@pytest.mark.parametrize("option", ["torch_compile", "cuda_graph"])
@pytest.mark.parametrize("options", [{"weights": "live"}, {"decoder": "hugging_face"}])
def test_only_the_lean_decoder_is_compiled_and_graphed(option, options):
    with pytest.raises(UserError, match=f"{option} is for the lean decoder alone; write weights: merged"):
        LocalEngine(**{option: True}, **options)


def test_compiling_needs_a_model_that_the_lean_decoder_knows_and_a_compiler(policy, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"install g\+\+, set CXX, or write torch_compile: false"):
        LocalEngine(2, torch_compile=True).generate(policy, PromptBatch(["the rider"]), 2, 0)
    monkeypatch.setattr(policy.forms, "lean_obstacle", "it has no lean form of Mine")
    with pytest.raises(UserError, match="no lean form of Mine; write torch_compile: false"):
        LocalEngine(2, torch_compile=True).generate(policy, PromptBatch(["the rider"]), 2, 0)
    with pytest.raises(UserError, match="no lean form of Mine; write decoder: auto and torch_compile: false"):
        LocalEngine(2, decoder="lean", torch_compile=True).generate(policy, PromptBatch(["the rider"]), 2, 0)
