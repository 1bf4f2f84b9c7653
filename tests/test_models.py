"""Where models come from: folders, hub ids, files in packages, and GGUF files that are converted once."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from lit_debias import models
from lit_debias.errors import UserError

gguf = pytest.importorskip("gguf")

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 32, 2, 4, 2, 64


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LIT_DEBIAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An importable package with a model folder and a file inside."""
    folder = tmp_path / "site" / "boxed_models"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('finding a file must not run the package')")
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder.parent)
    importlib.invalidate_caches()
    return folder


def write_gguf(path: Path, tokenizer_folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Write a random Llama with the folder's byte-pair tokenizer as GGUF; return the tensors that went in."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = [" ".join(pair) for pair in merge_rules(tokenizer)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL if t in tokenizer.all_special_tokens else 1 for t in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    tensors = random_tensors(len(vocabulary), seed)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def merge_rules(tokenizer) -> list[list[str]]:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def random_tensors(vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    head = HIDDEN // HEADS
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": (KV_HEADS * head, HIDDEN),
            f"blk.{layer}.attn_v.weight": (KV_HEADS * head, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER),
        }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


# ---------------------------------------------------------------- finding


def test_a_folder_is_itself(tmp_path):
    assert models.locate(str(tmp_path)) == models.resolve(str(tmp_path)) == str(tmp_path)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "llama").mkdir()
    assert models.locate("~/llama") == str(tmp_path / "llama")


@pytest.mark.parametrize("source", ["gpt2", "Qwen/Qwen2.5-1.5B-Instruct"])
def test_what_can_be_a_hub_id_is_left_alone(source):
    assert models.locate(source) == models.resolve(source) == source
    models.check_model(source)


@pytest.mark.parametrize("source", ["", "./llama", "/no/such/model", "~/no-such-model", "a/b/c", "folder/no-such.gguf"])
def test_what_names_nothing_is_a_users_mistake(source):
    with pytest.raises(UserError, match="no such file or folder") as caught:
        models.check_model(source)
    assert "pkg://" in str(caught.value)


def test_a_file_or_folder_in_a_package_is_found_without_importing_it(package):
    assert models.locate("pkg://boxed_models/model") == str(package / "model")
    assert models.locate("pkg://boxed_models/tiny.gguf") == str(package / "tiny.gguf")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pkg://no_such_package_here/model", "'no_such_package_here' is not installed"),
        ("pkg://boxed_models/nothing", "holds no 'nothing'"),
        ("pkg://os.path/model", "not installed"),
        ("pkg:///model", "not installed"),
        ("pkg://json.py", "not installed"),
    ],
)
def test_mistakes_in_a_package_address(package, source, message):
    with pytest.raises(UserError, match=message):
        models.check_model(source)


def test_cache_dir(cache, monkeypatch):
    assert models.cache_dir() == cache
    monkeypatch.delenv("LIT_DEBIAS_CACHE")
    assert models.cache_dir() == Path.home() / ".cache" / "lit-debias"


# ---------------------------------------------------------------- converting


def test_gguf_is_converted_once_and_keeps_its_weights(tmp_path, tiny_model, cache):
    path = tmp_path / "tiny.gguf"
    tensors = write_gguf(path, tiny_model, seed=1)
    folder = Path(models.resolve(str(path)))
    assert folder.parent == cache
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.resolve(str(path)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [entry.name for entry in cache.iterdir()] == [folder.name]  # no working folder is left

    lm = models.load_causal_lm(str(path), dtype=torch.float32)
    state = lm.state_dict()
    assert torch.equal(state["model.embed_tokens.weight"], tensors["token_embd.weight"].bfloat16().float())
    assert torch.equal(
        state["model.layers.1.mlp.down_proj.weight"], tensors["blk.1.ffn_down.weight"].bfloat16().float()
    )
    tokenizer = models.load_tokenizer(str(path))
    text = "The delivery rider was late."
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_files_of_one_name_and_size_are_told_apart(tmp_path, tiny_model):
    first, second = tmp_path / "a" / "tiny.gguf", tmp_path / "b" / "tiny.gguf"
    for seed, path in enumerate((first, second)):
        path.parent.mkdir()
        write_gguf(path, tiny_model, seed)
    assert first.stat().st_size == second.stat().st_size
    weights = [models.load_causal_lm(str(path), dtype=torch.float32).lm_head.weight for path in (first, second)]
    assert not torch.equal(*weights)


def test_of_two_processes_that_convert_at_once_the_slower_takes_the_folder_of_the_faster(
    tmp_path, tiny_model, cache, monkeypatch
):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model, seed=1)
    replace = models.os.replace

    def overtaken(work, target):
        shutil.copytree(work, target)  # what the other process did meanwhile
        (target / "winner").touch()
        replace(work, target)

    monkeypatch.setattr(models.os, "replace", overtaken)
    folder = Path(models.resolve(str(path)))
    assert (folder / "winner").exists()
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


def test_gguf_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lit-debias\[embedded\]"):
        models.resolve(str(path))


# ---------------------------------------------------------------- loading


def test_a_tokenizer_without_a_pad_token_pads_with_the_end(tmp_path, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    assert models.load_tokenizer(str(tmp_path / "bare")).pad_token == tokenizer.eos_token
    assert models.load_tokenizer(str(tiny_model)).pad_token == "<|endoftext|>"


def test_a_loaded_model_evaluates_in_the_dtype_asked_for(tiny_model):
    lm = models.load_causal_lm(str(tiny_model), dtype=torch.bfloat16)
    assert not lm.training
    assert {parameter.dtype for parameter in lm.parameters()} == {torch.bfloat16}
