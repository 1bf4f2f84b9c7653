"""A preference mixture through Lightning, on users with opposite preferences and a tiny DeBERTa-v2."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from command_line import run
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from model_folders import save_tiny_model
from safetensors.torch import load_file
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from lit_debias import PreferenceDataModule, ResponseDataModule, RewardBatch, UserError
from lit_debias_deberta import DebertaPreference, PreferenceMixture
from lit_debias_deberta.losses import pairs_within, ranking_loss

CONFIGS = Path(__file__).parents[3] / "configs"
PROMPT = "the person"
KIND = ("honest", "works", "honest and works", "the honest")
UNKIND = ("lazy", "nobody", "lazy and nobody", "the lazy")


def write_preferences(path, users, pairs=8, held_out=10) -> Path:
    """Write what users prefer, ``kind`` or ``unkind`` words by their names, with held-out pairs of each kind."""
    draw = random.Random(0)
    rows = []
    for number, user in enumerate(users):
        group = user.rstrip("0123456789")
        first = group not in [name.rstrip("0123456789") for name in users[:number]]
        for pair in range(pairs + held_out * first):
            sides = [draw.choice(KIND), draw.choice(UNKIND)]
            chosen, rejected = sides if group == "kind" else reversed(sides)
            split = "train" if pair < pairs else "validation"
            rows.append({"user": user, "prompt": PROMPT, "chosen": chosen, "rejected": rejected})
            rows[-1] |= {"group": group, "split": split}
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    """Ten users to one."""
    users = [*(f"kind{number}" for number in range(10)), "unkind0"]
    return write_preferences(tmp_path_factory.mktemp("preferences") / "pairs.jsonl", users)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    users = ["kind0", "kind1", "unkind0"]
    return write_preferences(tmp_path_factory.mktemp("few") / "pairs.jsonl", users, pairs=4, held_out=2)


def trainer(tmp_path, **options) -> Trainer:
    defaults = {"max_epochs": -1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=tmp_path, **(defaults | quiet | options))


def mixture(encoder, out, **options) -> PreferenceMixture:
    defaults = {"max_length": 32, "optimizer": lambda parameters: AdamW(parameters, lr=3e-3)}
    return PreferenceMixture(str(out), encoder, **(defaults | options))


def fit(module, file, tmp_path, ckpt_path=None, **options) -> PreferenceMixture:
    seed_everything(0, verbose=False)
    data = PreferenceDataModule(str(file), batch_size=4)
    trainer(tmp_path, **options).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


def said_of(out) -> dict:
    return json.loads((out / "mixture.json").read_text())


# ---------------------------------------------------------------- what it is for


def through_yaml(config, encoder, out, preferences, *more) -> int:
    small = ("--model.encoder", encoder, "--model.max_length", 32, "--model.trainable_layers", "null")
    small += ("--model.bucket_size", "null")
    quiet = ("--trainer.logger", "false", "--trainer.callbacks", "null", "--trainer.enable_checkpointing", "false")
    quiet += ("--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", out.parent)
    rates = ("--model.optimizer.lr", 3e-3, "--model.epochs", 2)
    data = ("--data.path", preferences, "--model.out", out)
    return run("fit", "-c", CONFIGS / config, *small, *quiet, *rates, *data, *more)


def test_opposite_populations_are_found_and_grpo_serves_the_worse_off(encoder, preferences, tmp_path, monkeypatch):
    out = tmp_path / "rewards"
    assert through_yaml("preference_mixture.yaml", encoder, out, preferences) == 0
    found = said_of(out)
    assert (found["purity"], found["groups"]) == (1.0, 2)
    assert found["held_out"]["accuracy/kind"] > 0.95
    assert found["held_out"]["accuracy/unkind"] > 0.95
    rows = [json.loads(line) for line in (out / "assignments.jsonl").read_text().splitlines()]
    groups = {row["user"]: row["reward"] for row in rows}
    assert [row["pairs"] for row in rows] == [8] * 11
    assert sorted(found["shares"]) == pytest.approx([1 / 11, 10 / 11])

    batch = RewardBatch([PROMPT] * 2, [KIND[0], UNKIND[0]], [0, 0], {})
    for user, order in {"kind3": 1, "unkind0": -1}.items():
        reward = DebertaPreference(str(out / f"reward_{groups[user]}"))
        reward.setup(torch.device("cpu"))
        kind, unkind = reward.score(batch)
        assert order * (kind - unkind) > 0.3

    assert through_yaml("preference_mixture.yaml", encoder, tmp_path / "one", preferences, "--model.groups", 1) == 0
    single = said_of(tmp_path / "one")["held_out"]
    assert single["accuracy/kind"] > 0.95
    assert single["accuracy/unkind"] < 0.05

    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "people from {place} are"}}\n' for place in "abcd"))
    rewards = [f"--model.rewards.{name}.init_args.checkpoint={out / f'reward_{k}'}" for k, name in enumerate(NAMES)]
    policy = ("--model.policy.model", save_tiny_model(tmp_path / "llama"), "--model.policy.quantization", "none")
    short = ("--model.engine.max_new_tokens", 4, "--trainer.max_steps", 2, "--trainer.enable_progress_bar", "false")
    logs = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs", "--model.policy.dtype", "float32")
    data = ("--data.path", prompts, "--data.batch_size", 2, "--data.prompt_kinds", "null")
    assert run("fit", "-c", CONFIGS / "preference_grpo.yaml", *rewards, *policy, *short, *logs, *data) == 0
    assert (tmp_path / "runs/demo/preference_adapter/adapter_model.safetensors").is_file()
    header, *steps = next(Path("logs").rglob("metrics.csv")).read_text().splitlines()
    assert len(steps) == 2
    assert {f"rewards/{name}/mean" for name in NAMES} <= set(header.split(","))


NAMES = ("first", "second")


def test_a_test_measures_the_mixture_that_is_on_disk(encoder, few, tmp_path, capsys):
    module = fit(mixture(encoder, tmp_path / "out"), few, tmp_path)
    data = PreferenceDataModule(str(few), batch_size=4, test_split="validation")
    (metrics,) = trainer(tmp_path).test(mixture(encoder, tmp_path / "out"), datamodule=data, verbose=False)
    held_out = said_of(tmp_path / "out")["held_out"]
    assert {name.removeprefix("test/"): value for name, value in metrics.items()} == pytest.approx(held_out, abs=1e-5)
    written = json.loads((tmp_path / "out" / "test.json").read_text())["figures"]
    assert written == pytest.approx(held_out, abs=1e-5)
    assert set(held_out) > {"accuracy/kind", "accuracy/unkind", "reward_1/kind"}
    assert "own reward" in capsys.readouterr().out
    assert module.network.calibration["group_0"].bias != 0


# ---------------------------------------------------------------- the training


class FirstState(Callback):
    """Keeps the weights from before the first step."""

    def on_train_start(self, trainer, pl_module):
        self.state = {name: value.clone() for name, value in pl_module.network.state_dict().items()}


def test_one_group_is_plain_bradley_terry(encoder, few, tmp_path):
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(settings))
    first = FirstState()
    # SGD: Adam makes whole steps of gradients that are rounding errors
    options = {"groups": 1, "epochs": 2, "dropout": 0.0, "warmup": 0.25, "precision": "float32"}
    options["optimizer"] = lambda parameters: SGD(parameters, lr=0.1)
    module = fit(mixture(str(folder), tmp_path / "out", **options), few, tmp_path, callbacks=[first])

    plain = module.build(["group_0"])
    plain.load_state_dict(first.state)
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimizer = SGD(parameters, lr=0.1)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 6)
    data = PreferenceDataModule(str(few), batch_size=4)
    data.setup("fit")
    loader = data.train_dataloader()
    for batch in (batch for _ in range(2) for batch in loader):
        texts = [text for pair in zip(batch["chosen"], batch["rejected"], strict=True) for text in pair]
        logits = plain.read([PROMPT] * len(texts), texts)
        labels = torch.tensor([[1.0], [0.0]]).repeat(len(batch["user"]), 1)
        pairs = pairs_within(torch.arange(len(labels)) // 2)
        optimizer.zero_grad()
        ranking_loss(logits, labels, pairs, margin=0.0).backward()
        optimizer.step()
        schedule.step()
    moved = max(float((value - first.state[name]).abs().max()) for name, value in plain.state_dict().items())
    assert moved > 1e-3
    for name, value in module.network.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-6, rtol=0)


def test_the_learning_rate_rises_and_falls_in_each_round(encoder, few, tmp_path):
    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 3e-3)

    rates: list[float] = []
    options = {"groups": 3, "epochs": 2, "rounds": 2, "tolerance": 0.0, "warmup": 0.5, "assignment": "soft"}
    module = fit(mixture(encoder, tmp_path / "out", **options), few, tmp_path, callbacks=[Rates()])
    assert isinstance(module.trainer.lr_scheduler_configs[0].scheduler, LambdaLR)
    assert rates[:12] == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3] * 2)


class Crash(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("crash")


@pytest.fixture(scope="module")
def undisturbed(encoder, few, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    saves = ModelCheckpoint(folder, every_n_train_steps=3, filename="last")
    fit(mixture(encoder, folder / "out", **TRIALS), few, folder, callbacks=[saves], enable_checkpointing=True)
    return folder


TRIALS = {"groups": [1, 2], "restarts": 2, "rounds": 2, "assignment": "soft", "tolerance": 0.0}


def same(first: Path, second: Path) -> None:
    assert said_of(first) == said_of(second)
    assert (first / "assignments.jsonl").read_bytes() == (second / "assignments.jsonl").read_bytes()
    for number in range(said_of(first)["groups"]):
        for name in ("heads.safetensors", "model.safetensors", "reward_model.json"):
            part = Path(f"reward_{number}", name)
            assert (first / part).read_bytes() == (second / part).read_bytes(), part


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("step", [4, 9])  # within a trial; on the last step of a round, before the users are assigned
def test_a_run_that_crashes_goes_on_as_if_nothing_had_happened(undisturbed, encoder, few, tmp_path, step):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename="last")
    with pytest.raises(RuntimeError, match="crash"):
        fit(
            mixture(encoder, tmp_path / "out", **TRIALS),
            few,
            tmp_path,
            callbacks=[saves, Crash(step + 1)],
            enable_checkpointing=True,
        )
    assert not (tmp_path / "out").exists()
    fit(mixture(encoder, tmp_path / "out", **TRIALS), few, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    same(undisturbed / "out", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_the_checkpoint_of_a_finished_run_writes_it_again(undisturbed, encoder, few, tmp_path):
    module = fit(mixture(encoder, tmp_path / "out", **TRIALS), few, tmp_path, ckpt_path=undisturbed / "last.ckpt")
    same(undisturbed / "out", tmp_path / "out")
    assert module.global_step == 15  # a trial of K = 1 with one round, and two of K = 2 with two; three steps each


def test_trials_start_anew_and_the_best_is_written(undisturbed):
    found = said_of(undisturbed / "out")
    trials = found["trials"]
    assert [(trial["groups"], trial["restart"]) for trial in trials] == [(1, 0), (2, 0), (2, 1)]
    assert trials[1]["log_likelihood"] != trials[2]["log_likelihood"]
    best = max(trials[1:], key=lambda trial: trial["log_likelihood"])
    if best["held_out_log_likelihood"] < trials[0]["held_out_log_likelihood"]:
        best = trials[0]
    assert {name: found[name] for name in best} == best
    weights = load_file(undisturbed / "out" / "reward_0" / "heads.safetensors")
    assert set(weights) == {f"preference.{name}" for name in ("1.weight", "1.bias", "4.weight", "4.bias")}


def test_a_trainer_that_ends_early_leaves_what_there_is(encoder, few, tmp_path, capsys):
    fit(mixture(encoder, tmp_path / "out", rounds=9), few, tmp_path, max_steps=2)
    assert "training ended in trial 1 of 1" in capsys.readouterr().out
    assert said_of(tmp_path / "out")["rounds"] == 0
    fit(mixture(encoder, tmp_path / "fast"), few, tmp_path, fast_dev_run=True)
    assert not (tmp_path / "fast").exists()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups=0, restarts=1"),
        ({"groups": []}, r"groups=\[\]"),
        ({"rounds": 0}, "rounds=0"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"max_length": 4}, "PreferenceMixture: max_length=4"),
    ],
)
def test_mistakes_are_found_before_anything_loads(encoder, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        mixture(encoder, tmp_path / "out", **options)


def test_out_must_not_hold_something_else(encoder, checkpoint):
    with pytest.raises(UserError, match="something else than a preference mixture"):
        mixture(encoder, checkpoint)  # a reward model


@pytest.mark.parametrize(
    ("options", "how", "message"),
    [
        ({"groups": 4}, {}, "3 users are fewer than groups=4"),
        ({}, {"callbacks": [WeightAveraging()]}, "leave WeightAveraging out"),
        ({}, {"precision": "bf16-true"}, "'bf16-true' converts weights"),
    ],
)
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_what_does_not_suit_is_one_line(encoder, few, tmp_path, options, how, message):
    with pytest.raises(UserError, match=message):
        fit(mixture(encoder, tmp_path / "out", **options), few, tmp_path, **how)


def test_data_that_do_not_suit_are_one_line(encoder, few, tmp_path):
    data = PreferenceDataModule(str(few), val_split=None, batch_size=4)
    several = mixture(encoder, tmp_path / "out", groups=[1, 2])
    with pytest.raises(UserError, match="have no split 'validation'"):
        trainer(tmp_path).fit(several, datamodule=data)
    rows = tmp_path / "responses.jsonl"
    rows.write_text('{"prompt": "a", "response": "b", "fairness": 1}\n')
    responses = ResponseDataModule(str(rows), batch_size=1)
    with pytest.raises(UserError, match="write class_path: PreferenceDataModule"):
        trainer(tmp_path).fit(several, datamodule=responses)
    data = PreferenceDataModule(str(few), test_split="validation")
    with pytest.raises(UserError, match="there is no preference mixture"):
        trainer(tmp_path).test(several, datamodule=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"groups": 2}, r"of sizes=\[1, 2\], not \[2\]"), ({"seed": 1}, "of seed=0, not 1")],
)
def test_a_checkpoint_of_another_run_is_refused(undisturbed, encoder, few, tmp_path, options, message):
    module = mixture(encoder, tmp_path / "out", **(TRIALS | options))
    with pytest.raises(UserError, match=message):
        fit(module, few, tmp_path, ckpt_path=undisturbed / "last.ckpt")


def test_a_checkpoint_of_other_users_is_refused(undisturbed, encoder, tmp_path):
    other = write_preferences(tmp_path / "other.jsonl", ["kind7", "unkind8"], pairs=8, held_out=2)
    with pytest.raises(UserError, match="of other users"):
        fit(mixture(encoder, tmp_path / "out", **TRIALS), other, tmp_path, ckpt_path=undisturbed / "last.ckpt")
