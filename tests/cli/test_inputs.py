"""What users may get wrong in files: each is one line on stderr that says where, with exit code 2."""

from __future__ import annotations

import gzip
import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run, said

from lit_debias.cli.main import main
from lit_debias.data import PromptDataModule, ResponseDataModule
from lit_debias.errors import UserError
from lit_debias.evaluation.prompts import choose_splits, read_prompts
from lit_debias.support.files import read_yaml

LINES = '{"prompt": "a", "completion": "c", "better": "x", "worse": "y"}\n'
LATIN = LINES.encode() + '{"prompt": "café"}\n'.encode("latin-1")


# -------------------------------------------------------------------- bytes, by whichever command reads them

BYTES = {
    "latin-1": (LATIN, "row 2: byte 0xe9 is not UTF-8; save the file as UTF-8: iconv"),
    "utf-16": (LINES.encode("utf-16"), "is UTF-16; save it as UTF-8: iconv -f UTF-16"),
    "nul": (LINES.encode() + b"a\0b\n", "row 2: there is a NUL character"),
    "gzip": (gzip.compress(LINES.encode()), "is gzipped; unpack it first: gunzip"),
}


@pytest.mark.parametrize(
    "command",
    [
        ["rewards", "score", "NoSweepingWords", "--file", "x.jsonl"],
        ["rewards", "score", "NoSweepingWords", "--file", "x.txt"],
        ["rewards", "check", "NoSweepingWords", "--pairs", "x.jsonl"],
        ["rewards", "score", "Rules", "text", "--init_args", "{lexicons: [x.txt]}"],
        ["rewards", "score", "Rules", "text", "--init_args", "{lexicons: [x.yaml]}"],
        ["evaluate", "--model", "gpt2", "--data", ".", "--out", "out", "--prose", "x.txt"],
        ["fit", "-c", "x.yaml"],
        ["evaluate", "--config=x.yaml"],
        ["fit", "-c", "x.yaml", "--model.rewards.fair.help"],
        ["report", "."],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(("content", "message"), BYTES.values(), ids=BYTES)
def test_bytes_that_are_no_utf_8(command, content, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("x.jsonl", "x.txt", "x.yaml", "results.json"):
        (tmp_path / name).write_bytes(content)
    assert main(command) == 2
    line = said(capsys)
    assert message in line
    assert "x." in line or "results.json" in line


@pytest.mark.parametrize(("content", "message"), BYTES.values(), ids=BYTES)
def test_a_pipe_of_bytes_that_are_no_utf_8(content, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert main(["rewards", "score", "NoSweepingWords"]) == 2
    assert f"the text of the pipe{',' if 'row' in message else ''} {message}" in said(capsys)


def test_a_byte_order_mark_and_other_ends_of_lines_are_passed_over(tmp_path, capsys):
    file = tmp_path / "x.jsonl"
    for ending in ("\n", "\r\n", "\r", "\n\n"):
        file.write_bytes(b"\xef\xbb\xbf" + (LINES + LINES).replace("\n", ending).encode())
        assert main(["rewards", "score", "NoSweepingWords", "--file", str(file)]) == 0
        assert capsys.readouterr().out == "1.0000\tc\n" * 2


# -------------------------------------------------------------------- rows

ROWS = [
    ("x.jsonl", '{"prompt": "a"}\n\n{"prompt": ""}\n', "row 3: 'prompt' is ''; write a text"),  # counted by line
    ("x.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "row 2: 'prompt' is 3, a number, and in row 1 it is a text"),
    ("x.jsonl", '{"prompt": "a", "x": NaN}\n', "row 1 is no valid JSON: NaN is no number, write null"),
    ("x.jsonl", '{"prompt": "a", "x": -Infinity}\n', "row 1 is no valid JSON: -Infinity is no number"),
    ("x.jsonl", '{"prompt": "a", "x": 1e999}\n', "row 1 is no valid JSON: 1e999 is too large a number"),
    ("x.jsonl", f'{{"prompt": "a", "x": {2**64}}}\n', f"row 1: 'x' is {2**64}, too large a number; write it as a text"),
    ("x.jsonl", '{"prompt": "a\\ud800"}\n', "row 1: '\\ud800' is half of a surrogate pair; write both"),
    ("x.jsonl", '{"prompt": "a", "prompt": "b"}\n', "row 1 is no valid JSON: the key 'prompt' is there twice"),
    ("x.jsonl", f'{{"prompt": {"[" * 9999}{"]" * 9999}}}\n', "row 1: values are nested too deeply"),
    ("x.jsonl", "\n \n", "has no rows; write one JSON object a line"),
    ("x.json", '[{"prompt": "a"}, 3]', "row 2: expected an object"),
    ("x.csv", "prompt,n\na,1\n,2\n", "row 3: 'prompt' is ''; write a text"),  # counted with the header
    ("x.csv", "prompt,n\na,1\nb\n", "Row #3: Expected 2 columns, got 1"),
    ("x.csv", "prompt;n\na, b;1\n", "semicolons stand between its columns; write commas: python -c 'import pandas"),
    ("x.csv", "prompt\tn\na\t1\n", 'tabs stand between its columns; write commas'),
    ("x.csv", "prompt|n\na|1\n", 'bars stand between its columns; write commas'),
    ("x.csv", "prompt,prompt\na,b\n", "has two columns 'prompt'"),
    ("x.csv", 'prompt\n"a\nb\n', "a quote is not closed; write two for one within a value"),
    ("x.csv", b"prompt\na\ncaf\xe9\n", "row 3: byte 0xe9 is not UTF-8"),
    ("x.json", '[{"prompt": "a", "prompt_id": 1}, {"prompt": "b", "prompt_id": 1}]', "row 2: prompt_id 1 is there"),
    ("x.json", '[{"prompt": "a", "prompt_id": 1}, {"prompt": "b"}]', "row 2: there is no 'prompt_id', and other rows"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), ROWS, ids=range(len(ROWS)))
def test_rows_of_prompts(name, content, message, tmp_path):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        PromptDataModule(str(file), batch_size=1).setup("fit")
    assert str(caught.value).startswith(f"data '{file}'")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_are_named_by_file_and_row_also_in_a_split(tmp_path):
    lines = [
        {"prompt": "a", "split": "train"},
        {"prompt": "b", "split": "validation"},
        {"prompt": "", "split": "train"},
    ]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"x\.jsonl', row 3: 'prompt' is ''"):
        PromptDataModule(str(file), batch_size=1).setup("fit")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"response_id": "r"}, r"row 2: response_id 'r' is there before, data '.*', row 1"),
        ({"prompt_id": None}, "row 2: there is no 'prompt_id'"),
        ({"fairness": 2.0}, r"row 2: fairness is 2\.0; write 0 to 1"),
        ({"response": " "}, "row 2: 'response' is ' '; write a text"),
    ],
)
def test_rows_of_responses(second, message, tmp_path):
    first = {"prompt": "p", "response": "r", "response_id": "r", "prompt_id": "p", "fairness": 1.0}
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, [first, {**first, "response_id": "s", **second}])))
    with pytest.raises(UserError, match=message):
        ResponseDataModule(str(file), batch_size=1).setup("fit")


def test_semicolons_within_a_title_are_left_alone(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,a;b\np,1\n")
    data = PromptDataModule(str(tmp_path / "x.csv"), batch_size=1)
    data.setup("fit")
    assert data.column_names == ["prompt", "a;b", "prompt_id"]


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("validate", {}, r"has no split 'validation'; it has: a, b; name one with data.init_args.val_splits"),
        ("validate", {"val_splits": None}, r"is asked for no split; it has: a, b; name one with .*val_splits"),
        ("test", {"test_splits": ["x", "y"]}, r"has no split 'x, y'; it has: a, b; name one with .*test_splits"),
        ("predict", {}, r"has no split 'test_iid'; it has: a, b; name one with .*test_splits"),
        ("fit", {}, r"has no split 'train'; it has: a, b; name one with .*train_split"),
    ],
)
def test_a_split_that_is_not_there(stage, options, message, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"prompt": name, "split": name}) + "\n" for name in "ab"))
    with pytest.raises(UserError, match=message):
        PromptDataModule(str(file), batch_size=1, **options).setup(stage)


@pytest.mark.parametrize(
    ("splits", "message"),
    [("trian", "did you mean 'train'"), ("train,b", r"write a list: '\[train, b\]'"), ([], "splits is empty")],
)
def test_a_split_to_evaluate_that_is_not_there(splits, message, tmp_path):
    (tmp_path / "x.jsonl").write_text(LINES)
    with pytest.raises(UserError, match=message):
        choose_splits(str(tmp_path / "x.jsonl"), splits)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"prompt": "  "}, "row 2: 'prompt' is '  '; write a text"),
        ({"prompt": None}, "row 2: 'prompt' is None"),
        ({"prompt_id": "1"}, r"row 2: prompt_id '1' is there before, .*row 1"),
        ({"prompt_kind": "opne"}, "row 2: 'prompt_kind' is 'opne'; did you mean 'open'"),
        ({"answer": 2}, "row 2: 'answer' is 2; write a place among 'choices'"),
        ({"choices": ["x", None]}, r"row 2: 'choices' is \['x', None\]; write a list of texts"),
    ],
)
def test_rows_of_an_evaluation(second, message, tmp_path, capsys):
    first = {"prompt": "a", "prompt_id": "1", "prompt_kind": "open", "choices": ["x", "y"], "answer": 0}
    (tmp_path / "prompts").mkdir()
    rows = [first, {**first, "prompt_id": "2", **second}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts" / "t.parquet")
    with pytest.raises(UserError, match=message):
        read_prompts(str(tmp_path), ["t"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"better": "x"}', "row 2: 'worse' is None; write texts under these keys"),
        ('{"better": "x", "worse": 3}', "row 2: 'worse' is 3"),
        ('{"better": "x", "worse": "y", "prompt": 3}', "row 2: 'prompt' is 3"),
        ("[]", "row 2: expected an object"),
    ],
)
def test_rows_of_pairs(line, message, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(f"{LINES}{line}\n")
    assert main(["rewards", "check", "NoSweepingWords", "--pairs", str(tmp_path / "pairs.jsonl")]) == 2
    assert message in said(capsys)


BENCHMARKS = {
    "crows_pairs/crows_pairs_anonymized.csv": [
        ("sent_more,sent_less\na,b\n", "row 1: there is no 'stereo_antistereo'"),
        ("sent_more,sent_less,stereo_antistereo,bias_type\na,b,stereo,x\nc\n", "row 2: there is no 'sent_less'"),
        ("", "has no items"),
    ],
    "stereoset/dev.json": [("{", "is no valid JSON"), ("[]", "has another layout")],
}


@pytest.mark.parametrize(
    ("name", "content", "message"), [(name, *case) for name, cases in BENCHMARKS.items() for case in cases]
)
def test_rows_of_benchmarks_are_checked_before_a_model_is_loaded(name, content, message, tiny_model, tmp_path, capsys):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(content)
    args = [
        "--data",
        "x",
        "--out",
        str(tmp_path),
        "--benchmarks",
        name.split("/")[0],
        "--benchmark_data",
        str(tmp_path),
    ]
    assert main(["evaluate", "--model", str(tiny_model), *args]) == 2
    assert message in said(capsys)


def test_a_key_of_a_merged_mapping_may_be_replaced(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {b: 1, c: 2}\nd:\n  <<: *a\n  b: 3\n")
    assert read_yaml(tmp_path / "x.yaml", "configuration")["d"] == {"b": 3, "c": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "holds no options"),
        ("a: [\n", "is no valid YAML"),
        ("", "holds"),
        ("trainer:\n  max_steps: 1\n  max_steps: 2\n", "line 3: the key 'max_steps' stands there twice; write it once"),
    ],
)
def test_configurations(content, message, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(content)
    assert run("fit", "-c", str(tmp_path / "x.yaml")) == 2
    line = said(capsys)
    assert message in line
    assert "x.yaml" in line
