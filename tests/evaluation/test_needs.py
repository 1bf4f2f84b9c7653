"""Which measures appear, and what is said of the others."""

import pytest

from lit_debias.evaluation.measures import MEASURES
from lit_debias.evaluation.needs import NEEDS, NOTHING, Asked, by_reason, not_measured, notes
from lit_debias.evaluation.prompts import DEFAULTS

READERS = ["judges", "rewards", "perplexity_model", "similarity_model"]
FULL = {"group": "A", "reference": "r", "biased": "b", "choices": ["x", "y"], "answer": 0}


def rows(*changes):
    return [
        {**DEFAULTS, "prompt": f"p{n}", "prompt_id": f"{n}", "twin_id": f"{n}", "origin": f"row {n}", **change}
        for n, change in enumerate(changes)
    ]


def test_every_measure_says_what_it_needs():
    assert set(NEEDS) == set(MEASURES)


def test_prompts_alone():
    missing = not_measured(Asked(rows({}, {}), []), ["perplexity", "prose_perplexity", "length", "refusal"])
    assert missing["bias_intensity"] == "no judge is named (--judges)"
    assert missing["worst_group"] == "no prompt has a 'group'"
    assert missing["preference"] == missing["preference_margin"] == "no open or leading prompt has a 'reference'"
    assert missing["gap_length"] == "no two prompts share a 'twin_id', and none has a 'counterfactual_prompt'"
    assert missing["accuracy"] == missing["biased_choice"] == "no prompt has 'choices'"
    assert missing["similarity"] == "no prompt that is answered has a 'reference'"
    assert missing["perplexity_other"] == "no other language model is named (--perplexity_model)"
    assert missing["refusal_control"] == "no prompt is a control (column 'prompt_kind')"
    assert missing["reward"] == "no reward is named (--rewards)"
    assert missing["distinct_1"] == NOTHING
    assert not {"perplexity", "length"} & set(missing)


@pytest.mark.parametrize(
    ("changes", "measure", "reason"),
    [
        ([FULL] * 5, "worst_group", "all prompts have the same 'group'"),
        ([FULL, {**FULL, "group": "B"}], "worst_group", "no 'group' has 4 prompts"),
        ([*[FULL] * 4, {**FULL, "group": "B"}], "worst_group", NOTHING),
        ([*[FULL] * 4, {}], "worst_group", "all prompts have the same 'group'"),
        ([{"reference": "r"}, {}], "preference", "no open or leading prompt has a 'biased'"),
        ([{"reference": "r"}, {"biased": "b"}], "preference", "no prompt has both 'reference' and 'biased'"),
        ([FULL], "preference", NOTHING),
        ([FULL], "accuracy", NOTHING),
        ([FULL], "biased_choice", "no prompt with 'choices' that is 'ambiguous' says 'biased_choice'"),
        ([{**FULL, "ambiguous": True}], "accuracy", "no prompt with 'choices' that is not 'ambiguous' says 'answer'"),
        (
            [{**FULL, "prompt_kind": "forced_choice"}],
            "length",
            "every prompt is a forced choice (column 'prompt_kind')",
        ),
        ([{"prompt_kind": "control"}], "bias_rate", "no prompt is open or leading (column 'prompt_kind')"),
        (
            [{"twin_id": "t", "counterfactual_prompt": "p1"}, {"twin_id": "t", "counterfactual_prompt": "p0"}],
            "gap_length",
            NOTHING,
        ),
    ],
)
def test_the_first_thing_that_is_missing_is_the_reason(changes, measure, reason):
    assert not_measured(Asked(rows(*changes), READERS), [])[measure] == reason


def test_a_measure_of_a_judge_counts_by_its_name():
    assert "bias_intensity" not in not_measured(Asked(rows({}), READERS), ["bias_intensity/judge"])


def test_measures_on_a_part_of_the_prompts_are_said():
    asked = Asked(rows(*[FULL] * 4, {"group": "B"}, {}), READERS)
    assert notes(asked, asked.rows) == [
        "preference: on 4 of 6 prompts of the data, the others lack 'reference' or 'biased'",
        "similarity: on 4 of 6 prompts of the data, the others lack 'reference'",
        "worst group: on 5 of 6 prompts of the data, the others lack 'group'",
    ]
    twins = rows(
        {"twin_id": "t", "counterfactual_prompt": "p1"},
        {"twin_id": "t", "counterfactual_prompt": "p0"},
        {"cluster": "c"},
    )
    assert notes(Asked(twins, READERS), twins) == [
        "intervals: the bootstrap draws the prompts of a 'cluster' together, 1 of them",
        "twins: on 2 of 3 prompts of the data, the others lack a twin",
    ]


def test_twins_that_the_data_only_mentions_lack_nothing():
    first = rows({**FULL, "counterfactual_prompt": "q"})
    added = [{**first[0], "prompt": "q", "prompt_id": "0-twin", "counterfactual_prompt": "p0", "biased": ""}]
    assert notes(Asked([*first, *added], READERS), [*first, *added]) == []


def test_one_reason_is_said_once():
    assert by_reason({"accuracy": "r", "biased_choice": "r", "length": "s", "unknown": "s"}) == {
        "r": [MEASURES["accuracy"].label, MEASURES["biased_choice"].label],
        "s": [MEASURES["length"].label, "unknown"],
    }
