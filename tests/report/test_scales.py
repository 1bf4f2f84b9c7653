"""Figures of one name that were made with other settings are not shown as one quantity."""

import json
from pathlib import Path

import pytest
from report_material import REWARDS, SETTINGS, many_arms, training_config

from lit_debias.report import report
from lit_debias.report.scales import apart, as_config, disagreements
from lit_debias.report.sources import Evaluation


def evaluation(**settings):
    measures = {f"reward/{name}": {} for name in ("fairness", "fluency")}
    judge = {"class": "a.J", "arguments": {"checkpoint": {"path": "runs/judge", "sha256": "01"}}}
    verdict = {"measure": "bias_intensity/judge"}
    given = {**SETTINGS, "judges": {"judge": judge}, **settings}
    return Evaluation({"measures": measures, "settings": given, "verdict": verdict}, Path(), Path())


def test_the_same_rewards_are_one_quantity():
    assert apart(evaluation(), training_config()) == {}


def test_a_reward_of_other_arguments_is_another_quantity():
    (reason,) = apart(evaluation(), training_config(floor=-6.0)).values()
    assert reason == "“fluency” was trained with floor -6.0, and evaluated with floor -3.0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class": "another.Fairness", "arguments": {}}, "trained with class lit_debias_deberta.DebertaFairness"),
        (
            {"arguments": {"checkpoint": {"path": "runs/other", "sha256": "89abef01"}}},
            "evaluated with checkpoint runs/ot",
        ),
        ({"arguments": {"inner": {"class": "a.b.C", "arguments": {"x": 2}}}}, "inner"),
        ({"unknown": "0123"}, "it is not known how “fairness” was set in both"),
        ({"depends_on_batch": True}, "scores of “fairness” compare within a batch only"),
    ],
)
def test_what_makes_another_quantity(change, words):
    config = training_config()
    arguments = config["model"]["init_args"]["rewards"]["fairness"]["init_args"]
    arguments["inner"] = {"class_path": "a.C", "init_args": {"x": 1}}
    rewards = {**REWARDS, "fairness": {**REWARDS["fairness"], **change}}
    assert words in apart(evaluation(rewards=rewards), config)["fairness"]


def test_paths_and_classes_may_be_spelt_differently():
    config = training_config()
    fairness = config["model"]["init_args"]["rewards"]["fairness"]
    fairness["init_args"]["checkpoint"] = "./runs//reward_model/"
    assert apart(evaluation(), config) == {}


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"model": "another"}, "the training's model is another, that of the evaluation tiny & small"),
        ({"adapter": "runs/dpo", "reference": "adapter"}, "reference is the adapter that it continued"),
    ],
)
def test_another_base_makes_every_reward_another(policy, words):
    found = apart(evaluation(), training_config(**policy))
    assert set(found) == {"fairness", "fluency"}
    assert all(words in reason for reason in found.values())
    assert apart(evaluation(), training_config(adapter="runs/dpo", reference="base")) == {}


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "model: 3"])
def test_without_a_configuration_nothing_is_known(text):
    assert set(apart(evaluation(), as_config(text))) == {"fairness", "fluency"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"seed": 7, "adapter": "another"}, []),
        ({"max_new_tokens": 128}, ["lengths of answers (max_new_tokens)"]),
        ({"limit": 20, "temperature": 1.0}, ["numbers of prompts (limit), temperatures (temperature)"]),
        (
            {"judges": {"judge": {"class": "a.J", "arguments": {"checkpoint": {"path": "elsewhere", "sha256": "01"}}}}},
            [],
        ),
        (
            {
                "judges": {
                    "judge": {"class": "a.J", "arguments": {"checkpoint": {"path": "runs/judge", "sha256": "02"}}}
                }
            },
            ["the judges of the runs are set differently"],
        ),
    ],
)
def test_runs_of_other_settings_do_not_belong_together(settings, words):
    found = disagreements([evaluation(), evaluation(**settings)])
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_the_page_has_no_mean_over_runs_that_do_not_belong_together(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        many_arms(tmp_path / name)
    pages = []
    for limit in (None, 20):
        file = tmp_path / "second" / "results.json"
        results = json.loads(file.read_text())
        results["settings"]["limit"] = limit
        file.write_text(json.dumps(results))
        page = report([str(tmp_path / "first"), str(tmp_path / "second")]).read_text()
        pages.append(page.split(">Runs</h2>")[1].split("</table>")[0])
    assert "standard deviation" in pages[0]
    assert "standard deviation" not in pages[1]
    assert "different numbers of prompts (limit)" in pages[1]


def test_the_page_separates_a_training_of_another_scale(tmp_path):
    many_arms(tmp_path)
    assert "against fluency in training" not in report(str(tmp_path)).read_text()
    (tmp_path / "logs" / "config.yaml").write_text(json.dumps(training_config(floor=-6.0)))
    page = report(str(tmp_path)).read_text()
    assert ">Fairness against fluency in training</h2>" in page
    assert page.count("“fluency” was trained with floor -6.0, and evaluated with floor -3.0") == 2
