"""Calibration against what it must find, and that it is stored, applied and harmless to rankings."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lit_debias.errors import UserError
from lit_debias_deberta import RewardScorer
from lit_debias_deberta.calibration import Calibration, fit_calibration
from lit_debias_deberta.checkpoint import MANIFEST, Manifest, load_network, read_manifest, save_network
from lit_debias_deberta.metrics import expected_calibration_error

PROMPTS, RESPONSES = ["Hire them?"] * 4, ["They are lazy.", "No", "Judge each person by what he does.", "They work."]


def test_score_by_hand():
    # logit 2 log 3, temperature 2, bias log 3: sigmoid(log 3 + log 3) = 9/10
    score = Calibration(temperature=2, bias=math.log(3))(torch.tensor([2 * math.log(3)]))
    assert score.item() == pytest.approx(0.9)
    assert Calibration()(torch.tensor(0.3)).item() == pytest.approx(torch.tensor(0.3).sigmoid().item())


def test_finds_the_temperature_and_bias_that_made_the_labels():
    logits = torch.linspace(-6, 6, 4001)
    found = fit_calibration(logits, (logits / 2.5 - 0.7).sigmoid())
    assert (found.temperature, found.bias) == (pytest.approx(2.5, abs=0.01), pytest.approx(-0.7, abs=0.01))


def test_the_minimum_has_no_slope():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, dtype=torch.float64) * 3, torch.rand(50, dtype=torch.float64)
    labels[7] = math.nan
    found = fit_calibration(logits, labels)
    known = ~labels.isnan()

    def objective(log_temperature: float, bias: float) -> float:
        scores = Calibration(math.exp(log_temperature), bias)(logits[known])
        fit = torch.nn.functional.binary_cross_entropy(scores, labels[known], reduction="sum")
        return fit.item() + (log_temperature**2 + bias**2) / 2

    best, step = (math.log(found.temperature), found.bias), 1e-3
    assert all(objective(*best) < objective(best[0] + step * a, best[1] + step * b) for a in (-1, 1) for b in (-1, 1))


@pytest.mark.parametrize("labels", [[], [math.nan, math.nan]])
def test_nothing_to_learn_from_changes_nothing(labels):
    found = fit_calibration(torch.zeros(len(labels)), torch.tensor(labels))
    assert (found.temperature, found.bias) == (1, 0)


@pytest.mark.parametrize("labels", [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
def test_separated_reversed_and_equal_labels_stay_finite_and_increasing(labels):
    logits = torch.tensor([-1.0, -0.5, 0.5, 1.0])
    with torch.inference_mode():  # as in Lightning's validation
        scores = fit_calibration(logits, torch.tensor(labels))(logits)
    assert scores.isfinite().all()
    assert (scores.diff() > 0).all()


def test_calibration_lowers_the_error_of_overconfident_scores():
    torch.manual_seed(0)
    logits = torch.randn(2000) * 2
    labels = (torch.rand(2000) < logits.sigmoid()).float()
    seen, new = slice(0, 1000), slice(1000, None)
    calibrated = fit_calibration(3 * logits[seen], labels[seen])(3 * logits[new])
    before = expected_calibration_error((3 * logits[new]).sigmoid(), labels[new])
    assert expected_calibration_error(calibrated, labels[new]) < before / 2


def test_stored_applied_and_the_ranking_stays(checkpoint, tmp_path):
    plain = RewardScorer.load(checkpoint).score(PROMPTS, RESPONSES)
    network = load_network(checkpoint)
    network.calibration["fairness"] = Calibration(temperature=2.0, bias=-1.0)
    save_network(network, read_manifest(checkpoint), tmp_path / "calibrated")

    stored = json.loads((tmp_path / "calibrated" / MANIFEST).read_text())["calibration"]
    assert stored["fairness"] == {"temperature": 2.0, "bias": -1.0}
    scores = RewardScorer.load(tmp_path / "calibrated").score(PROMPTS, RESPONSES)
    torch.testing.assert_close(scores[:, 0], (plain[:, 0].logit() / 2 - 1).sigmoid())
    assert torch.equal(scores[:, 1:], plain[:, 1:])
    assert scores[:, 0].argsort().tolist() == plain[:, 0].argsort().tolist()
    assert scores[:, 0].unique().numel() == 4


def test_a_checkpoint_of_an_older_version_still_loads_and_scores_alike(encoder, tmp_path):
    from lit_debias_deberta.network import RewardNetwork, load_encoder

    torch.manual_seed(0)
    old = RewardNetwork(*load_encoder(encoder), ["fairness"], max_length=32, pooling="mean").eval()
    save_network(old, Manifest(["fairness"], max_length=32), tmp_path / "old")
    content = json.loads((tmp_path / "old" / MANIFEST).read_text())
    del content["pooling"], content["calibration"]
    (tmp_path / "old" / MANIFEST).write_text(json.dumps(content))

    encoding, _ = old.encode(list(zip(PROMPTS, RESPONSES, strict=True)), 32)
    mask = encoding["attention_mask"].unsqueeze(-1)
    states = old.encoder(**encoding).last_hidden_state
    expected = old.heads["fairness"]((states * mask).sum(1) / mask.sum(1)).sigmoid()
    torch.testing.assert_close(RewardScorer.load(tmp_path / "old").score(PROMPTS, RESPONSES), expected.detach())


@pytest.mark.parametrize(
    "change",
    [{"calibration": {"fairness": {"temperature": 0.0, "bias": 0.0}}}, {"calibration": 3}, {"pooling": "max"}],
)
def test_a_damaged_manifest_is_one_clear_line(checkpoint, change):
    content = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(content | change))
    with pytest.raises(UserError, match="not readable"):
        read_manifest(checkpoint)
