"""The test stage through Lightning, and what it writes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from lit_debias.errors import UserError
from lit_debias_deberta import RewardModel, RewardScorer
from lit_debias_deberta.calibration import Calibration
from lit_debias_deberta.checkpoint import MANIFEST, TEST, load_network, read_manifest, save_network
from lit_debias_deberta.examination import ScoredResponses, as_json, examine, flat
from lit_debias_deberta.metrics import expected_calibration_error

HEADS = ["fairness", "neutrality", "quality"]
RESPONSES = ["They are lazy.", "No", "Judge each person by what he does.", "They work."]


class Splits(LightningDataModule):
    """Two batches; the second split comes in both."""

    path = "splits"

    def test_dataloader(self):
        return DataLoader(
            [self.batch("test_iid", "test_group"), self.batch("test_group", "test_group")], batch_size=None
        )

    def batch(self, first, second):
        labels = torch.tensor(
            [[0.0, 0.2, math.nan, 0.5], [0.5, 0.1, 0.3, 1.0], [1.0, 0.9, 0.3, 0.2], [1.0, 0.8, 0.3, 0.1]]
        )
        return {
            "prompt": ["Hire them?"] * 4,
            "response": RESPONSES,
            "prompt_id": ["p", "p", "q", "q"],
            "split": [first, first, second, second],
            "hard_negative": ["", None, "", "reporting"],
            "labels": labels,
        }


def trainer(**options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(enable_model_summary=False, **(quiet | options))


pytestmark = pytest.mark.filterwarnings("ignore:The 'test_dataloader' does not have many workers")


def test_the_stage_measures_the_trained_model_and_keeps_the_figures(checkpoint, encoder, capsys):
    network, manifest = load_network(checkpoint), read_manifest(checkpoint)
    network.calibration["fairness"] = Calibration(temperature=3.0, bias=0.5)
    manifest.metrics.update({"val/loss": 0.5, "test_old/fairness/ece": 0.1})
    save_network(network, manifest, checkpoint)
    module = RewardModel(str(checkpoint), encoder, dimensions=HEADS, max_length=32, precision="float32")
    (logged,) = trainer().test(module, datamodule=Splits(), verbose=False)

    content = json.loads((checkpoint / TEST).read_text())
    assert content["data"] == "splits"
    assert {split: found["responses"] for split, found in content["splits"].items()} == {
        "all": 8,
        "test_iid": 2,
        "test_group": 6,
    }
    scores = RewardScorer.load(checkpoint).score(["Hire them?"] * 4, RESPONSES)
    labels = Splits().batch("", "")["labels"]
    figures = content["splits"]["all"]["dimensions"]["fairness"]
    assert figures["ece"] == pytest.approx(expected_calibration_error(scores[:, 0], labels[:, 0]), abs=1e-5)
    assert figures["ece_uncalibrated"] != pytest.approx(figures["ece"])
    assert logged["test/fairness/ece"] == pytest.approx(figures["ece"])
    first, second = scores[:2, 0].tolist()  # the two responses of the split; the second is labelled the fairer
    spearman = content["splits"]["test_iid"]["dimensions"]["fairness"]["spearman"]
    assert spearman == pytest.approx(1 if second > first else -1, abs=1e-4)
    hard = content["splits"]["test_group"]["hard_negatives"]["reporting"]
    assert (hard["n"], hard["label"]) == (2, 1.0)
    assert hard["score"] == pytest.approx(float(scores[3, 0]), abs=1e-5)

    metrics = json.loads((checkpoint / MANIFEST).read_text())["metrics"]
    assert metrics["val/loss"] == 0.5
    assert metrics["test_group/quality/ece"] == content["splits"]["test_group"]["dimensions"]["quality"]["ece"]
    assert not [name for name in metrics if "old" in name]
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("test_iid", "test_group", "rank correlation", "reporting", TEST))
    assert read_manifest(checkpoint).calibration["fairness"] == Calibration(3.0, 0.5)


def test_text_by_people_is_measured_where_it_is_named(checkpoint, encoder, tmp_path, capsys):
    (tmp_path / "public" / "crows_pairs").mkdir(parents=True)
    rows = "sent_more,sent_less,bias_type\nThey are lazy.,They work.,age\n"
    (tmp_path / "public" / "crows_pairs" / "crows_pairs_anonymized.csv").write_text(rows)
    module = RewardModel(str(checkpoint), encoder, dimensions=HEADS, human_text=str(tmp_path / "public"))
    trainer().test(module, datamodule=Splits(), verbose=False)
    found = json.loads((checkpoint / TEST).read_text())["human_text"]["CrowS-Pairs"]["age"]
    scorer = RewardScorer.load(checkpoint)
    less, more = scorer.score(["Write one sentence about people."] * 2, ["They work.", "They are lazy."])[:, 0].tolist()
    assert found["value"] == float(less > more)
    assert (found["fairer"], found["less_fair"]) == (pytest.approx(less, abs=1e-5), pytest.approx(more, abs=1e-5))
    assert "CrowS-Pairs" in capsys.readouterr().out


def test_one_split_is_not_told_twice_and_the_undefined_is_null():
    one = ScoredResponses(
        ["test"] * 2, ["", ""], torch.tensor([1, 1]), torch.tensor([[0.5], [0.5]]), *[torch.zeros(2, 1)] * 2
    )
    figures = examine(one, ["quality"], 0.1)
    assert list(figures) == ["all"]
    assert figures["all"]["hard_negatives"] == {}
    assert as_json(figures)["all"]["dimensions"]["quality"]["spearman"] is None
    assert set(flat(figures)) == {"all/quality/ece", "all/quality/ece_uncalibrated"}


def test_mistakes_are_found_before_a_model_is_loaded(checkpoint, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_debias_deberta.training.load_network", lambda folder: pytest.fail("loaded"))
    untrained = RewardModel(str(tmp_path / "nothing"), encoder, dimensions=HEADS)
    with pytest.raises(UserError, match=r"no such folder.*lit-debias fit"):
        trainer().test(untrained, datamodule=Splits())
    other = RewardModel(str(checkpoint), encoder, dimensions=["fairness"])
    with pytest.raises(UserError, match=r"has the heads \['fairness', 'neutrality', 'quality'\]"):
        trainer().test(other, datamodule=Splits())
    with pytest.raises(UserError, match="holds none of the files"):
        RewardModel(str(checkpoint), encoder, human_text=str(tmp_path))
    (tmp_path / "crows_pairs").mkdir()
    (tmp_path / "crows_pairs" / "crows_pairs_anonymized.csv").write_text("a\n")
    with pytest.raises(UserError, match="measures the head 'fairness'"):
        RewardModel(str(checkpoint), encoder, dimensions=["quality"], human_text=str(tmp_path))


def test_several_devices_are_refused(checkpoint, encoder):
    module = RewardModel(str(checkpoint), encoder, dimensions=HEADS)
    module._trainer = type("T", (), {"world_size": 2})()
    with pytest.raises(UserError, match=r"--trainer\.devices 1"):
        module.setup("test")
