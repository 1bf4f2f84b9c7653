"""Pairs from public benchmarks: files made by hand, the share by hand, and the real files where they are."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_debias.errors import UserError
from lit_debias_deberta.contrasts import Contrast
from lit_debias_deberta.human_text import PROMPT, interval, measure, read

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
STEREOSET = {
    "data": {
        part: [
            {
                "target": "chess player",
                "bias_type": "race",
                "context": context,
                "sentences": [
                    {"sentence": "Anti.", "gold_label": "anti-stereotype"},
                    {"sentence": "Fox.", "gold_label": "unrelated"},
                    {"sentence": "Stereo.", "gold_label": "stereotype"},
                ],
            }
        ]
        for part, context in (("intersentence", "He plays."), ("intrasentence", "The player was BLANK."))
    }
}
CBBQ = [
    {
        "\ufeffexample_id": "1",
        "question_index": "7",
        "question_polarity": polarity,
        "category": "region",
        "context": "两个人。",
        "question": question,
        "ans0": "甲",
        "ans1": "乙",
        "ans2": "不知道",
    }
    for polarity, question in (
        ("neg", "可能是谁撒的\uff1f"),
        ("non_neg", "谁更诚实\uff1f"),
        ("neg", "哪个是假的\uff1f"),
    )
]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("stereoset", "crows_pairs", "cbbq/instances"):
        (tmp_path / name).mkdir(parents=True)
    with gzip.open(tmp_path / "stereoset" / "dev.json.gz", "wt", encoding="utf-8") as file:
        json.dump(STEREOSET, file)
    rows = ',sent_more,sent_less,stereo_antistereo,bias_type\n0,"More, one.",Less one.,stereo,age\n'
    (tmp_path / "crows_pairs" / "crows_pairs_anonymized.csv").write_text(rows + "1,More.,Less.,antistereo,age\n")
    (tmp_path / "cbbq" / "instances" / "region__ambiguous.json").write_text(json.dumps(CBBQ), encoding="utf-8")
    return tmp_path


def test_reads_the_fairer_text_first(folder):
    assert read(str(folder)) == [
        Contrast("StereoSet intersentence", "race", "chess player", "He plays.", "Anti.", "Stereo."),
        Contrast("StereoSet intrasentence", "race", "chess player", PROMPT, "Anti.", "Stereo."),
        Contrast("CrowS-Pairs", "age", "0", PROMPT, "Less one.", "More, one."),
        Contrast("CrowS-Pairs", "age", "1", PROMPT, "Less.", "More."),
        # the first answer is the group of the stereotype; not in a question that is not negative
        Contrast("CBBQ", "region", "region 7", "两个人。可能是谁撒的\uff1f", "不知道可能是谁撒的。", "可能是甲撒的。"),
        Contrast("CBBQ", "region", "region 7", "两个人。谁更诚实\uff1f", "不知道谁更诚实。", "乙更诚实。"),
        Contrast(
            "CBBQ", "region", "region 7", "两个人。哪个是假的\uff1f", "不知道哪个是假的。", "哪个是假的\uff1f甲。"
        ),
    ]


def test_bbq_sets_the_conclusion_that_a_context_allows_against_the_biased_one(tmp_path):
    def row(number, question, label, info=("old", "nonOld", "unknown")):
        answers = {f"ans{i}": answer for i, answer in enumerate(("The grandfather", "the grandson", "Not known"))}
        about = {"answer_info": {f"ans{i}": ["x", group] for i, group in enumerate(info)}, "label": label}
        return {"example_id": number, "question_index": "1", "category": "Age", "context": "Two men met.",
                "question": question, **answers, **about}  # fmt: skip

    rows = [
        row(0, "Who was slow?", 2),  # the context decides nothing
        row(1, "Who was slow?", 1),  # against the stereotype
        row(2, "Who was slow?", 0),  # for the stereotype: left out
        row(3, "Which man was slow?", 2),
        row(4, "Who was slow?", 2),  # nobody wrote down which answer is biased: left out
    ]
    (tmp_path / "bbq").mkdir()
    with gzip.open(tmp_path / "bbq" / "Age.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, rows)))
    metadata = "category,example_id,target_loc\nAge,0,0\nAge,1,0\nAge,2,0\nAge,3,1\nAge,4,\n"
    (tmp_path / "bbq" / "additional_metadata.csv").write_text(metadata)
    prompt, unknown = "Two men met. Who was slow?", "It cannot be told who was slow."
    assert sorted(read(str(tmp_path)), key=str) == [
        Contrast(
            "BBQ, ambiguous", "Age", "Age 1", "Two men met. Which man was slow?",
            "It cannot be told which man was slow.", "Which man was slow? The grandson.",
        ),
        Contrast("BBQ, ambiguous", "Age", "Age 1", prompt, unknown, "The grandfather was slow."),
        Contrast("BBQ, disambiguated", "Age", "Age 1", prompt, "The grandson was slow.", "The grandfather was slow."),
    ]  # fmt: skip
    (tmp_path / "bbq" / "additional_metadata.csv").unlink()
    with pytest.raises(UserError, match="holds none of the files"):
        read(str(tmp_path))


def test_share_by_hand():
    pairs = [Contrast("S", kind, str(n), "p", f"{fair}", f"{biased}") for n, (kind, fair, biased) in enumerate(
        [("a", 0.9, 0.1), ("a", 0.2, 0.4), ("b", 0.5, 0.5), ("b", 0.8, 0.6)]
    )]  # fmt: skip
    found = measure(pairs, lambda prompts, responses: torch.tensor([float(text) for text in responses]))["S"]
    assert (found["all"]["value"], found["a"]["value"], found["b"]["value"]) == (0.625, 0.5, 0.75)
    assert (found["all"]["n"], found["b"]["n"]) == (4, 2)
    assert (found["a"]["fairer"], found["a"]["less_fair"]) == (pytest.approx(0.55), pytest.approx(0.25))
    assert found["all"]["low"] < 0.625 < found["all"]["high"]


def test_the_interval_draws_whole_clusters():
    assert interval([1.0, 1.0, 0.0, 0.0], ["a", "b", "a", "b"], seed=0) == (0.5, 0.5)  # each cluster has the mean .5
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.5).astype(float)
    low, high = interval(values, [str(n) for n in range(400)], seed=1)
    # a share over 400 has the standard error sqrt(.25 / 400) = .025
    assert high - low == pytest.approx(2 * 1.96 * 0.025, rel=0.1)
    four = interval(np.repeat(values, 4), [str(n // 4) for n in range(1600)], seed=1)
    assert four == pytest.approx((low, high))


def test_mistakes(folder, tmp_path):
    with pytest.raises(UserError, match=r"holds none of the files stereoset/dev.json, crows_pairs"):
        read(str(tmp_path / "nowhere"))
    (folder / "crows_pairs" / "crows_pairs_anonymized.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"crows_pairs_anonymized\.csv' is not laid out"):
        read(str(folder))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public benchmarks are not at ../shared/data")
def test_the_real_files():
    pairs = read(str(SHARED))
    expected = {"StereoSet intersentence": 2123, "StereoSet intrasentence": 2106, "CrowS-Pairs": 1508, "CBBQ": 3156,
                "BBQ, ambiguous": 1100, "BBQ, disambiguated": 1100}  # fmt: skip
    assert Counter(pair.source for pair in pairs) == expected
    assert Counter(pair.kind for pair in pairs if pair.source == "CBBQ") == {"region": 2176, "ethnicity": 980}
    assert all(pair.fairer != pair.less_fair for pair in pairs if pair.source == "CBBQ")
