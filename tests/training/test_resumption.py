"""Checkpoints that another configuration takes up: refused before a model loads, or said."""

import json

import pytest
from grpo_runs import grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from lit_debias.aggregators import MaxMin
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine
from lit_debias.training.dpo import DPO


@pytest.fixture
def data(prompts) -> PromptDataModule:
    return PromptDataModule(str(prompts), batch_size=4)


@pytest.fixture
def saved(tiny_model, data, tmp_path):
    """A checkpoint after two optimiser steps, as if the second inner epoch were still to come."""
    run_of, module = trainer(tmp_path, max_steps=2), grpo(tiny_model, inner_epochs=2)
    run_of.fit(module, data)
    module.experience.epochs_done = 1
    run_of.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_a_checkpoint_of_another_run_is_refused_before_a_model_loads(tiny_model, saved, data, tmp_path, monkeypatch):
    monkeypatch.setattr(QLoRAPolicy, "load", lambda *_: pytest.fail("a model was loaded"))
    two = {"inner_epochs": 2}
    cases = [
        (grpo(tiny_model, **two, optimizer=lambda p: SGD(p, lr=0.5)), {}, "another optimizer: torch.optim.adamw.AdamW"),
        (grpo(tiny_model, **two, optimizer=lambda p: Adam(p, lr=1e-2)), {}, "another optimizer"),
        (grpo(tiny_model, **two, lr_scheduler=lambda o: CosineAnnealingLR(o, 9)), {}, "another schedule: none"),
        (grpo(tiny_model, **two, aggregator=MaxMin(["vowels"])), {}, "another aggregator"),
        (grpo(tiny_model, **two), {"max_steps": 1}, "trainer.max_steps is 1"),
        (grpo(tiny_model, inner_epochs=1), {}, "with inner_epochs=2"),
        (grpo(tiny_model, **two, group_size=3), {}, "with group_size=4"),
        (grpo(tiny_model, **two, engine=LocalEngine(6, temperature=0.5)), {}, "with temperature=1.0"),
        (DPO(QLoRAPolicy(str(tiny_model))), {}, "another module: lit_debias.training.grpo.GRPO"),
    ]
    for module, options, message in cases:
        if isinstance(module, DPO):
            rows = [{"prompt": "people", "reference": "kind", "biased": "late"}] * 4
            (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
            data = PromptDataModule(str(tmp_path / "pairs.jsonl"), batch_size=2)
        module.resumes_from = str(saved)  # as the command line says it
        with pytest.raises(UserError, match=message):
            trainer(tmp_path, **{"max_steps": 6, **options}).fit(module, data, ckpt_path=saved)


def test_a_checkpoint_of_another_run_is_refused_from_python_too(tiny_model, saved, data, tmp_path):
    module = grpo(tiny_model, inner_epochs=2, optimizer=lambda p: SGD(p, lr=0.5))
    with pytest.raises(UserError, match="another optimizer"):
        trainer(tmp_path, max_steps=6).fit(module, data, ckpt_path=saved)


def test_what_waits_off_policy_was_sampled_at_a_temperature_too(tiny_model, data, tmp_path):
    run_of = trainer(tmp_path, max_steps=1, max_epochs=-1)
    run_of.fit(grpo(tiny_model, one_step_off_policy=True), data)
    run_of.save_checkpoint(tmp_path / "a.ckpt")
    module = grpo(tiny_model, one_step_off_policy=True, engine=LocalEngine(6, temperature=0.5))
    with pytest.raises(UserError, match=r"with temperature=1.0, and the configuration says 0.5; write 1.0"):
        trainer(tmp_path, max_steps=3).fit(module, data, ckpt_path=tmp_path / "a.ckpt")


def test_another_learning_rate_on_resume_is_said(tiny_model, saved, data, tmp_path, capsys):
    module = grpo(tiny_model, inner_epochs=2, optimizer=lambda p: AdamW(p, lr=1e-6, weight_decay=0.5))
    trainer(tmp_path, max_steps=5, max_epochs=-1).fit(module, data, ckpt_path=saved)
    assert "resuming with the checkpoint's lr 0.01 (not 1e-06), weight_decay 0.01 (not 0.5);" in capsys.readouterr().err
    assert module.optimizers().param_groups[0]["lr"] == 0.01
