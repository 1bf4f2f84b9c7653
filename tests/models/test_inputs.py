"""What a model cannot read, and models and adapters that are damaged or do not fit: one line, before the first step."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import transformers
from command_line import config, run, said, write  # noqa: F401  (config is a fixture)
from model_folders import changed
from support import loaded
from tokenizers import normalizers

from lit_debias.errors import UserError
from lit_debias.models.loading import loading
from lit_debias.policy.lengths import check_prompts, check_responses

# -------------------------------------------------------------------- lengths


def test_a_megabyte_and_nothing_are_found_before_the_first_step(config, tmp_path, capsys):
    lines = [{"prompt": "a"}, {"prompt": "people are kind " * 65536}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    start = time.perf_counter()
    assert run("fit", "-c", write(tmp_path, config)) == 2
    assert time.perf_counter() - start < 60
    line = said(capsys)
    assert "prompts.jsonl', row 2: the prompt 'people are kind" in line
    assert "tokens, chat template included; shorten it" in line


def test_a_prompt_that_the_tokenizer_has_no_token_for(tiny_model):
    policy = loaded(tiny_model)
    check_prompts(policy, ["a", "b"], ["row 1", "row 2"])
    policy.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("b", "")
    with pytest.raises(UserError, match=r"row 2: model '.*' has no token for the prompt 'b'"):
        check_prompts(policy, ["a", "b"], ["row 1", "row 2"])


@pytest.mark.parametrize("fits", [True, False])
def test_the_limit_of_prompts_counts_the_chat_template(tiny_model, fits):
    policy = loaded(tiny_model)
    policy.max_prompt_tokens = len(policy.prompt_ids("the rider")) - (not fits)
    if fits:
        check_prompts(policy, ["the rider"], ["row 1"])
    else:
        with pytest.raises(UserError, match=rf"row 1: .* has {policy.max_prompt_tokens + 1} tokens"):
            check_prompts(policy, ["the rider"], ["row 1"])


def test_a_response_longer_than_the_models_context(tiny_model):
    policy = loaded(tiny_model)
    check_responses(policy, ["a"], ["b"], ["row 1"], "reference")
    with pytest.raises(UserError, match=r"row 1: 'reference' has \d+ tokens, .* more than the 512 that model"):
        check_responses(policy, ["a"], ["so " * 400], ["row 1"], "reference")


# -------------------------------------------------------------------- models and adapters


MODELS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot be loaded"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights in safetensors"),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 9), "cannot be loaded"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded"),
    "no tokenizer": (
        lambda folder: [file.unlink() for file in folder.iterdir() if "token" in file.name],
        r"has no tokenizer, such as tokenizer.json; save it there too: AutoTokenizer\.from_pretrained",
    ),
    "no tokenizer, of a model whose own would be empty": (
        lambda folder: (
            [file.unlink() for file in folder.iterdir() if "token" in file.name]
            and changed(folder, "config.json", model_type="qwen2")
        ),
        "has no tokenizer",
    ),
    "sizes": (lambda folder: changed(folder, "config.json", hidden_size=64), "has other sizes|have other sizes"),
    "layers": (lambda folder: changed(folder, "config.json", num_hidden_layers=3), r"files lack \d+ weights, such as"),
    "template": (lambda folder: (folder / "chat_template.jinja").write_text("{% if"), "chat template fails"),
    "no pad, no end": (
        lambda folder: changed(folder, "tokenizer_config.json", pad_token=None, eos_token=None),
        'neither a pad nor an end-of-sequence token; name one in its tokenizer_config.json: "eos_token"',
    ),
}


@pytest.mark.parametrize(("damage", "message"), MODELS.values(), ids=MODELS)
def test_models_that_are_damaged(damage, message, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        loaded(folder).prompt_ids("a")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chat_template_that_refuses_the_system_prompt(tiny_model):
    policy = loaded(tiny_model, system_prompt="Be fair.")
    policy.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    with pytest.raises(UserError, match=r"chat template fails \(no system\); write system_prompt: null"):
        policy.prompt_ids("a")


def test_what_is_no_mistake_of_the_model_is_left_alone():
    with pytest.raises(ZeroDivisionError), loading("gpt2"):
        raise ZeroDivisionError
    with pytest.raises(UserError, match=r"^as it was$"), loading("gpt2"):
        raise UserError("as it was")


ADAPTERS = {
    "config": (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json is not readable"),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "no adapter_model.safetensors there",
    ),
    "cut": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 9), "does not fit the model"),
    "rank": (lambda folder: changed(folder, "adapter_config.json", r=8), "trained on '.*', does not fit the model"),
    "fewer": (lambda folder: changed(folder, "adapter_config.json", target_modules=["q_proj"]), "on one side only"),
}


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    loaded(tiny_model).lm.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("damage", "message"), ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_that_are_damaged(damage, message, tiny_model, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        loaded(tiny_model, adapter=str(folder))
    assert f"adapter '{folder}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("layers", "targets"), [(1, "all-linear"), (3, ["q_proj"])])
def test_an_adapter_of_a_base_with_other_layers(layers, targets, tiny_model, tmp_path):
    loaded(tiny_model, targets=targets).lm.save_pretrained(tmp_path / "adapter")
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    other = transformers.AutoConfig.from_pretrained(folder)
    other.num_hidden_layers = layers
    transformers.LlamaForCausalLM(other).save_pretrained(folder)
    with pytest.raises(UserError, match=r"trained on '.*tiny-llama', does not fit .* weights are on one side only"):
        loaded(folder, adapter=str(tmp_path / "adapter"))


def test_an_adapter_of_a_base_of_another_name_is_logged(tiny_model, adapter, tmp_path, caplog):
    loaded(tiny_model, adapter=str(adapter))
    assert "was trained on" not in caplog.text
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    changed(folder, "adapter_config.json", base_model_name_or_path="Qwen/Qwen2.5-7B")
    loaded(tiny_model, adapter=str(folder))
    assert f"adapter '{folder}' was trained on 'Qwen/Qwen2.5-7B' and is put on '{tiny_model}'" in caplog.text
