"""The linear model of toxicity: its formula, its training, its files, its command."""

import json
import math

import pytest
import torch

from lit_debias.cli.main import main
from lit_debias.errors import UserError
from lit_debias.rewards.reward import RewardBatch
from lit_debias.text_measures.linear import ABOUT, WEIGHTS, Features, LinearModel, LinearToxicity, known
from lit_debias.text_measures.linear_training import Labelled, auc, fit, loss_of, quality_of, split

TEXTS = [
    *(Labelled(f"you are {word} and rude", 1.0) for word in ("nasty", "vile", "foul", "nasty", "vile")),
    *(Labelled(f"you are {word} and kind", 0.0) for word in ("great", "quick", "tall", "great", "quick")),
]


def batch(*texts):
    return RewardBatch([""] * len(texts), list(texts), [0] * len(texts))


def ready(folder):
    reward = LinearToxicity(str(folder))
    reward.setup(torch.device("cpu"))
    return reward


def test_a_probability_by_hand():
    model = LinearModel({"so": 0, "bad": 1, "so bad": 2}, torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), -1.0, 2)
    expected = [1 / (1 + math.exp(-(3.5 / math.sqrt(3) - 1))), 1 / (1 + math.exp(1)), 1 / (1 + math.exp(1))]
    assert model.probabilities(["So bad, so bad?", "unseen", ""]).tolist() == pytest.approx(expected, abs=1e-12)


def test_training_ends_at_the_minimum_of_the_penalised_loss():
    model = fit(TEXTS, longest=2, least=2, penalty=0.7)
    features = Features.of([known(row.text, model.vocabulary, 2) for row in TEXTS])
    labels = torch.tensor([row.toxic for row in TEXTS], dtype=torch.float64)
    parameters = torch.cat([model.weights, torch.tensor([model.bias], dtype=torch.float64)]).requires_grad_()
    loss = loss_of(parameters, features, labels, 0.7)
    [gradient] = torch.autograd.grad(loss, parameters)
    assert gradient.abs().max() < 1e-6  # convex, so this is the minimum
    chances = torch.tensor(model.probabilities([row.text for row in TEXTS]).tolist(), dtype=torch.float64)
    by_hand = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
    assert loss.item() == pytest.approx(float(by_hand + 0.35 * model.weights.square().sum() / len(TEXTS)))
    assert "and rude" in model.vocabulary
    assert "foul" not in model.vocabulary  # in one text alone


def test_what_is_toxic_scores_low_after_saving(tmp_path):
    fit(TEXTS, 2, 2, 1.0).save(tmp_path / "model", {"texts": len(TEXTS)})
    assert {file.name for file in (tmp_path / "model").iterdir()} == {WEIGHTS, ABOUT}
    rude, kind, empty = ready(tmp_path / "model").score(batch("how rude and vile", "how kind and quick", " "))
    assert rude < 0.5 < kind
    assert empty is None
    first = ready(tmp_path / "model").identity()
    fit(TEXTS, 1, 2, 1.0).save(tmp_path / "model", {})
    assert ready(tmp_path / "model").identity() != first  # another model in the same place


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / WEIGHTS).write_bytes(b"{"),
        lambda folder: change(folder, lambda about: about["vocabulary"].pop()),
        lambda folder: change(folder, lambda about: about.pop("longest")),
        lambda folder: change(folder, lambda about: about.update(format=2)),
    ],
)
def test_a_damaged_model_is_one_line(tmp_path, damage):
    fit(TEXTS, 1, 2, 1.0).save(tmp_path / "model", {})
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=r"is damaged .*train it anew"):
        ready(tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"there is no {WEIGHTS} in"):
        ready(tmp_path / "model")


def change(folder, how):
    about = json.loads((folder / ABOUT).read_text())
    how(about)
    (folder / ABOUT).write_text(json.dumps(about))


def test_auc_and_accuracy_by_hand():
    positive = torch.tensor([True, False, True, False])
    assert auc(torch.tensor([0.9, 0.8, 0.3, 0.3]), positive) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert auc(torch.tensor([0.9]), torch.tensor([True])) is None
    quality = quality_of(fit(TEXTS, 2, 2, 1.0), [*TEXTS, Labelled("rude", 0.0)])
    assert (quality.texts, quality.toxic, quality.majority) == (11, 5, pytest.approx(6 / 11))
    assert quality.accuracy == pytest.approx(10 / 11)


def test_equal_texts_stay_together():
    rows = [Labelled(str(i % 50), 0.0) for i in range(200)]
    train, test = split(rows, 0.3, 0)
    assert {row.text for row in train}.isdisjoint(row.text for row in test)
    assert 20 < len(test) < 100
    assert split(rows, 0.3, 1)[1] != test
    assert split(rows, 0, 0) == (rows, [])


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps({"comment": row.text, "label": row.toxic}) for row in TEXTS * 4))
    return file


def test_the_command_writes_a_model(data, tmp_path, capsys):
    out = tmp_path / "model"
    options = ["--text", "comment", "--toxic", "label", "--held_out", "0.3", "--seed", "2"]
    for _ in range(2):  # an earlier model is replaced
        assert main(["toxicity", "train", str(data), "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "held out" in said
    assert "AUC 1.000" in said
    assert f"{{class_path: LinearToxicity, init_args: {{model: {out}}}}}" in said
    assert json.loads((out / ABOUT).read_text())["training"]["options"]["held_out"] == 0.3
    rude, kind = ready(out).score(batch("rude", "kind"))
    assert rude < kind


def test_labels_may_say_how_harmless_a_text_is(tmp_path, capsys):
    rows = [{"text": row.text, "toxic": row.toxic, "fairness": 1 - row.toxic} for row in TEXTS]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    for name, options in {"toxic": [], "fair": ["--harmless", "fairness"]}.items():
        assert main(["toxicity", "train", str(file), "--out", str(tmp_path / name), "--held_out", "0", *options]) == 0
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("toxic", "fair")]
    assert weights[0] == weights[1]
    rude, kind = ready(tmp_path / "fair").score(batch("rude", "kind"))
    assert rude < kind


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a", "toxic": 1}, {"text": "b", "toxic": 1}], [], "all texts to train on have one label"),
        ([{"text": "a", "toxic": 1}, {"text": "b", "toxic": 2}], [], "'toxic' is 2; write a number from 0"),
        ([{"text": "a", "toxic": None}], [], "'toxic' is None; write a number from 0"),
        ([{"text": " ", "toxic": 1}], [], "'text' is ' '; write a text"),
        ([{"text": "a", "toxic": 1}], ["--text", "words"], "has no column 'words', it has text, toxic"),
        ([{"text": "a", "toxic": 1}, {"text": "b", "toxic": 0}], [], "no word occurs in 2 texts"),
        ([{"text": "a", "toxic": 1}], ["--held_out", "1"], "held_out=1.0, penalty=1.0; write 0 or more, below 1"),
        ([{"text": "a", "toxic": 1}], ["--ngrams", "0"], "ngrams=0; write 1 or more"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, rows, options, message):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    given = options if "--held_out" in options else [*options, "--held_out", "0"]
    assert main(["toxicity", "train", str(file), "--out", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(["toxicity", "train", str(data), "--out", str(tmp_path / "out"), "--text", "comment"]) == 2
    assert "holds no such model" in capsys.readouterr().err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
