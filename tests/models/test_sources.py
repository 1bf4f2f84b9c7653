"""Where models come from: folders, hub ids, files in packages, and GGUF files that are converted once."""

from __future__ import annotations

import importlib
import shutil
import threading
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf

from lit_debias.errors import UserError
from lit_debias.models import loading
from lit_debias.models import sources as models

gguf = pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LIT_DEBIAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache) -> list[str]:
    return [entry.name for entry in cache.iterdir() if entry.name != ".lock"]


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
    assert kept(cache) == [folder.name]  # no working folder is left

    lm = loading.load_causal_lm(str(path), dtype=torch.float32)
    state = lm.state_dict()
    assert torch.equal(state["model.embed_tokens.weight"], tensors["token_embd.weight"].bfloat16().float())
    assert torch.equal(
        state["model.layers.1.mlp.down_proj.weight"], tensors["blk.1.ffn_down.weight"].bfloat16().float()
    )
    tokenizer = loading.load_tokenizer(str(path))
    text = "The delivery rider was late."
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_files_of_one_name_and_size_are_told_apart(tmp_path, tiny_model):
    first, second = tmp_path / "a" / "tiny.gguf", tmp_path / "b" / "tiny.gguf"
    for seed, path in enumerate((first, second)):
        path.parent.mkdir()
        write_gguf(path, tiny_model, seed)
    assert first.stat().st_size == second.stat().st_size
    weights = [loading.load_causal_lm(str(path), dtype=torch.float32).lm_head.weight for path in (first, second)]
    assert not torch.equal(*weights)


def test_of_two_processes_that_convert_at_once_the_slower_takes_the_folder_of_the_faster(
    tmp_path, tiny_model, cache, monkeypatch
):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model, seed=1)
    rename = Path.rename

    def overtaken(work, target):
        shutil.copytree(work, target)  # what the other process did meanwhile
        (target / "winner").touch()
        return rename(work, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    folder = Path(models.resolve(str(path)))
    assert (folder / "winner").exists()
    assert kept(cache) == [folder.name]


def test_who_asks_for_a_model_that_is_being_converted_waits_for_it(tmp_path, tiny_model, cache, monkeypatch):
    path, started, enough, asked = tmp_path / "tiny.gguf", threading.Event(), threading.Event(), []
    write_gguf(path, tiny_model, seed=1)

    def convert(source, target):
        asked.append(source)
        started.set()
        assert enough.wait(10)
        (target / "config.json").touch()

    monkeypatch.setattr(models, "convert", convert)
    first, second = (threading.Thread(target=models.resolve, args=(str(path),)) for _ in range(2))
    first.start()
    assert started.wait(10)
    second.start()
    second.join(0.2)  # does not end: it waits for the first one
    enough.set()
    first.join()
    second.join()
    assert asked == [path]


def test_where_files_cannot_be_locked_models_are_converted_all_the_same(tmp_path, tiny_model, cache, monkeypatch):
    def no_locks(lock):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(models.FileLock, "acquire", no_locks)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model, seed=1)
    folder = Path(models.resolve(str(path)))
    assert kept(cache) == [folder.name]


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
    assert loading.load_tokenizer(str(tmp_path / "bare")).pad_token == tokenizer.eos_token
    assert loading.load_tokenizer(str(tiny_model)).pad_token == "<|endoftext|>"


def test_a_loaded_model_evaluates_in_the_dtype_asked_for(tiny_model):
    lm = loading.load_causal_lm(str(tiny_model), dtype=torch.bfloat16)
    assert not lm.training
    assert {parameter.dtype for parameter in lm.parameters()} == {torch.bfloat16}
