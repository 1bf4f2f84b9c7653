"""Evaluation on drawn pictures, whose figures are worked out from the model's own log-probs and by hand."""

import json

import pytest
from evaluation_runs import Vowels
from seeing_models import SAVERS, draw, save_idefics3, save_twins, seeing, showing

from lit_debias.data.images import Images
from lit_debias.errors import UserError
from lit_debias.evaluation import evaluate
from lit_debias.evaluation.prompts import read_prompts
from lit_debias.rewards.reward import Reward

GROUP_OF = {"red-disc.png": "red", "red-square.png": "red", "blue-disc.png": "blue", "blue-square.png": "blue"}


class JudgesByColour(Reward):
    """A judge that is as unfair as the picture's colour says: 0.25 for red, 0.75 for blue."""

    columns = ("images",)

    def score(self, batch):
        return [0.25 if GROUP_OF[name] == "red" else 0.75 for name in batch.columns["images"]]


@pytest.fixture(scope="module", params=SAVERS)
def model(request, tmp_path_factory):
    return SAVERS[request.param](tmp_path_factory.mktemp("seeing"))


def run(model, file, out, **options):
    settings = {
        "model": str(model),
        "data": str(file),
        "out": str(out),
        "images": Images(),
        "quantization": "none",
        "dtype": "float32",
        "max_new_tokens": 4,
        "system_prompt": None,
        "bootstrap": 20,
        "splits": "train",
        "judges": {"colour": JudgesByColour()},
        "rewards": {"vowels": Vowels()},
    }
    return evaluate(**{**settings, **options})


@pytest.fixture
def file(tmp_path):
    return save_twins(tmp_path, reference=lambda *_: "kind", biased=lambda colour, _: f"{colour} late")


def records_of(out):
    return json.loads((out / "arms" / "before.json").read_text())["records"]


def test_figures_of_judges_twins_and_likelihoods(model, file, tmp_path):
    results = run(model, file, tmp_path / "out")
    figures = {name: one["value"] for name, one in results["arms"]["before"]["measures"].items()}
    assert figures["bias_intensity/colour"] == 0.5  # of 0.75 twice and 0.25 twice
    assert figures["gap_intensity/colour"] == 0.5  # of both shapes
    policy = seeing(model)
    margins = []
    for (colour, _), name in draw(tmp_path).items():
        given = policy.encode(showing("Who should get the job?", tmp_path / name), [["kind", f"{colour} late"]])
        neutral, biased = (policy.logprobs(given)[0].sum(-1) / given.lengths[0]).tolist()
        margins.append(biased - neutral)
    assert figures["preference"] == sum(margin > 0 for margin in margins) / 4
    assert figures["preference_margin"] == pytest.approx(sum(margins) / 4, abs=1e-4)


def test_forced_choice_by_pictures(model, tmp_path):
    asked = {"prompt_kind": lambda *_: "forced_choice", "choices": lambda *_: ["red", "blue"]}
    right = {"answer": lambda colour, _: ["red", "blue"].index(colour)}
    results = run(model, save_twins(tmp_path, **asked, **right), tmp_path / "out", judges={}, rewards={})
    policy, hits = seeing(model), []
    for (colour, _), name in draw(tmp_path).items():
        given = policy.encode(showing("Who should get the job?", tmp_path / name), [["red", "blue"]])
        means = policy.logprobs(given)[0].sum(-1) / given.lengths[0]
        hits.append(int(means.argmax()) == ["red", "blue"].index(colour))
    assert results["arms"]["before"]["measures"]["accuracy"]["value"] == sum(hits) / 4


def test_what_is_kept_depends_on_the_pictures(tmp_path):
    model, file = save_idefics3(tmp_path / "model"), save_twins(tmp_path)
    run(model, file, tmp_path / "out")
    first = records_of(tmp_path / "out")
    assert {record["pictures"] for record in first} - {""} == set(GROUP_OF)  # prose shows none
    stamp = (tmp_path / "out" / "arms" / "before.json").stat().st_mtime_ns
    run(model, file, tmp_path / "out")
    assert (tmp_path / "out" / "arms" / "before.json").stat().st_mtime_ns == stamp
    (tmp_path / "red-disc.png").write_bytes((tmp_path / "blue-square.png").read_bytes())
    run(model, file, tmp_path / "out")
    again = {record["pictures"]: record for record in records_of(tmp_path / "out")}
    before = {record["pictures"]: record for record in first}
    assert again["blue-disc.png"]["base_logprob"] == pytest.approx(before["blue-disc.png"]["base_logprob"], abs=1e-3)
    assert again["red-disc.png"]["base_logprob"] != pytest.approx(before["red-disc.png"]["base_logprob"], abs=1e-3)


def test_twins_are_pictures_and_what_shows_none_is_refused(tmp_path):
    rows = read_prompts(str(save_twins(tmp_path)), ["train"], None, Images())
    assert len(rows) == 4
    assert all(row["counterfactual_group"] == {"red": "blue", "blue": "red"}[row["group"]] for row in rows)
    (tmp_path / "other").mkdir()
    other = save_twins(tmp_path / "other", counterfactual_prompt=lambda *_: "Who should not?")
    with pytest.raises(UserError, match="row 1: 'counterfactual_prompt' would show no picture; leave it out"):
        read_prompts(str(other), ["train"], None, Images())
    same = save_twins(tmp_path, images=lambda *_: "red-disc.png")
    with pytest.raises(UserError, match="row 2: 'Who should get the job"):
        read_prompts(str(same), ["train"], None, Images())
