import math
from operator import attrgetter

import pytest

from lit_debias.benchmark.statistics import ClusterBootstrap
from lit_debias.evaluation.meanings import MEANINGS
from lit_debias.evaluation.measures import MEASURES, breakdown, measure, twin_pairs, word_budgets
from lit_debias.evaluation.records import Record
from lit_debias.evaluation.results import summarize
from lit_debias.evaluation.verdict import verdict


def record(twin="t1", group="A", prompt="p", other="", kind="open", **values):
    return Record(
        prompt_id=f"{twin}-{prompt}",
        twin_id=twin,
        split="test_group",
        category=values.pop("category", "regional"),
        group=group,
        prompt_kind=kind,
        prompt=prompt,
        counterfactual_prompt=other,
        ambiguous=values.pop("ambiguous", False),
        answer=values.pop("answer", -1),
        biased_choice=values.pop("biased_choice", -1),
        **values,
    )


def said(text, judge=None, tokens=0, base=0.0, **values):
    judges = {} if judge is None else {"judge": judge}
    return record(completion=text, judges=judges, tokens=tokens, base_logprob=base, **values)


def figures(records):
    bootstrap = ClusterBootstrap([r.twin_id for r in records], 20, 0)
    return {name: e.value for name, e in measure(records, bootstrap, word_budgets([records])).items()}


def test_bias_of_open_and_leading_prompts_only():
    found = figures(
        [
            said("x", 0.9, twin="1"),
            said("x", 0.3, twin="2", kind="leading"),
            said("x", 0.0, twin="3", kind="control"),
        ]
    )
    assert found["bias_intensity/judge"] == pytest.approx((0.1 + 0.7) / 2)
    assert found["bias_rate/judge"] == 0.5


def test_a_judge_without_opinion_is_left_out():
    silent = record(twin="2", completion="x", judges={"judge": None})
    assert figures([said("x", 0.4, twin="1"), silent])["bias_intensity/judge"] == pytest.approx(0.6)


def test_the_worst_group_is_one_of_several_that_the_data_names():
    def worst(*groups):
        rows = [said("x", 0.1 * i, twin=f"{g}{i}", group=g) for g in groups for i in range(4)]
        return figures(rows).get("worst_group/judge")

    assert worst("A") is worst("all") is worst("all", "A") is None
    assert worst("A", "B") == pytest.approx(0.85)
    high = [said("x", 0.0, twin=f"all{i}", group="all") for i in range(4)]  # not a group
    rows = [said("x", 0.5, twin=f"{g}{i}", group=g) for g in "AB" for i in range(4)]
    assert figures(high + rows)["worst_group/judge"] == pytest.approx(0.5)


def test_prompts_of_a_cluster_are_drawn_together():
    rows = [said("x", 0.25 * i, twin=f"{i}", cluster="c" if i < 4 else "") for i in range(5)]
    assert [row.drawn_with for row in rows] == [*["cluster c"] * 4, "twins 4"]
    alone = [said("x", 0.25 * i, twin=f"{i}", cluster="c") for i in range(4)]
    interval = summarize({"before": [alone]}, 20, 0)["arms"]["before"]["measures"]["bias_intensity/judge"]
    assert interval["low"] == interval["high"] == interval["value"]  # one cluster is in every draw
    apart = [said("x", 0.25 * i, twin=f"{i}") for i in range(4)]
    interval = summarize({"before": [apart]}, 20, 0)["arms"]["before"]["measures"]["bias_intensity/judge"]
    assert interval["low"] < interval["high"]


def test_worst_group_and_breakdown():
    records = [said("x", s, twin=f"{g}{i}", group=g) for g in "AB" for i, s in enumerate([0.5, 0.5, 0.5, 0.1])]
    records[0].judges["judge"] = 0.1
    assert figures(records)["worst_group/judge"] == pytest.approx((0.9 + 0.5 + 0.5 + 0.9) / 4)
    bootstrap = ClusterBootstrap([r.twin_id for r in records], 5, 0)
    parts = breakdown(records, bootstrap, "judge", attrgetter("group"))
    assert list(parts) == ["A", "B"]  # highest first
    assert parts["B"].value == pytest.approx(0.6)


def test_preference_counts_ties_half():
    values = [(-1.0, -2.0), (-2.0, -1.0), (-1.0, -1.0), (-1.5, -0.5)]
    records = [
        record(twin=str(i), biased_logprob=biased, reference_logprob=neutral)
        for i, (biased, neutral) in enumerate(values)
    ]
    found = figures(records)
    assert found["preference"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert found["preference_margin"] == pytest.approx((1 - 1 + 0 - 1) / 4)


def test_twins():
    found = figures(
        [
            said("As an AI I pass", 0.9, tokens=10, prompt="a", other="b", group="B"),
            said("fine", 0.2, tokens=4, prompt="b", other="a", group="A"),
            said("fine", 0.5, tokens=4, prompt="a", other="b", group="A", twin="t2"),
            said("fine", 0.6, tokens=5, prompt="b", other="a", group="B", twin="t2"),
        ]
    )
    assert found["gap_intensity/judge"] == pytest.approx((0.7 + 0.1) / 2)
    assert found["gap_length"] == (6 + 1) / 2
    assert found["gap_refusal"] == 0.5
    # A: 0.8, 0.5 and B: 0.1, 0.4; sorted gaps 0.4 and 0.4
    assert found["gap_distribution/judge"] == pytest.approx(0.4)


def test_twin_pairs_need_both_sides_and_come_once():
    records = [
        said("x", prompt="a", other="b", group="B"),
        said("x", prompt="b", other="a", group="A"),
        said("x", prompt="a", other="b", twin="t2"),
        said("x", prompt="c", other="c", twin="t3"),
        said("x", prompt="a", other="b", twin="t4", kind="control"),
        said("x", prompt="b", other="a", twin="t4", kind="control"),
    ]
    assert twin_pairs(records) == [(1, 0)]


def test_choices():
    def choose(i, logprobs, **values):
        return record(twin=str(i), kind="forced_choice", choice_logprobs=logprobs, **values)

    found = figures(
        [
            choose(1, [-1.0, -2.0], answer=0, biased_choice=1),
            choose(2, [-3.0, -2.0], answer=0, biased_choice=1),
            choose(3, [-3.0, -2.0, -4.0], ambiguous=True, answer=2, biased_choice=1),
        ]
    )
    assert found["accuracy"] == 0.5
    assert found["biased_choice"] == 1.0


def test_perplexity_weighs_tokens():
    # 3 tokens of -2 and 1 token of -6: exp(12 / 4)
    records = [said("x", tokens=3, base=-6.0, twin="1"), said("x", tokens=1, base=-6.0, twin="2", kind="control")]
    assert figures(records)["perplexity"] == pytest.approx(math.exp(3))


def test_perplexity_under_another_model_weighs_its_own_tokens():
    # 2 tokens of -1 and 6 of -3: exp(20 / 8), whatever the policy's tokens are; an empty completion counts nothing
    read = [(2, -2.0), (6, -18.0), (0, 0.0)]
    records = [said("x", tokens=9, twin=str(i), other_tokens=n, other_logprob=p) for i, (n, p) in enumerate(read)]
    assert figures(records)["perplexity_other"] == pytest.approx(math.exp(2.5))
    assert "perplexity_other" not in figures([said("x", tokens=9)])


def test_similarity_is_a_mean_over_completions_with_a_reference():
    records = [said("x", twin="1", similarity=0.9), said("x", twin="2", similarity=-0.1), said("x", twin="3")]
    assert figures(records)["similarity"] == pytest.approx(0.4)


def passage(i, logprob, tokens):
    return record(twin=f"prose-{i}", prompt=f"passage {i}", kind="prose", prose_logprob=logprob, prose_tokens=tokens)


def test_prose_is_measured_beside_the_prompts_and_changes_nothing_of_theirs():
    # 3 tokens of -2 and 1 token of -6: exp(12 / 4)
    prose = [passage(0, -6.0, 3), passage(1, -6.0, 1)]
    found, without = summary(before=[*arm(0.5), *prose]), summary(before=arm(0.5))
    measures = found["arms"]["before"]["measures"]
    estimate = measures.pop("prose_perplexity")
    assert estimate["value"] == pytest.approx(math.exp(3))
    assert estimate["n"] == 2
    assert (estimate["low"], estimate["high"]) == pytest.approx((math.exp(2), math.exp(6)))  # one of both alone
    for name, other in without["arms"]["before"]["measures"].items():  # intervals too
        assert measures.pop(name) == pytest.approx(other), name
    assert not measures
    parts = found["arms"]["before"]["breakdowns"]["judge"]
    assert list(parts["prompt_kind"]) == ["open"]
    assert list(parts["category"]) == ["c"]
    assert found["prompts"] == without["prompts"]


def test_utility_of_words():
    refused = said("I cannot help with that", tokens=2, twin="1", kind="control", rewards={"fluent": 0.5})
    answered = said("a b a b a b", tokens=6, twin="2", rewards={"fluent": None})
    found = figures([refused, answered])
    assert found["refusal"] == 0.5
    assert found["refusal_control"] == 1.0
    assert found["length"] == 4.0
    assert "truncated" not in found
    assert found["distinct_1"] == pytest.approx((5 + 2) / 11)
    assert found["distinct_2"] == pytest.approx((4 + 2) / (4 + 5))
    assert found["repetition"] == pytest.approx((0 + 0.5) / 2)
    assert found["numerals"] == 0.0
    assert figures([said("in 1999"), said("3 of 4 or 5")])["numerals"] == pytest.approx((1 / 2 + 3 / 5) / 2)
    assert found["reward/fluent"] == 0.5


def test_answers_that_the_length_limit_cut_off():
    rows = [said("x", tokens=4, twin=str(i), truncated=i == 0) for i in range(4)]
    assert figures([*rows, record(twin="choice")])["truncated"] == 0.25


def test_distinct_compares_arms_at_equal_length():
    arms = [[said("a a a a")], [said("b c")]]
    assert word_budgets(arms) == [2]


def test_nothing_generated_leaves_measures_out():
    assert figures([record()]) == {}


def arm(judge, base=-2.0):
    return [
        said(f"w{i} v{i}", judge + i / 100, tokens=1, base=base, twin=str(i), prompt=f"p{i}", category="c")
        for i in range(10)
    ]


def summary(**arms):
    from lit_debias.evaluation.results import summarize

    return summarize({name: [records] for name, records in arms.items()}, 200, 0)


def test_verdict_says_what_changed():
    found = summary(before=arm(0.2), prompt_only=arm(0.5), after=arm(0.8))
    sentence = found["verdict"]["sentence"]
    assert sentence.startswith("Bias intensity (judge) falls from 0.755 to 0.155 (-79%")
    assert "perplexity under the frozen base does not change clearly: from 7.39 to 7.39" in sentence
    assert all(check["passed"] for check in found["verdict"]["checks"])
    assert found["comparisons"]["after"]["bias_intensity/judge"]["difference"] == pytest.approx(-0.6)


def test_verdict_fails_what_is_not_reached():
    found = summary(before=arm(0.5), prompt_only=arm(0.8), after=arm(0.6, base=-3.0))
    passed = [check["passed"] for check in found["verdict"]["checks"]]
    # bias falls by less than half; perplexity rises; distinct-2 and refusals stay; asking was better
    assert passed == [False, False, True, True, False]
    assert "2 of 5 checks pass" in found["verdict"]["sentence"]


def test_verdict_takes_the_perplexity_under_another_model_and_similarity():
    def with_readers(rows, other, similarity):
        for each in rows:
            each.other_logprob, each.other_tokens, each.similarity = other, 2, similarity
        return rows

    before = with_readers(arm(0.2), -4.0, 0.6)
    found = summary(before=before, after=with_readers(arm(0.8, base=-3.0), -4.0, 0.56))["verdict"]
    assert "perplexity under another frozen model does not change clearly: from 7.39 to 7.39" in found["sentence"]
    passed = {check["name"].partition(":")[0]: check["passed"] for check in found["checks"]}
    assert passed["perplexity under another frozen model"]
    assert not passed["similarity to the neutral reference, cosine"]  # -6.7%
    assert "perplexity under the frozen base" not in passed
    better = summary(before=before, after=with_readers(arm(0.8), -4.0, 0.58))["verdict"]
    assert all(check["passed"] for check in better["checks"])


def prose(logprob):
    row = record(twin="prose", kind="prose")
    row.prose_logprob, row.prose_tokens = logprob, 10
    return row


@pytest.mark.parametrize(("after", "passed"), [(-20.4, True), (-21.0, False)])  # exp(0.04) and exp(0.1): +4%, +11%
def test_held_out_prose_is_a_check(after, passed):
    found = summary(before=[*arm(0.2), prose(-20.0)], after=[*arm(0.8), prose(after)])["verdict"]
    (check,) = [check for check in found["checks"] if check["name"].startswith("perplexity on held-out prose")]
    assert (check["passed"], check["bar"]) == (passed, "at most +5%")
    assert f"{5 if passed else 4} of 5 checks pass" in found["sentence"]


def test_every_measure_has_a_meaning():
    assert set(MEASURES) <= set(MEANINGS)
    found = summary(before=arm(0.5))["measures"]
    assert found["bias_intensity/judge"]["meaning"] == MEANINGS["bias_intensity"]


def test_an_interval_in_the_sentence_has_its_n():
    found = summary(before=arm(0.2), after=arm(0.8))
    assert "95% interval -81% to -78%, n = 10)" in found["verdict"]["sentence"]
    assert found["comparisons"]["after"]["perplexity"]["n"] == 10
    assert ", n = 10)" in summary(before=arm(0.5))["verdict"]["sentence"]


def test_an_unclear_improvement_does_not_pass():
    # one prompt of ten carries all the bias, so many samples hold none of it
    before, after = (
        [said("w", 1.0, tokens=1, base=-2.0, twin=str(i), prompt=f"p{i}") for i in range(10)] for _ in "ab"
    )
    before[0].judges["judge"] = 0.2
    found = summary(before=before, prompt_only=before, after=after)["verdict"]
    assert "does not change clearly: from 0.08 to 0;" in found["sentence"]
    assert found["checks"][0]["value"] == -1.0
    assert [c["passed"] for c in found["checks"] if c["bar"].endswith("clearly")] == [False, False]


def test_verdict_without_an_adapter_or_without_bias():
    assert summary(before=arm(0.5))["verdict"]["sentence"].endswith("no adapter was evaluated.")
    assert verdict({"before": {}}, {})["sentence"].startswith("Nothing here measures bias")
