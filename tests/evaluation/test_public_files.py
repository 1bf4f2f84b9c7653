"""Public benchmarks in other types are read alike; what is wrong in a file is one line with file and row."""

import csv
import json

import numpy as np
import pytest
from public_data import bbq_row, cbbq_row, table, triple, write_all

from lit_debias.benchmark import measuring
from lit_debias.errors import UserError
from lit_debias.plugins.benchmarks import make

QUESTIONS = [bbq_row(number, "neg", "disambig" if number % 2 else "ambig", label=2 - number % 2) for number in range(4)]
METADATA = [
    {"category": "Age", "example_id": number, "target_loc": number % 2, "label_type": "label"} for number in range(4)
]


def bbq(folder, rows, metadata=METADATA):
    (folder / "bbq").mkdir(parents=True)
    (folder / "bbq" / "Age.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table(folder / "bbq" / "additional_metadata.csv", metadata)
    return make("bbq").read(str(folder))


def changed(**values):
    return [{**row, **{name: make(row[name]) for name, make in values.items()}} for row in QUESTIONS]


@pytest.mark.parametrize(
    "rows",
    [
        changed(label=str),
        changed(label=float),
        changed(example_id=str),
        changed(question_index=int),
        changed(answer_info=json.dumps),
    ],
    ids=["label", "label as a float", "example_id", "question_index", "answer_info"],
)
def test_bbq_in_other_types_is_the_same(rows, tmp_path):
    expected = bbq(tmp_path / "as published", QUESTIONS)
    assert [(item.answer, item.biased, item.unknown, item.unit) for item in expected] == [
        (2, 0, 2, "Age/0"),
        (1, 1, 2, "Age/0"),
        (2, 0, 2, "Age/0"),
        (1, 1, 2, "Age/0"),
    ]
    assert bbq(tmp_path / "other", rows) == expected


def test_the_biased_answer_may_be_a_float_or_unknown(tmp_path):
    metadata = [{**row, "target_loc": given} for row, given in zip(METADATA, ("0.0", "1.0", "NA", ""), strict=True)]
    metadata = [{**row, "example_id": f"{row['example_id']}.0"} for row in metadata]
    assert bbq(tmp_path, QUESTIONS, metadata) == bbq(tmp_path / "as published", QUESTIONS)[:2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "row 2: 'label' is 3; write a whole number from 0 to 2"),
        ({"label": "two"}, "row 2: 'label' is 'two'; write a whole number"),
        ({"label": True}, "row 2: 'label' is True; write a whole number"),
        ({"example_id": "a"}, "row 2: 'example_id' is 'a'; write a whole number from 0"),
        ({"example_id": 9}, "row 2: 'example_id' is 9; write this one of Age into bbq/additional_metadata.csv too"),
        ({"ans1": ""}, "row 2: 'ans1' is ''; write a text"),
        ({"context": 3}, "row 2: 'context' is 3; write a text"),
        ({"context_condition": "ambiguous"}, "row 2: 'context_condition' is 'ambiguous'; write ambig or disambig"),
        ({"answer_info": {"ans0": ["a"], "ans1": ["b"], "ans2": ["c"]}}, "row 2: 'answer_info' is "),
        ({"answer_info": {f"ans{i}": ["a", "old"] for i in range(3)}}, "row 2: 'answer_info' is "),
        ({"answer_info": "{"}, "row 2: 'answer_info' is '{'"),
    ],
)
def test_wrong_rows_of_bbq(change, message, tmp_path):
    with pytest.raises(UserError) as caught:
        bbq(tmp_path, [QUESTIONS[0], {**QUESTIONS[1], **change}, *QUESTIONS[2:]])
    assert f"Age.jsonl', {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_biased_answer_that_is_none_of_the_three(tmp_path):
    with pytest.raises(UserError, match=r"additional_metadata\.csv', row 1: 'target_loc' is '3'; write a whole number"):
        bbq(tmp_path, QUESTIONS, [{**METADATA[0], "target_loc": 3}, *METADATA[1:]])


def edit_csv(file, delimiter=",", **values):
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter=delimiter))
    rows[1].update(values)
    table(file, rows, delimiter)


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def stereoset(folder, change):
    file = folder / "stereoset" / "dev.json"
    data = {"intrasentence": [triple(0, "intrasentence"), triple(1, "intrasentence")], "intersentence": []}
    file.write_text(json.dumps({"data": data}))
    edit_json(file, lambda content: change(content["data"]["intrasentence"][1]))


def cbbq(folder, **values):
    rows = [cbbq_row(), cbbq_row(**values)]
    table(folder / "cbbq/instances/ethnicity__ambiguous.csv", rows)


WRONG = {
    "crows_pairs": [
        (
            lambda folder: edit_csv(folder / "crows_pairs/crows_pairs_anonymized.csv", sent_more=" "),
            "row 2: 'sent_more' is ' '; write a text",
        ),
    ],
    "stereoset": [
        (
            lambda folder: stereoset(folder, lambda row: row["sentences"][0].update(sentence="")),
            "row 2: 'sentence' is ''; write a text",
        ),
        (
            lambda folder: stereoset(folder, lambda row: row["sentences"].pop()),
            "row 2: 'sentences' is ",
        ),
        (
            lambda folder: stereoset(folder, lambda row: row["sentences"][0].update(gold_label="other")),
            "write three with the gold_label anti-stereotype, stereotype, unrelated",
        ),
        (lambda folder: stereoset(folder, lambda row: row.pop("target")), "row 2: there is no 'target'"),
        (
            lambda folder: (folder / "stereoset" / "dev.json").write_text('{"data": {"intrasentence": []}}'),
            "has another layout: there is no list data.intersentence",
        ),
    ],
    "cbbq": [
        (lambda folder: cbbq(folder, ans0=""), "row 2: 'ans0' is ''; write a text"),
        (lambda folder: cbbq(folder, question_polarity="bad"), "row 2: 'question_polarity' is 'bad'; write neg or"),
        (lambda folder: cbbq(folder, context_condition="ambig"), "row 2: 'context_condition' is 'ambig'; write"),
    ],
    "winogender": [
        (
            lambda folder: edit_csv(folder / "winogender/occupations-stats.tsv", "\t", bls_pct_female="few"),
            "row 2: 'bls_pct_female' is 'few'; write a number from 0 to 100",
        ),
        (
            lambda folder: edit_csv(folder / "winogender/all_sentences.tsv", "\t", sentid="cook.someone.0.male.txt"),
            "row 2: 'sentid' is 'cook.someone.0.male.txt'; write OCCUPATION.PARTICIPANT.0.GENDER.txt",
        ),
        (
            lambda folder: edit_csv(folder / "winogender/all_sentences.tsv", "\t", sentence=""),
            "row 2: 'sentence' is ''; write a text",
        ),
    ],
    "bold": [
        (
            lambda folder: edit_json(
                folder / "bold/race_prompt.json", lambda content: content["cooks"].update(x="text")
            ),
            "race_prompt.json', 'cooks', 'x': there is no list of texts",
        ),
        (
            lambda folder: edit_json(folder / "bold/race_prompt.json", lambda content: content.update(cooks=3)),
            "race_prompt.json', 'cooks', '': there is no list of texts",
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "change", "message"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_wrong_rows_of_other_benchmarks(name, change, message, tmp_path):
    write_all(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as caught:
        make(name).read(str(tmp_path))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_figure_without_a_value_is_left_out(tmp_path, monkeypatch):
    write_all(tmp_path)
    monkeypatch.setattr(
        type(make("winogender")),
        "ask",
        lambda self, model, items: [[type("L", (), {"total": -1.0})] * 3 for _ in items],
    )
    (sample,) = measuring.samples([make("winogender")], str(tmp_path), None, 0)
    found = measuring.measure(None, sample, 0, 5, None, lambda done: None)
    assert "winogender/correlation" not in found  # of equal numbers
    assert found["winogender/pct_male"].value == 0.5
    assert all(np.isfinite(estimate.value) for estimate in found.values())
