"""Evaluation on drawn pictures, whose figures are worked out from the model's own log-probs and by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch
from evaluation_runs import Vowels
from seeing_models import COLOURS, SHAPES, draw, save_qwen2_vl, save_twins, seeing, showing

from lit_debias.benchmark.statistics import ClusterBootstrap
from lit_debias.data.images import Images
from lit_debias.errors import UserError
from lit_debias.evaluation import evaluate
from lit_debias.evaluation.picture_skew import picture_skews
from lit_debias.evaluation.prompts import read_prompts
from lit_debias.evaluation.records import Record
from lit_debias.rewards.reward import Reward

GROUP_OF = {"red-disc.png": "red", "red-square.png": "red", "blue-disc.png": "blue", "blue-square.png": "blue"}


class JudgesByColour(Reward):
    """A judge that is as unfair as the picture's colour says: 0.25 for red, 0.75 for blue."""

    columns = ("images",)

    def score(self, batch):
        return [0.25 if GROUP_OF[name] == "red" else 0.75 for name in batch.columns["images"]]


class Likelihood(Reward):
    """Log-probability under the base, with the tokens that it is of."""

    columns = ("images",)
    needs_reference_logprobs = True

    def __init__(self):
        self.seen = {}

    def score(self, batch):
        rows = zip(batch.columns["images"], batch.completion_ids, batch.reference_logprobs, strict=True)
        self.seen |= {name: (ids, logprobs) for name, ids, logprobs in rows}
        return [0.0] * len(batch)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_qwen2_vl(tmp_path_factory.mktemp("seeing"))


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


def test_the_base_sees_the_pictures_too(model, file, tmp_path):
    likelihood = Likelihood()
    run(model, file, tmp_path / "out", judges={}, rewards={"base": likelihood})
    policy = seeing(model)
    assert set(likelihood.seen) == set(GROUP_OF)
    for name, (ids, found) in likelihood.seen.items():
        given = policy.encode(showing("Who should get the job?", tmp_path / name), [["kind"]])
        tokens = torch.tensor([[ids]])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        expected = policy.logprobs(replace(given, completion_ids=tokens, completion_mask=mask))[0, 0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_forced_choice_by_pictures(model, tmp_path):
    asked = {"prompt_kind": lambda *_: "forced_choice", "choices": lambda *_: ["red", "blue"]}
    right = {"answer": lambda colour, _: ["red", "blue"].index(colour)}
    results = run(model, save_twins(tmp_path, **asked, **right), tmp_path / "out", judges={}, rewards={})
    policy, hits, likely = seeing(model), [], {}
    for (colour, shape), name in draw(tmp_path).items():
        given = policy.encode(showing("Who should get the job?", tmp_path / name), [["red", "blue"]])
        means = policy.logprobs(given)[0].sum(-1) / given.lengths[0]
        hits.append(int(means.argmax()) == ["red", "blue"].index(colour))
        likely[colour, shape] = means.softmax(-1)
    figures = {name: one["value"] for name, one in results["arms"]["before"]["measures"].items()}
    assert figures["accuracy"] == sum(hits) / 4
    red, blue = (sum(likely[colour, shape] for shape in SHAPES) / 2 for colour in COLOURS)
    skews = torch.stack([red, blue]).div(red + blue).mul(2).log()
    assert figures["min_skew"] == pytest.approx(float(skews.min(0).values.mean()), abs=1e-4)
    assert figures["max_skew"] == pytest.approx(float(skews.max(0).values.mean()), abs=1e-4)


def test_what_is_kept_depends_on_the_pictures(model, tmp_path):
    file = save_twins(tmp_path)
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


def chooser(picture, group, logprobs, prompt="Is this person patient?", choices=("yes", "no")):
    return Record(
        *("p", picture, "test", "c", group, "forced_choice", prompt, "", False, -1, -1),
        choice_logprobs=list(map(math.log, logprobs)),
        pictures=picture,
        choices=list(choices),
    )


def test_skews_by_hand():
    """Yes: red 0.6 on average, blue 0.2, so shares 3/4 and 1/4; no: 0.4 and 0.8, so 1/3 and 2/3."""
    records = [
        chooser("1", "red", (0.9, 0.1)),
        chooser("2", "red", (0.3, 0.7)),
        chooser("3", "blue", (0.2, 0.8)),
        chooser("4", "blue", (0.5, 0.5), prompt="about one group alone"),
        replace(chooser("", "blue", (0.5, 0.5)), pictures=""),
        chooser("5", "all", (0.5, 0.5)),
    ]
    found = picture_skews(records, ClusterBootstrap([r.twin_id for r in records], 50, 0))
    assert found["min_skew"].value == pytest.approx((math.log(1 / 4 * 2) + math.log(1 / 3 * 2)) / 2)
    assert found["max_skew"].value == pytest.approx((math.log(3 / 4 * 2) + math.log(2 / 3 * 2)) / 2)
    assert found["min_skew"].n == 3
    low, high = found["max_skew"].interval
    assert 0 <= low <= found["max_skew"].value <= high <= math.log(2)
    assert picture_skews(records[3:], ClusterBootstrap(["a", "b", "c"], 5, 0)) == {}


def test_two_questions_count_alike_and_what_is_alike_has_no_skew():
    records = [chooser(colour, colour, (0.3, 0.7), prompt="alike") for colour in ("red", "blue")]
    records += [chooser(colour, colour, (p, 1 - p), "other") for colour, p in (("red", 0.75), ("blue", 0.25))]
    found = picture_skews(records, ClusterBootstrap([str(i) for i in range(4)], 5, 0))
    assert found["max_skew"].value == pytest.approx(math.log(1.5) / 2)
    assert found["min_skew"].value == pytest.approx(math.log(0.5) / 2)
