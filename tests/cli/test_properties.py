"""What holds for every text that a parser may meet: it gives what was written, or one line that says where."""

from __future__ import annotations

import codecs
import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_debias.cli.errors import one_line
from lit_debias.data.sources import ORIGIN, read_file
from lit_debias.errors import UserError
from lit_debias.support.files import decode, jsonl_objects
from lit_debias_judge.template import parse

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # no half of a surrogate pair
SCALAR = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
FINITE = SCALAR.filter(lambda value: not isinstance(value, float) or math.isfinite(value))
VALUE = st.recursive(
    FINITE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
PIECES = [
    b'{"a": 1}',
    b'{"a": "x"}',
    b'{"prompt": "a\\u0000"}',
    b'{"a": NaN}',
    b'{"a": 1, "a": 2}',
    b'{"a": "\\ud800"}',
    b'{"a": "\\ud83d\\ude00"}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": 1e999}',
    b"[" * 3000,
    b"\xff\xfe",
    b"\x1f\x8b",
    codecs.BOM_UTF8,
    "\u2028\x85é".encode(),
    *(bytes([byte]) for byte in b'{}[]":,\\\r\n\t \0\xe9'),
]  # fmt: skip
MANGLED = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) | st.binary(max_size=40)


def is_one_line_with_the_place(error: UserError, where: str) -> None:
    assert str(error).startswith(where)
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 400


@given(
    records=st.lists(st.dictionaries(TEXT, VALUE, max_size=4), min_size=1, max_size=5),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    blank_lines=st.integers(0, 2),
    mark=st.booleans(),
    ascii_only=st.booleans(),
)
@example([{"a\u2028b": "\u2029\x85\x1c"}], "\r\n", 1, True, False)
@example([{"a": "\U0001f600"}], "\n", 0, False, True)  # written as a surrogate pair
def test_json_lines_that_are_written_are_read(records, ending, blank_lines, mark, ascii_only):
    lines = [json.dumps(record, ensure_ascii=ascii_only) + ending * (1 + blank_lines) for record in records]
    content = codecs.BOM_UTF8 * mark + "".join(lines).encode()
    found = list(jsonl_objects(decode(content, "x"), "x"))
    assert [record for _, record in found] == records
    assert [number for number, _ in found] == [1 + i * (1 + blank_lines) for i in range(len(records))]


@given(MANGLED)
@settings(max_examples=300)
def test_any_bytes_are_records_or_one_line_with_the_place(content):
    try:
        found = list(jsonl_objects(decode(content, "'x.jsonl'"), "'x.jsonl'"))
    except UserError as error:
        is_one_line_with_the_place(error, "'x.jsonl'")
    else:
        assert found
        for _, record in found:
            json.dumps(record, allow_nan=False, ensure_ascii=False).encode()  # neither infinite nor half a character


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@given(st.data())
def test_any_file_is_a_table_or_one_line_with_the_place(folder, data):
    name = data.draw(st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.parquet"]))
    (folder / name).write_bytes(data.draw(MANGLED))
    try:
        rows = read_file(folder / name)
    except UserError as error:
        is_one_line_with_the_place(error, f"data '{folder / name}'")
    else:
        assert len(rows[ORIGIN]) == len(rows) > 0


@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUE, min_size=1), min_size=1, max_size=4))
@example([{"a": 2**64}])
@example([{"a": 1}, {"a": 0.5}, {"a": None}])
@example([{"a": True}, {"a": 1}])
@example([{"a": [1]}, {"a": ["x"]}])
@example([{"a": {}}])
def test_any_records_are_a_table_or_one_line_with_the_place(folder, records):
    (folder / "y.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    try:
        rows = read_file(folder / "y.jsonl")
    except UserError as error:
        is_one_line_with_the_place(error, f"data '{folder / 'y.jsonl'}'")
    else:
        for name in {key for record in records for key in record}:
            texts = [record.get(name) for record in records]
            if all(isinstance(text, str) for text in texts):
                assert list(rows[name]) == texts


@given(TEXT | VALUE.map(json.dumps) | st.builds('{{"score": {}}}'.format, VALUE.map(json.dumps)))
@example("[" * 5000)
@example('{"score": 1e999}')
@example(f'{{"score": {"9" * 5000}}}')
def test_any_answer_of_a_judge_is_a_score_or_none(answer):
    score = parse(answer, 0, 10)
    assert score is None or (type(score) is float and 0 <= score <= 1)


@given(st.integers(-1000, 1000), st.integers(1, 1000), st.integers(-3000, 3000) | st.floats(-3000, 3000))
def test_a_judges_number_is_mapped_from_the_scale(lowest, width, number):
    score = parse(json.dumps({"reason": "...", "score": number}), lowest, lowest + width)
    if lowest <= number <= lowest + width:
        assert score == pytest.approx((number - lowest) / width)
    else:
        assert score is None


LINES = st.lists(
    st.sampled_from(
        [
            'Parser key "model":',
            'Parser key "a.b": ',
            "Problem with given class_path 'lit_debias.data.PromptDataModule':",
            "Problem with given class_path 'no.such.Class': ",
            "Option 'bufer' is not accepted",
            "Expected a dot import path string: GRPPO",
            "unrecognized arguments: --trainer.max_stepz",
            "the following arguments are required: fit.model",
            "Does not validate against any of the Union subtypes",
            "  - ",
            "Problems parsing config:",
        ]
    )
    | TEXT,
    max_size=6,
)


@given(LINES, st.sampled_from(["\n", " ", "\n  - "]))
@example(["Problems parsing config:", "  in line 1"], "\n")
def test_any_report_of_the_command_line_becomes_one_line(lines, separator):
    assert len(one_line(separator.join(lines)).splitlines()) <= 1
