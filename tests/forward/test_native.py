"""The native forward pass against the lean one: same logits up to bf16, whatever the model's details."""

import ctypes
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from lean_models import GEMMA3, LLAMA31, assert_rollouts_follow_training, build
from support import save_tiny_model

from lit_debias.errors import UserError
from lit_debias.forward import native as native_model
from lit_debias.forward.lean import LeanModel
from lit_debias.forward.native import NativeCache, NativeModel, Rows, why_not_native
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.decoders import LeanDecoder, NativeDecoder
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

needs_instructions = pytest.mark.skipif(
    not native_model._has_instructions() or native_model.compiler() is None,
    reason="needs a CPU with AVX512-BF16 and a C++ compiler",
)
HEADS = {"head_dim": 16}
MODELS = {
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied, every bias": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 64}),
    "llama, one key for all": ("Llama", {"num_key_value_heads": 1}),
    "llama, one key for each": ("Llama", {"num_key_value_heads": 4}),
    "llama, a key for many": ("Llama", {"num_attention_heads": 16, "num_key_value_heads": 1}),
    "llama 3.1 rope": ("Llama", {"rope_parameters": {**LLAMA31, "rope_theta": 1e4}}),
    "other epsilon": ("Llama", {"rms_norm_eps": 0.5}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mistral, window of a tile": ("Mistral", {"sliding_window": 16}),
    "mistral, window of more": ("Mistral", {"sliding_window": 21}),
    "mistral, window in answers alone": ("Mistral", {"sliding_window": 50}),
    "qwen2, windows from a layer on": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "gemma": ("Gemma", {}),
    "gemma 3": ("Gemma3", GEMMA3),
}


def lean_model(kind: str, options: dict) -> LeanModel:
    """Return a model whose weights are what bf16 can say, computing in bf16."""
    return LeanModel(build(kind, {**HEADS, **options}).to(torch.bfloat16), torch.bfloat16)


def exact(kind: str, options: dict) -> LeanModel:
    """Return the same model, computing in fp32."""
    return LeanModel(build(kind, {**HEADS, **options}).to(torch.bfloat16).float(), torch.float32)


@needs_instructions
@pytest.mark.parametrize(("kind", "options"), MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_logits_are_those_of_fp32_up_to_rounding(kind, options):
    given = lean_model(kind, options)
    assert why_not_native(given) is None
    native = NativeDecoder(NativeModel(given).refreshed())
    lean, oracle = LeanDecoder(given.refreshed()), LeanDecoder(exact(kind, options).refreshed())
    decoders = (native, lean, oracle)
    ids = torch.randint(3, 97, (3, 39))
    mask = torch.arange(39) >= torch.tensor([[0], [22], [38]])  # left padding, down to one token; more than two tiles

    found = []

    def compare(logits):
        found.append([each.float().log_softmax(-1) for each in logits])

    compare([decoder.start(ids, mask, 7, 20) for decoder in decoders])
    rows = 21
    for step in range(20):
        if step in (2, 17):  # rows of all prompts go, then all but one
            kept = torch.tensor([0, 1, 5, 6, 9, 20] if step == 2 else [4])
            rows = len(kept)
            for decoder in decoders:
                decoder.keep(kept)
        tokens = torch.randint(3, 97, (rows,))
        compare([decoder.step(tokens) for decoder in decoders])
    logprobs, of_lean, expected = (torch.cat(each) for each in zip(*found, strict=True))
    error, usual = (logprobs - expected).abs(), (of_lean - expected).abs()
    assert expected.std() > 0.8
    assert error.mean() < 2 * usual.mean() < 0.1  # the lean pass has its cache in fp32
    assert error.max() < 4 * usual.max()


@needs_instructions
@torch.inference_mode()
def test_a_row_knows_nothing_of_the_others():
    native = NativeModel(lean_model("Qwen3", {})).refreshed()
    ids, tokens = torch.randint(3, 97, (9, 30)), torch.randint(3, 97, (5, 18))
    mask = torch.arange(30) >= torch.arange(9)[:, None]

    def logits(prompts: list[int], members: int) -> list[torch.Tensor]:
        decoder = NativeDecoder(native)
        found = [decoder.start(ids[prompts], mask[prompts], members, 5)]
        return [*found, *(decoder.step(step[:members].repeat(len(prompts))) for step in tokens)]

    for together, alone in zip(logits(list(range(9)), 2), logits([4], 1), strict=True):
        assert torch.equal(together[8], alone[0])


@needs_instructions
@torch.inference_mode()
def test_threads_do_not_change_what_is_computed(monkeypatch):
    native = NativeModel(lean_model("Llama", {})).refreshed()
    ids = torch.randint(3, 97, (5, 70))  # 350 rows: two passes of the weights
    mask = torch.ones(5, 70, dtype=torch.bool)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        decoder = NativeDecoder(native)
        found.append((decoder.start(ids, mask, 2, 3), decoder.step(torch.arange(10))))
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.fixture
def one_core():
    """All threads of this process on one core: whoever spins keeps the one from it that it waits for."""
    cores = {int(task): os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}
    for task in cores:
        os.sched_setaffinity(task, {min(cores[task])})
    yield
    for task in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(task), cores.get(int(task), cores[os.getpid()]))


def counted(native: NativeModel) -> tuple[int, int]:
    """Return how many jobs threads have shared so far, and how often this process gave up a core."""
    jobs_and_sleeps = (ctypes.c_uint64 * 2)()
    native._library.lit_debias_counts(jobs_and_sleeps)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return jobs_and_sleeps[0], used.ru_nvcsw + used.ru_nivcsw


@needs_instructions
@pytest.mark.parametrize("threads", [2, 4])
@torch.inference_mode()
def test_a_thread_without_a_core_is_not_waited_for(threads, monkeypatch, one_core):
    native, tokens = NativeModel(lean_model("Llama", {})).refreshed(), torch.randint(3, 97, (12, 16))
    ids = torch.randint(3, 97, (2, 20))

    def logits(threads: int) -> tuple[list[torch.Tensor], int, int]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        decoder = NativeDecoder(native)
        decoder.start(ids, torch.ones_like(ids, dtype=torch.bool), 8, len(tokens))
        jobs, switches = counted(native)
        found = [decoder.step(token) for token in tokens]
        now = counted(native)
        return found, now[0] - jobs, now[1] - switches

    alone, _, _ = logits(1)
    shared, jobs, switches = logits(threads)
    assert jobs == 27 * len(tokens)  # eight a layer, embedding, last norm and head
    assert switches < jobs / 2  # a barrier after each job would be one or two a job
    assert all(map(torch.equal, shared, alone))


@needs_instructions
def test_a_matrix_in_tiles_by_hand():
    matrix, tiles = torch.arange(17 * 4).view(17, 4).bfloat16(), torch.ones(2 * 64, dtype=torch.bfloat16)
    pointers = map(native_model._pointer, (matrix, tiles))
    native_model._library().lit_debias_pack(*pointers, 17, 4, 2)
    tiles = tiles.view(2, 2, 16, 2)  # tile, pair of inputs, output, input
    assert tiles[0, :, 3].tolist() == [[12.0, 13.0], [14.0, 15.0]]
    assert tiles[1, :, 0].tolist() == [[64.0, 65.0], [66.0, 67.0]]
    assert not tiles[1, :, 1:].any()  # filled up


@needs_instructions
@pytest.mark.parametrize("count", [1, 5, 16, 17, 300])
def test_a_product_is_torchs(count):
    native = NativeModel(lean_model("Llama", {"vocab_size": 50})).refreshed()
    head, rows = native.model.head, torch.randn(count, 32).bfloat16()
    blocks = torch.nn.functional.pad(rows, (0, 0, 0, -count % 16)).view(-1, 16, 16, 2).transpose(1, 2).contiguous()
    expected = rows.float() @ head.base_weight().float().T
    torch.testing.assert_close(native.product(head, blocks, count), expected, rtol=1e-5, atol=1e-5)


@needs_instructions
@torch.inference_mode()
def test_tokens_go_into_the_columns_of_their_sequence():
    native = NativeModel(lean_model("Llama", {"num_key_value_heads": 2})).refreshed()
    prompts, owns = NativeCache(native, 1, 3), NativeCache(native, 2, 20)
    rotation = native.rotation(20)
    one = torch.tensor([0])
    native(Rows(torch.tensor([5]), one, one, one + 1, rotation, one), prompts, owns)
    native(Rows(torch.tensor([5]), one, one, one + 1, rotation, one, own=one + 1, column=17), prompts, owns)
    keys = owns.keys.view(3, 2, 2, 2, 8, 16, 2)  # layer, sequence, head, tile, pair of numbers, column, number
    values = owns.values.view(3, 2, 2, 1, 16, 16, 2)  # layer, sequence, head, tile, pair of columns, number, column
    of_prompt = prompts.keys.view(3, 1, 2, 1, 8, 16, 2)
    assert keys[0, 1, :, 1, :, 1].equal(of_prompt[0, 0, :, 0, :, 0])  # column 17: the second of the second tile
    assert values[0, 1, :, 0, 8, :, 1].equal(prompts.values.view(3, 1, 2, 1, 8, 16, 2)[0, 0, :, 0, 0, :, 0])
    keys[:, 1, :, 1, :, 1], values[:, 1, :, 0, 8, :, 1] = 0, 0
    assert not owns.keys.any()
    assert not owns.values.any()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("native") / "tiny", head_dim=16)
    policy = QLoRAPolicy(str(folder), quantization="nf4", dtype="bfloat16", rank=4)
    return policy.load("cpu")


@needs_instructions
def test_a_rollout_follows_training_on_a_4_bit_base(policy, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    assert_rollouts_follow_training(policy)
    assert "Rollouts use the native decoder." in caplog.messages


@needs_instructions
def test_finished_rows_are_dropped_without_a_trace(policy, monkeypatch):
    monkeypatch.setattr(policy, "eos_token_ids", tuple(range(0, 400, 4)))
    kept = []
    monkeypatch.setattr(
        NativeDecoder, "keep", lambda self, rows, keep=NativeDecoder.keep: (kept.append(rows), keep(self, rows))
    )
    prompts = PromptBatch(["the rider", "people from the north are"])
    dropping = LocalEngine(12).generate(policy, prompts, 4, seed=1)
    assert kept
    monkeypatch.setattr(policy, "eos_token_ids", ())
    whole = LocalEngine(12).generate(policy, prompts, 4, seed=1)
    mask = dropping.completion_mask
    assert dropping.completion_ids[mask].equal(whole.completion_ids[:, :, : mask.shape[2]][mask])
    assert dropping.logprobs[mask].equal(whole.logprobs[:, :, : mask.shape[2]][mask])


@pytest.mark.parametrize(
    ("kind", "options", "dtype", "reason"),
    [
        ("Llama", {"hidden_act": "gelu"}, torch.bfloat16, "does not know the activation GELUActivation"),
        ("Llama", {"intermediate_size": 40}, torch.bfloat16, "multiples of 16"),
        ("Llama", {"head_dim": 8}, torch.bfloat16, "multiples of 16"),
        ("Llama", {"num_attention_heads": 32, "num_key_value_heads": 1}, torch.bfloat16, "at most 16 heads of queries"),
        ("Llama", {}, torch.float32, "computes in bfloat16"),
    ],
)
def test_what_the_native_pass_does_not_know_is_named(kind, options, dtype, reason, monkeypatch):
    monkeypatch.setattr(native_model, "_has_instructions", lambda: True)
    assert reason in why_not_native(LeanModel(build(kind, {**HEADS, **options}).to(dtype), dtype))


@pytest.fixture(scope="module")
def library() -> Path:
    """What the other tests run."""
    return Path(native_model._library()._name)


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """Nothing is compiled yet, and nothing stays."""
    monkeypatch.setenv("LIT_DEBIAS_CACHE", str(tmp_path))
    monkeypatch.setattr(native_model, "_has_instructions", lambda: True)
    native_model._library.cache_clear()
    yield tmp_path
    native_model._library.cache_clear()


def test_without_the_instructions_the_lean_decoder_is_used(policy, monkeypatch, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(native_model, "_has_instructions", lambda: False)
    LocalEngine(2).generate(policy, PromptBatch(["the rider"]), 2, 0)
    assert caplog.messages == ["Rollouts use the lean decoder (not the native one: it needs a CPU with AVX512-BF16)."]
    with pytest.raises(
        UserError, match=r"the native decoder cannot run this model, it needs a CPU with .*decoder: auto"
    ):
        LocalEngine(2, decoder="native").generate(policy, PromptBatch(["the rider"]), 2, 0)


def test_a_missing_or_failing_compiler_is_named(fresh_library, monkeypatch):
    model = lean_model("Llama", {})
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert why_not_native(model) == "it needs a C++ compiler (g++, or what CXX says)"
    native_model._library.cache_clear()
    failing = fresh_library / "failing"
    failing.write_text("#!/bin/sh\necho 'unknown option -mavx512bf16' >&2; exit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    assert why_not_native(model) == f"{failing} does not compile it: unknown option -mavx512bf16"
    assert {entry.name for entry in fresh_library.iterdir()} == {failing.name, ".lock"}


@needs_instructions
def test_it_is_compiled_once_for_a_cache(fresh_library, monkeypatch):
    assert why_not_native(lean_model("Llama", {})) is None
    [library] = fresh_library.glob("native-*.so")
    assert {entry.name for entry in fresh_library.iterdir()} == {library.name, ".lock"}
    native_model._library.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")  # is not asked again
    assert why_not_native(lean_model("Llama", {})) is None


@needs_instructions
@pytest.mark.parametrize("of_another", [False, True])
def test_a_library_that_others_can_write_is_not_loaded(of_another, library, fresh_library, monkeypatch):
    library = Path(shutil.copy(library, fresh_library))
    somebody_else = os.getuid() + 1
    if of_another:
        monkeypatch.setattr(os, "getuid", lambda: somebody_else)
    else:
        library.chmod(0o775)
    assert why_not_native(lean_model("Llama", {})) == f"{library} is not yours alone to write; delete it"


@needs_instructions
def test_without_a_cache_to_write_the_reason_is_named(fresh_library, monkeypatch):
    (fresh_library / "file").touch()
    monkeypatch.setenv("LIT_DEBIAS_CACHE", str(fresh_library / "file" / "cache"))
    assert "cannot be kept in the cache: [Errno 20] Not a directory" in why_not_native(lean_model("Llama", {}))


def test_live_weights_and_compiling_are_not_for_it():
    with pytest.raises(UserError, match="the native decoder has merged weights only"):
        LocalEngine(weights="live", decoder="native")
    with pytest.raises(UserError, match=r"torch_compile is for the lean decoder alone; write .*decoder: auto"):
        LocalEngine(decoder="native", torch_compile=True)
