"""The synthetic data set: labels, balance, splits, twins, determinism, and a leak check that catches leaks."""

from collections import Counter, defaultdict
from statistics import mean

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lit_debias.data import LABELS
from lit_debias.synthetic import leaks
from lit_debias.synthetic.builder import build
from lit_debias.synthetic.responses import Style, labels
from lit_debias.synthetic.splits import SPLITS
from lit_debias.synthetic.surfaces import Blanker, count_frames, frames_in_wording
from lit_debias.synthetic.taxonomy import Taxonomy


@pytest.fixture(scope="module")
def tables():
    return build(Taxonomy.load(), size=4800, seed=1)


@pytest.fixture(scope="module")
def prompts(tables):
    return [row for rows in tables["prompts"].values() for row in rows]


@pytest.fixture(scope="module")
def responses(tables):
    return [row for rows in tables["responses"].values() for row in rows]


def copied(splits):
    return {split: [dict(row) for row in rows] for split, rows in splits.items()}


# -------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (Style(0, tone="measured"), (1.0, 1.0, 1.0, 1.0)),
        (Style(1, "negative"), (0.75, 0.6, 1.0, 1.0)),
        (Style(2, "negative", "measured"), (0.5, 0.7, 1.0, 1.0)),
        (Style(2, "negative", "heated"), (0.5, 0.1, 1.0, 1.0)),
        (Style(2, "positive", "heated"), (0.6, 0.1, 1.0, 1.0)),
        (Style(3, "positive", "plain", "shuffle"), (0.25, 0.3, 0.4, 0.05)),
        (Style(4, "negative", "heated", "truncation"), (0.0, 0.0, 0.7, 0.5)),
        (Style(0, corruption="refusal"), (1.0, 0.75, 0.15, 0.6)),
        (Style(0, corruption="evasion"), (1.0, 0.75, 0.1, 0.6)),
        (Style(1, corruption="evasion"), (0.75, 0.6, 0.1, 0.6)),
        (Style(0, hard_negative="plain_mention"), (1.0, 0.75, 0.4, 1.0)),
        (Style(0, tone="heated", hard_negative="counter_speech"), (1.0, 0.175, 0.9, 1.0)),
    ],
)
def test_labels_by_hand(style, expected):
    assert tuple(labels(style)[name] for name in LABELS) == pytest.approx(expected)


def test_labels_follow_from_what_the_rows_say(responses):
    for row in responses:
        assert all(0 <= row[name] <= 1 for name in LABELS)
        flattering = row["intensity"] == 2 and row["stance"] == "positive"
        assert row["fairness"] == (0.6 if flattering else 1 - row["intensity"] / 4)
        if row["corruption"] == "refusal":
            assert (row["fairness"], row["relevance"]) == (1.0, 0.15)
        if row["hard_negative"]:
            assert row["fairness"] == 1.0
        if row["corruption"] in ("shuffle", "repetition"):
            assert row["quality"] <= 0.2


def test_labels_are_not_collinear(responses):
    r = np.corrcoef([[row[name] for row in responses] for name in LABELS])
    fairness, neutrality, relevance, quality = range(4)
    assert abs(r[fairness, relevance]) < 0.3
    assert abs(r[fairness, quality]) < 0.3
    assert abs(r[neutrality, quality]) < 0.3
    assert r[fairness, neutrality] < 0.6
    assert r[relevance, quality] < 0.6


def test_every_intensity_meets_every_corruption(responses):
    seen = {(row["intensity"], row["corruption"]) for row in responses}
    corruptions = {"none", "shuffle", "repetition", "truncation", "off_topic"}
    assert seen >= {(level, corruption) for level in range(5) for corruption in corruptions}
    kinds = {row["hard_negative"] for row in responses}
    assert kinds == {"", "reporting", "counter_speech", "quotation", "plain_mention"}


def test_length_says_nothing_about_intensity(responses):
    words = defaultdict(list)
    for row in responses:
        words[row["intensity"]].append(len(row["response"].split()))
    means = [mean(words[level]) for level in range(5)]
    assert max(means) / min(means) < 1.15
    lengths, levels = zip(*[(length, level) for level in words for length in words[level]], strict=True)
    assert abs(np.corrcoef(lengths, levels)[0, 1]) < 0.1


def test_reference_and_biased_response_have_about_the_same_length(prompts):
    lengths = [(len(row["reference"].split()), len(row["biased"].split())) for row in prompts]
    assert mean(a for a, _ in lengths) == pytest.approx(mean(b for _, b in lengths), rel=0.1)
    assert all(row["reference"] != row["biased"] for row in prompts)


def test_stereotypes_are_not_tied_to_status(responses):
    status = {group.id: group.status for pair in Taxonomy.load().pairs for group in pair.groups}
    fairness = defaultdict(list)
    for row in responses:
        fairness[status[row["group"]]].append(row["fairness"])
    means = [mean(values) for values in fairness.values()]
    assert max(means) - min(means) < 0.03


def test_evasions_quote_the_request_and_are_no_fair_answer_where_it_has_a_premise(responses):
    rows = [row for row in responses if row["corruption"] == "evasion"]
    assert len(rows) > 0.04 * len(responses)
    for row in rows:
        quoted = " ".join(row["prompt"].split()[:8]).rstrip(".!?:, ").lower()
        assert quoted in row["response"].lower(), row
        assert row["intensity"] == (row["prompt_kind"] == "leading")
        assert row["relevance"] == 0.1


def test_off_topic_answers_name_another_group_or_none(prompts, responses):
    taxonomy = Taxonomy.load()
    groups = {group.id: group for pair in taxonomy.pairs for group in pair.groups}
    pairs = {row["prompt_id"]: (groups[row["group"]], groups[row["counterfactual_group"]]) for row in prompts}
    rows = [row for row in responses if row["corruption"] == "off_topic"]
    assert len(rows) > 300
    for row in rows:
        assert not any(group.named_in(row["response"]) for group in pairs[row["prompt_id"]]), row["response"]
        if row["intensity"]:
            assert any(group.named_in(row["response"]) for group in groups.values()), row["response"]


def test_every_category_has_hundreds_of_frames(tables):
    taxonomy = Taxonomy.load()
    frames = count_frames(tables, taxonomy)
    assert set(frames) == set(taxonomy.categories)
    for category in ("regional", "ethnic", "occupational"):
        assert frames[category][0] > 100
        assert frames[category][1] > 750
    assert min(frames_in_wording(taxonomy)) > 1000


def test_a_frame_is_what_is_left_without_group_theme_and_scenario():
    blanker = Blanker(Taxonomy.load())
    first = blanker.frame("It is wise to reject people from Henan, since they are sly. She met Mr Lin at 7.")
    assert first == "it is wise to _ , since they are _ . he met _ at _ ."
    assert blanker.frame("It is wise to turn away Tibetans, since they are dirty. He met Ms Cao at 12.") == first
    assert blanker.frame("It is wise to reject people from Henan, as they are sly. She met Mr Lin at 7.") != first


def test_wording_varies(prompts, responses):
    starts = {" ".join(row["response"].split()[:4]) for row in responses}
    assert len(starts) > 1000
    assert len({row["prompt"] for row in prompts}) == len(prompts)


# -------------------------------------------------------------------- prompts, twins, splits


def test_twins_share_everything_but_the_group(prompts):
    twins = defaultdict(list)
    for row in prompts:
        twins[row["twin_id"]].append(row)
    for a, b in twins.values():
        assert (a["counterfactual_group"], a["counterfactual_prompt"]) == (b["group"], b["prompt"])
        assert (b["counterfactual_group"], b["counterfactual_prompt"]) == (a["group"], a["prompt"])
        for column in ("category", "theme", "scenario", "template_id", "split", "ambiguous", "answer", "biased_choice"):
            assert a[column] == b[column]


def test_forced_choices_and_only_they_have_choices(prompts):
    for row in prompts:
        if row["prompt_kind"] == "forced_choice":
            assert len(row["choices"]) == 3
            assert row["answer"] in (0, 1, 2)
            assert row["ambiguous"] == (row["choices"][row["answer"]] == "cannot be determined")
        else:
            assert (row["choices"], row["answer"], row["biased_choice"]) == ([], -1, -1)


def test_splits_hold_out_what_they_say(tables):
    splits = tables["prompts"]
    assert tuple(splits) == SPLITS
    values = {
        split: {c: {row[c] for row in rows} for c in ("template_id", "group", "scenario", "category")}
        for split, rows in splits.items()
    }
    for split, column in leaks.HELD_OUT.items():
        others = set().union(*(values[other][column] for other in SPLITS if other != split))
        assert values[split][column].isdisjoint(others), split
        kept = {"template_id", "scenario"} if column == "category" else {"template_id", "group", "scenario"}
        for shared in kept - {column}:
            assert values[split][shared] <= values["train"][shared], (split, shared)
    kinds = Counter(row["prompt_kind"] for row in splits["train"])
    assert set(kinds) == {"open", "leading", "forced_choice", "control"}


def test_responses_belong_to_prompts_of_their_split(tables):
    for split, rows in tables["responses"].items():
        texts = {row["prompt_id"]: row["prompt"] for row in tables["prompts"][split]}
        assert all(texts[row["prompt_id"]] == row["prompt"] for row in rows)


@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(seed=st.integers(0, 2**31))
def test_no_seed_leaks(seed):
    taxonomy = Taxonomy.load()
    drawn = build(taxonomy, size=300, seed=seed)
    leaks.check_prompts(drawn["prompts"])
    leaks.check_responses(drawn["responses"])
    leaks.check_names(drawn, taxonomy)


# -------------------------------------------------------------------- leaks


def test_clean_tables_pass(tables):
    leaks.check_prompts(tables["prompts"])
    overlaps = leaks.check_responses(tables["responses"])
    assert overlaps["test_template"] < 0.02
    assert overlaps["test_template"] < overlaps["test_iid"]


@pytest.mark.parametrize(
    ("split", "column"),
    [
        ("test_template", "template_id"),
        ("test_group", "group"),
        ("test_scenario", "scenario"),
        ("test_category", "category"),
    ],
)
def test_a_planted_held_out_value_is_caught(tables, split, column):
    prompts = copied(tables["prompts"])
    prompts["train"][5][column] = prompts[split][0][column]
    with pytest.raises(leaks.LeakError, match=f"{split} and train share 1 values of '{column}'"):
        leaks.check_prompts(prompts)


def test_a_separated_twin_a_shared_cell_and_a_copied_text_are_caught(tables):
    prompts = copied(tables["prompts"])
    prompts["validation"].append(prompts["train"].pop())
    with pytest.raises(leaks.LeakError, match="train and validation share 1 values of 'twin_id'"):
        leaks.check_prompts(prompts)
    prompts = copied(tables["prompts"])
    for row in prompts["train"][-2:]:
        prompts["test_iid"].append({**row, "twin_id": "new", "prompt": row["prompt"] + " Please."})
    with pytest.raises(leaks.LeakError, match="train and test_iid share 1 values of 'cell'"):
        leaks.check_prompts(prompts)
    responses = copied(tables["responses"])
    responses["test_iid"][3]["response"] = responses["train"][7]["response"]
    with pytest.raises(leaks.LeakError, match="train and test_iid share 1 values of 'response'"):
        leaks.check_responses(responses)
    responses = copied(tables["responses"])
    responses["train"][3]["response"] = responses["train"][7]["response"]
    with pytest.raises(leaks.LeakError, match="twice"):
        leaks.check_responses(responses)


def test_a_held_out_group_in_a_text_of_another_split_is_caught(tables):
    taxonomy = Taxonomy.load()
    leaks.check_names(tables, taxonomy)
    planted = {**tables, "responses": copied(tables["responses"])}
    planted["responses"]["train"][3]["response"] = "I met two Lawyers there."
    with pytest.raises(leaks.LeakError, match="train names 'Lawyers', which only test_group may"):
        leaks.check_names(planted, taxonomy)


def test_near_copies_of_training_prompts_are_caught(tables):
    prompts = copied(tables["prompts"])
    for row, source in zip(prompts["test_template"], prompts["train"], strict=False):
        row["prompt"] = f"{source['prompt']} Please."
    with pytest.raises(leaks.LeakError, match=r"test_template: train holds .* of its prompts; at most 10% may"):
        leaks.check_prompts(prompts)


def test_near_copies_of_training_text_are_caught(tables):
    responses = copied(tables["responses"])
    for row, source in zip(responses["test_template"][:80], responses["train"], strict=False):
        row["response"] = f"{source['response']} Indeed."
    with pytest.raises(leaks.LeakError, match=r"test_template: train holds .* at most 10% may"):
        leaks.check_responses(responses)


def test_ngram_overlap_by_hand():
    known = leaks.ngrams("a b c d", 3)  # abc, bcd
    assert known == {("a", "b", "c"), ("b", "c", "d")}
    grams = leaks.ngrams("x " * 7 + "y")
    assert len(grams) == 1
    assert leaks.overlap(["x " * 7 + "y", "x " * 7 + "z"], grams) == 0.5
    assert leaks.overlap(["too short"], grams) == 0.0
