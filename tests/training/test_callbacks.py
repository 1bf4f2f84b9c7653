"""Adapter export, completion table, prediction file."""

import json
import math
import re
from datetime import datetime, timezone

import pytest
import torch
from command_line import run
from datasets import Dataset
from grpo_runs import Vowels, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from support import loaded, perturb
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_debias.data import PromptDataModule
from lit_debias.evaluation import evaluate
from lit_debias.evaluation.prompts import read_prompts
from lit_debias.training.callbacks import AdapterExport, CompletionTable, PredictionFile
from lit_debias.training.callbacks.completions import as_table, extremes
from lit_debias.types import Experience, PromptBatch, Rollout, Scores


def fit(model, prompts, folder, **kwargs):
    module = grpo(model)
    trainer(folder, **kwargs).fit(module, PromptDataModule(str(prompts), batch_size=2))
    return module


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_exported_adapter_loads_with_plain_peft(tiny_model, prompts, tmp_path):
    from peft import PeftModel

    out = tmp_path / "out" / "adapter"
    module = fit(tiny_model, prompts, tmp_path, callbacks=[AdapterExport(str(out))])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), out)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(model(ids).logits, module.policy.causal_lm(ids).logits)
    with model.disable_adapter():
        assert not torch.allclose(model(ids).logits, module.policy.causal_lm(ids).logits)
    assert [path.name for path in out.parent.iterdir()] == ["adapter"]  # no work folder is left
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    plain.load_adapter(str(out))  # transformers' own way
    torch.testing.assert_close(plain(ids).logits, module.policy.causal_lm(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("people cook").input_ids == module.policy.tokenizer("people cook").input_ids
    assert tokenizer.chat_template == module.policy.tokenizer.chat_template


def test_every_run_leaves_its_adapter_in_its_folder_and_says_where(tiny_model, prompts, tmp_path, capsys):
    fit(tiny_model, prompts, tmp_path, logger=CSVLogger(tmp_path, "logs"))
    out = tmp_path / "logs" / "version_0" / "adapter"
    assert loaded(tiny_model, adapter=str(out)).trainable_parameters()
    assert f"the adapter is in {out}; how to use it stands in {out / 'README.md'}" in capsys.readouterr().out


def test_an_adapter_that_nobody_named_is_never_replaced(tiny_model, prompts, tmp_path, capsys):
    for _ in range(2):
        fit(tiny_model, prompts, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("adapter*")) == ["adapter", "adapter-2"]
    assert "will be replaced" not in capsys.readouterr().out


def test_an_adapter_in_a_named_place_is_replaced_after_a_word(tiny_model, prompts, tmp_path, capsys):
    out = tmp_path / "mine"
    fit(tiny_model, prompts, tmp_path, callbacks=[AdapterExport(str(out))])
    assert "will be replaced" not in capsys.readouterr().out
    (out / "adapter_model.safetensors").write_bytes(b"old")
    fit(tiny_model, prompts, tmp_path, callbacks=[AdapterExport(str(out))])
    assert f"the adapter in {out}, of " in capsys.readouterr().out
    assert loaded(tiny_model, adapter=str(out)).trainable_parameters()
    assert not list(tmp_path.glob("adapter*"))


def test_a_dry_run_leaves_nothing(tiny_model, prompts, tmp_path):
    fit(tiny_model, prompts, tmp_path, fast_dev_run=True)
    assert not list(tmp_path.rglob("adapter*"))


def test_export_replaces_the_adapter_before(tiny_model, tmp_path):
    module = grpo(tiny_model)
    module.load_policy()
    out = tmp_path / "adapter"
    module.save_adapter(out)
    first = (out / "adapter_model.safetensors").read_bytes()
    perturb(module.policy)
    module.save_adapter(out)
    assert (out / "adapter_model.safetensors").read_bytes() != first
    assert loaded(tiny_model, adapter=str(out)).trainable_parameters()


def experience(advantages, texts, valid) -> Experience:
    zeros = torch.zeros(2, 2, 1)
    rollout = Rollout(
        prompts=PromptBatch(["p0", "p1"]),
        prompt_ids=zeros[:, 0].long(),
        prompt_mask=zeros[:, 0].bool(),
        completion_ids=zeros.long(),
        completion_mask=zeros.bool(),
        logprobs=zeros,
        truncated=zeros[..., 0].bool(),
        texts=texts,
    )
    scores = Scores({"fair": torch.tensor([[0.25, 0.5], [0.75, 1.0]])}, {"fair": torch.tensor(valid)})
    return Experience(rollout, scores, torch.tensor(advantages), zeros.bool())


def test_the_table_shows_the_best_and_the_worst():
    rows = extremes(
        experience([[0.1, -3.0], [2.0, 0.0]], [["a", "b"], ["c", "d"]], [[True, True], [False, True]]), count=2
    )
    assert rows == [
        {"prompt": "p1", "completion": "c", "advantage": 2.0, "scores": {"fair": None}},
        {"prompt": "p0", "completion": "b", "advantage": -3.0, "scores": {"fair": 0.5}},
    ]


def test_completions_are_kept_and_markup_in_them_stays_text(tiny_model, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "lit_debias.policy.policy.Policy.decode", lambda self, ids, mask: [["[red]x[/]"] * 4] * len(ids)
    )
    table = CompletionTable(every_n_steps=2, rows=3)
    trainer(tmp_path, callbacks=[table]).fit(grpo(tiny_model), PromptDataModule(str(prompts), batch_size=2))
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["rollout_step"] for row in rows] == [2, 2, 2, 4, 4, 4]
    assert set(rows[0]["scores"]) == {"vowels"}
    assert "[red]x[/]" in capsys.readouterr().out


def test_what_controls_a_terminal_stays_text(capsys):
    evil = "\x1b]0;owned\x07[link=http://x]y[/link]\x1b[2J\r[red]z[/]"
    rows = [{"prompt": evil, "completion": evil, "scores": {evil[-16:]: 0.5}, "advantage": 1.0}]
    Console(force_terminal=True, width=300).print(as_table(rows, "title"))
    shown = capsys.readouterr().out
    assert shown.count(r"\x1b]0;owned\x07[link=http://x]y[/link]\x1b[2J\r[red]z[/]") == 2
    assert r"\x1b[2J\r[red]z[/]  0.50" in shown
    assert not {"\x07", "\r"} & set(shown)
    assert set(re.findall(r"\x1b[^m]*m", shown)) <= {f"\x1b[{style}m" for style in ("0", "1", "3")}
    assert shown.count("\x1b") == len(re.findall(r"\x1b[^m]*m", shown))


def predict(model, data, folder, **kwargs):
    trainer(folder, **kwargs).predict(grpo(model), PromptDataModule(str(data), test_splits="train"))


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_predictions_are_written_where_they_are_wanted(tiny_model, prompts, tmp_path):
    out = tmp_path / "predictions" / "out.jsonl"
    predict(tiny_model, prompts, tmp_path, callbacks=[PredictionFile(str(out))])
    rows = lines(out)
    assert [row["place"] for row in rows] == list("abcdefgh")
    assert all(row["prompt"] == f"people from {row['place']} are" for row in rows)
    assert all(isinstance(row["completion"], str) for row in rows)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    assert not (tmp_path / "predictions.jsonl").exists()


def test_predictions_are_kept_with_all_columns_wherever_nobody_said_where(tiny_model, tmp_path, capsys):
    data = tmp_path / "mine.parquet"
    when = datetime(2026, 11, 30, tzinfo=timezone.utc)
    rows = [{"prompt": f"p{n}", "completion": "old", "when": when, "score": math.nan, "tags": ["x"]} for n in range(3)]
    Dataset.from_list(rows).to_parquet(data)
    for _ in range(2):
        predict(tiny_model, data, tmp_path)
    first, second = (tmp_path / name for name in ("predictions.jsonl", "predictions-2.jsonl"))
    assert lines(first) == lines(second)
    assert [list(row) for row in lines(first)] == [["prompt", "completion", "when", "score", "tags", "prompt_id"]] * 3
    row = lines(first)[1]
    assert (row["prompt"], row["score"], row["tags"]) == ("p1", None, ["x"])
    assert row["when"].startswith("2026-11-30")
    assert row["completion"] != "old"
    assert f"the answers are in {second}" in capsys.readouterr().out


def test_other_commands_read_the_answers(tiny_model, tmp_path, capsys):
    data = tmp_path / "mine.jsonl"
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    rows = [
        {"question": [*said, {"role": "user", "content": f"And people from {place}?"}], "place": place, "group": place}
        for place in "ab"
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    module = PromptDataModule(str(data), "question", test_splits="train")
    trainer(tmp_path).predict(grpo(tiny_model), module)
    out = tmp_path / "predictions.jsonl"
    capsys.readouterr()
    assert (
        run(
            "rewards", "score", "SoftOverlong", "--file", out, "--init_args", "{max_new_tokens: 9, buffer: 4}", "--json"
        )
        == 0
    )
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["completion"] for row in scored] == [row["completion"] for row in lines(out)]
    measure = {"quantization": "none", "dtype": "float32", "max_new_tokens": 2, "bootstrap": 2, "system_prompt": None}
    results = evaluate(str(tiny_model), str(out), str(tmp_path / "figures"), judges={"judge": Vowels()}, **measure)
    assert results["prompts"]["rows"] == 2
    asked = read_prompts(str(out), ["train"])
    assert [row["messages"] for row in asked] == [row["question"] for row in rows]
    assert [(row["prompt"], row["group"], row["place"]) for row in asked] == [
        (row["prompt"], row["group"], row["place"]) for row in lines(out)
    ]


@pytest.mark.parametrize("first", [True, False])
def test_every_rank_asks_where_the_logs_are(tiny_model, prompts, tmp_path, monkeypatch, first):
    asked = []
    monkeypatch.setattr(Trainer, "log_dir", property(lambda self: asked.append(self.global_step) or str(tmp_path)))
    t = trainer(tmp_path, max_steps=2, callbacks=[CompletionTable(every_n_steps=2, show=False)])
    monkeypatch.setattr(type(t), "is_global_zero", first)
    t.fit(grpo(tiny_model), PromptDataModule(str(prompts), batch_size=2))
    assert 2 in asked  # Lightning broadcasts it: a rank that does not ask leaves the others waiting
    assert (tmp_path / "completions.jsonl").exists() is first
