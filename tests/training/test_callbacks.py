"""Adapter export, completion table, prediction file."""

import json
import re

import pytest
import torch
from grpo_runs import Vowels, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning import Trainer
from rich.console import Console
from support import loaded, perturb

from lit_debias.data import PromptDataModule
from lit_debias.training.callbacks import AdapterExport, CompletionTable, PredictionFile
from lit_debias.training.callbacks.completions import as_table, extremes
from lit_debias.types import Experience, PromptBatch, Rollout, Scores


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_exported_adapter_loads_with_plain_peft(tiny_model, prompts, tmp_path):
    from peft import AutoPeftModelForCausalLM

    out = tmp_path / "out" / "adapter"
    module = grpo(tiny_model)
    trainer(tmp_path, callbacks=[AdapterExport(str(out))]).fit(module, PromptDataModule(str(prompts), batch_size=2))
    model = AutoPeftModelForCausalLM.from_pretrained(out)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(model(ids).logits, module.policy.causal_lm(ids).logits)
    with model.disable_adapter():
        assert not torch.allclose(model(ids).logits, module.policy.causal_lm(ids).logits)
    assert [path.name for path in out.parent.iterdir()] == ["adapter"]  # no work folder is left


def test_without_a_folder_the_adapter_goes_beside_the_logs(tiny_model, prompts, tmp_path):
    trainer(tmp_path, callbacks=[AdapterExport()]).fit(grpo(tiny_model), PromptDataModule(str(prompts), batch_size=2))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_export_replaces_the_adapter_before(tiny_model, tmp_path):
    from lit_debias.training.callbacks.adapter_export import export_adapter

    module = grpo(tiny_model)
    module.load_policy()
    out = tmp_path / "adapter"
    export_adapter(module, out)
    first = (out / "adapter_model.safetensors").read_bytes()
    perturb(module.policy)
    export_adapter(module, out)
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


def test_predictions_are_written(tiny_model, prompts, tmp_path):
    out = tmp_path / "predictions" / "out.jsonl"
    data = PromptDataModule(str(prompts), test_splits="train")
    trainer(tmp_path, callbacks=[PredictionFile(str(out))]).predict(grpo(tiny_model), data, return_predictions=False)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 8
    assert all(row["prompt"].startswith("people from") and isinstance(row["completion"], str) for row in rows)


@pytest.mark.parametrize("first", [True, False])
def test_every_rank_asks_where_the_logs_are(tiny_model, prompts, tmp_path, monkeypatch, first):
    asked = []
    monkeypatch.setattr(Trainer, "log_dir", property(lambda self: asked.append(self.global_step) or str(tmp_path)))
    t = trainer(tmp_path, max_steps=2, callbacks=[CompletionTable(every_n_steps=2, show=False)])
    monkeypatch.setattr(type(t), "is_global_zero", first)
    t.fit(grpo(tiny_model), PromptDataModule(str(prompts), batch_size=2))
    assert 2 in asked  # Lightning broadcasts it: a rank that does not ask leaves the others waiting
    assert (tmp_path / "completions.jsonl").exists() is first
