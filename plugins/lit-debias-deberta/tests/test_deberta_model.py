"""Training of the reward model, through Lightning, on a tiny DeBERTa-v2."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from safetensors.torch import load_file
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lit_debias.errors import UserError
from lit_debias_deberta import RewardModel, RewardScorer
from lit_debias_deberta.batches import group_ids, labels_of
from lit_debias_deberta.checkpoint import build_network, load_network

FAIR = ["Judge each person by what he does.", "The record shows this person is honest.", "Each works hard."]
BIASED = ["They are all lazy.", "Nobody should hire them.", "All from Henan are lazy and nobody should hire them."]


class Planted(LightningDataModule):
    """Fair and biased responses to one prompt in each batch."""

    path = "planted"

    def train_dataloader(self):
        return DataLoader([self.batch(i) for i in range(12)], batch_size=None)

    def val_dataloader(self):
        return DataLoader([self.batch(i) for i in range(2)], batch_size=None)

    def batch(self, index):
        label = torch.tensor([1.0] * 3 + [0.0] * 3)
        labels = torch.full((6, 4), math.nan)
        labels[:, 0] = label
        labels[:, 3] = 0.5 + 0.3 * label * (index % 2)
        return {
            "prompt": ["Describe the neighbour."] * 6,
            "response": FAIR + BIASED,
            "prompt_id": [f"p{index}"] * 6,
            "labels": labels,
        }


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def trainer(tmp_path, **options) -> Trainer:
    defaults = {"max_epochs": 4, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=tmp_path, **(defaults | quiet | options))


def model(encoder, tmp_path, **options) -> RewardModel:
    defaults = {"dimensions": ["fairness", "quality"], "max_length": 32}
    optimizer = {"optimizer": lambda parameters: AdamW(parameters, lr=3e-3)}
    return RewardModel(str(tmp_path / "out"), encoder, **(defaults | optimizer | options))


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
def test_training_separates_planted_texts_and_writes_a_model(encoder, tmp_path, capsys):
    seed_everything(0, verbose=False)
    losses = Losses()
    module = model(encoder, tmp_path)
    trainer(tmp_path, callbacks=[losses]).fit(module, datamodule=Planted())
    assert sum(losses.values[-6:]) < 0.7 * sum(losses.values[:6])

    scorer = RewardScorer.load(tmp_path / "out")
    scores = scorer.score(["Describe the neighbour."] * 6, FAIR + BIASED)
    assert scores[:3, 0].min() > scores[3:, 0].max() + 0.3
    trained = torch.equal(
        RewardScorer(module.network).score(["q"], ["They work."]), scorer.score(["q"], ["They work."])
    )
    assert trained

    manifest = json.loads((tmp_path / "out" / "reward_model.json").read_text())
    assert (manifest["dimensions"], manifest["max_length"]) == (["fairness", "quality"], 32)
    assert (manifest["base_model"], manifest["data"]) == (encoder, "planted")
    assert manifest["metrics"]["val/fairness/pairwise_accuracy"] == 1
    assert manifest["metrics"]["val/fairness/spearman"] > 0.8
    assert "fairness" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
def test_a_reward_model_can_be_trained_further(encoder, checkpoint, tmp_path):
    module = model(str(checkpoint), tmp_path, optimizer=lambda parameters: AdamW(parameters, lr=0.0))
    trainer(tmp_path, max_steps=1).fit(module, datamodule=Planted())
    before, after = RewardScorer.load(checkpoint), RewardScorer.load(tmp_path / "out")
    old, new = before.score(["q"], ["They work."]), after.score(["q"], ["They work."])
    for name in ("fairness", "quality"):
        assert old[0, before.dimensions.index(name)] == new[0, after.dimensions.index(name)]


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
def test_fast_dev_run_leaves_no_model(encoder, tmp_path):
    trainer(tmp_path, fast_dev_run=True).fit(model(encoder, tmp_path), datamodule=Planted())
    assert not (tmp_path / "out").exists()


def test_configure_model_loads_once_and_in_train_mode(encoder, tmp_path):
    module = model(encoder, tmp_path)
    assert list(module.parameters()) == []
    module.configure_model()
    network = module.network
    module.configure_model()
    assert module.network is network
    assert all(part.training for part in network.modules())


def test_buckets_change_nothing(encoder, tmp_path):
    torch.manual_seed(0)
    module = model(encoder, tmp_path, dropout=0.0)
    module.configure_model()
    module.eval()
    batch = Planted().batch(0)
    whole = module(batch["prompt"], batch["response"])
    module.bucket_size = 2
    torch.testing.assert_close(module(batch["prompt"], batch["response"]), whole, atol=1e-5, rtol=0)
    assert whole.flatten().unique().numel() == 12


def test_trainable_layers(encoder, tmp_path):
    module = model(encoder, tmp_path, trainable_layers=1)
    module.configure_model()
    encoder_parts = {name for name, p in module.network.encoder.named_parameters() if p.requires_grad}
    assert encoder_parts
    assert all(name.startswith("encoder.layer.1.") for name in encoder_parts)
    assert all(p.requires_grad for p in module.network.heads.parameters())
    with pytest.raises(UserError, match="has 2 layers; write 0 to 2"):
        model(encoder, tmp_path, trainable_layers=3).configure_model()


def test_the_learning_rate_rises_and_falls_to_zero(encoder, tmp_path):
    module = model(encoder, tmp_path, warmup=0.25)
    module.configure_model()
    module._trainer = type("T", (), {"estimated_stepping_batches": 8, "_results": None})()
    parts = module.configure_optimizers()
    optimizer, schedule = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"] / 3e-3)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


def test_labels_are_columns_by_name():
    labels = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, math.nan, 0.8]])
    picked = labels_of({"labels": labels, "warmth": [None, 1]}, ["quality", "warmth", "fairness"])
    assert picked[1].tolist() == pytest.approx([0.8, 1.0, 0.5])
    assert math.isnan(picked[0, 1])
    with pytest.raises(UserError, match=r"dimension 'depth'.*warmth"):
        labels_of({"labels": labels, "warmth": [1, 1]}, ["depth"])


def test_group_ids_are_equal_for_equal_ids_only():
    ids = group_ids(["a", "b", "a"])
    assert ids[0] == ids[2] != ids[1]
    assert group_ids(["b"])[0] == ids[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": []}, "dimensions"),
        ({"dimensions": ["fairness", "fairness"]}, "different names"),
        ({"dimensions": ["a.b"]}, "different names"),
        ({"max_length": 4}, "max_length >= 8"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"bucket_size": 0}, "bucket_size=0"),
        ({"ranking_weight": -1.0}, "ranking_weight"),
        ({"encoder": "./nowhere"}, "no such file or folder"),
    ],
)
def test_mistakes_are_found_before_anything_loads(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        RewardModel(**({"out": str(tmp_path / "out"), "encoder": str(tmp_path)} | options))


def test_out_must_not_hold_something_else(encoder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else than a reward model"):
        model(encoder, tmp_path)


def test_an_encoder_that_does_not_load_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model '.*empty' cannot be loaded.*pkg://"):
        RewardModel(str(tmp_path / "out"), str(tmp_path / "empty")).configure_model()


def test_an_encoder_with_pickled_weights_is_refused(encoder, tmp_path):
    folder = shutil.copytree(encoder, tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model '.*pickled' has no weights in safetensors"):
        RewardModel(str(tmp_path / "out"), str(folder)).configure_model()


def test_the_command_line_knows_the_options(encoder, tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    arguments = [
        "--model=lit_debias_deberta.RewardModel",
        f"--model.out={tmp_path / 'x'}",
        f"--model.encoder={encoder}",
    ]
    options = parser.parse_args(arguments).model.init_args
    assert options.dimensions == ["fairness", "neutrality", "relevance", "quality"]
    assert options.optimizer is None  # a default class would hand its options to another one that a file names
    assert RewardModel(str(tmp_path / "x"), encoder).make_optimizer([torch.zeros(1)]).param_groups[0]["lr"] == 2e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16-true"}, "'bf16-true' converts weights"),
        ({"callbacks": [StochasticWeightAveraging(1e-3)]}, "write EMAWeightAveraging"),
    ],
)
def test_what_the_trainer_cannot_do_is_refused(encoder, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, max_steps=1, **options).fit(model(encoder, tmp_path), datamodule=Planted())


@pytest.mark.parametrize("fast", [True, False])
def test_it_trains_in_bf16_only_where_that_is_fast(encoder, tmp_path, monkeypatch, fast):
    monkeypatch.setattr("lit_debias.support.precision.multiplies_bf16", lambda device: fast)
    model = RewardModel(str(tmp_path / "out"), str(encoder))
    model.configure_model()
    seen = []
    model.network.encoder.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):  # as the trainer's precision would have it
        logits = model(["a"], ["b"])
    assert seen == [fast]
    assert logits.dtype == torch.float32


# -------------------------------------------------------------------- a causal language model as the encoder


def test_a_pair_reads_the_same_alone_and_beside_a_longer_one(causal):
    network = build_network(causal, max_length=64).eval()
    short, long = ("Who?", "No one."), ("Describe the new neighbour.", "The record shows that this person is honest.")
    with torch.inference_mode():
        alone = network.read([short[0]], [short[1]])
        beside = network.read(*zip(short, long, strict=True))
    assert torch.allclose(alone[0], beside[0], atol=1e-6)
    encoding, sides = network.encode([short], 64)
    assert network.tokenizer.decode(encoding["input_ids"][0]) == "Who?\n\nNo one."
    assert network.tokenizer.decode(encoding["input_ids"][0][sides[0] == 1]) == "No one."


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
def test_lora_trains_the_top_layer_and_is_merged(causal, tmp_path):
    seed_everything(0, verbose=False)
    losses = Losses()
    module = model(causal, tmp_path, max_length=64, lora_rank=2, trainable_layers=1)
    trainer(tmp_path, max_epochs=6, callbacks=[losses]).fit(module, Planted())
    assert losses.values[-1] < 0.7 * losses.values[0]
    trained = load_network(tmp_path / "out")
    before = build_network(causal, max_length=64)
    changed = {
        name
        for (name, old), new in zip(before.encoder.named_parameters(), trained.encoder.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {name for name in changed if name.startswith("layers.2.") and name.endswith("proj.weight")}
    assert len(changed) == 7
    with torch.inference_mode():
        logits = trained.read(["Describe the neighbour."] * 6, FAIR + BIASED)[:, 0]
        assert logits[:3].min() > logits[3:].max()
        merged = module.network.eval().read(["Describe the neighbour."] * 6, FAIR + BIASED)[:, 0]
        assert torch.allclose(logits, merged, atol=1e-5)
    assert not list((tmp_path / "out").glob("adapter*"))


def test_lora_needs_a_layer_to_train(causal, tmp_path):
    with pytest.raises(UserError, match="lora_rank=0; write at least 1"):
        model(causal, tmp_path, lora_rank=0)
    with pytest.raises(UserError, match="no linear layer of the encoder trains"):
        model(causal, tmp_path, lora_rank=2, trainable_layers=0).configure_model()
