"""Guards in a whole run: it goes on without a score, or stops with a checkpoint from which it goes on unchanged."""

import csv
from pathlib import Path

import pytest
from command_line import config, run, write  # noqa: F401  (config is a fixture)
from grpo_runs import Vowels, adapter_of, assert_same, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning.pytorch.loggers import CSVLogger

from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.rewards.guard import Guard


class Sometimes(Vowels):
    """Fails in some calls."""

    def __init__(self, *calls):
        self.calls, self.done = calls, 0

    def score(self, batch):
        self.done += 1
        if self.done - 1 in self.calls:
            raise ConnectionError("no answer")
        return super().score(batch)


def guarded(model, reward, **options):
    """Return a module with a failing and a steady reward."""
    return grpo(model, rewards={"vowels": reward, "steady": Vowels()}, guard=Guard(10, retries=0, **options))


def test_a_run_goes_on_without_the_scores_that_failed(tiny_model, prompts, tmp_path):
    module = guarded(tiny_model, Sometimes(1))
    logger = CSVLogger(tmp_path)
    trainer(tmp_path, max_steps=3, logger=logger).fit(module, PromptDataModule(str(prompts), batch_size=2))
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rates = [row["rewards/vowels/error_rate"] for row in csv.DictReader(file)]
    assert [float(rate) for rate in rates if rate] == [0, 1, 0]
    assert module.rollout_step == 3


def test_a_run_that_stops_goes_on_as_if_it_had_not(tiny_model, prompts, tmp_path):
    data = PromptDataModule(str(prompts), batch_size=2)
    whole = guarded(tiny_model, Vowels())
    trainer(tmp_path, max_steps=4).fit(whole, data)
    stopped = guarded(tiny_model, Sometimes(2), max_error_rate=0.5, window=1)
    with pytest.raises(UserError, match=r"'vowels' lost 100%.*ConnectionError.*resume with --ckpt_path") as error:
        trainer(tmp_path, max_steps=4).fit(stopped, data)
    path = str(error.value).rpartition(" ")[2]
    assert stopped.rollout_step == 2  # nothing was trained on the third rollout
    resumed = guarded(tiny_model, Vowels())
    trainer(tmp_path, max_steps=4).fit(resumed, data, ckpt_path=path, weights_only=True)
    assert resumed.rollout_step == 4
    assert_same(adapter_of(whole), adapter_of(resumed))


def test_validation_counts_too_and_keeps_no_checkpoint(tiny_model, prompts, tmp_path):
    module = guarded(tiny_model, Sometimes(0), max_error_rate=0.0, window=1)
    with pytest.raises(UserError, match="lost 100%") as error:
        trainer(tmp_path, limit_val_batches=1).validate(
            module, PromptDataModule(str(prompts), batch_size=2, val_splits="train"), verbose=False
        )
    assert "resume" not in str(error.value)
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_guard_for_nobody_is_found_before_the_model_is_loaded(tiny_model):
    with pytest.raises(UserError, match=r"guards names 'vowel', .*did you mean 'vowels'"):
        grpo(tiny_model, guards={"vowel": Guard()})
    grpo(tiny_model, judges={"other": Vowels()}, guards={"vowels": Guard(), "other": None})


def test_guards_from_yaml(config, tmp_path, capsys):
    options = config["model"]["init_args"]
    options |= {"guard": {"timeout": 30}, "guards": {"overlong": {"retries": 2, "isolate": False}}}
    config["trainer"]["max_steps"] = 1
    assert run("fit", "-c", write(tmp_path, config)) == 0
    options["guard"]["timeout"] = 0
    assert run("fit", "-c", write(tmp_path, config)) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "timeout is 0" in line
