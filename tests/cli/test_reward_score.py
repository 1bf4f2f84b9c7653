"""`lit-debias rewards score`: texts from arguments, a file or a pipe."""

from __future__ import annotations

import io
import json
import sys

import pytest

from lit_debias.cli.main import main

# NoSweepingWords: the share of sentences without such a word
TEXTS = ["Some are. All are.", "Never.", ""]
LINES = "0.5000\tSome are. All are.\n0.0000\tNever.\nnone\t\n"


def score(*args: str) -> int:
    return main(["rewards", "score", "NoSweepingWords", *args])


def test_arguments(capsys):
    assert score(*TEXTS) == 0
    assert capsys.readouterr().out == LINES


def test_options_of_the_reward(capsys):
    assert score("Some. All.", "--init_args", "{words: [some, all]}") == 0
    assert capsys.readouterr().out == "0.0000\tSome. All.\n"


def test_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*TEXTS, ""])))
    assert score() == 0
    assert capsys.readouterr().out == LINES


def test_a_text_file(tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join([*TEXTS, ""]))
    assert score("--file", str(file)) == 0
    assert capsys.readouterr().out == LINES


def test_a_jsonl_file_and_json(tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    rows = [{"completion": "All\nof them.", "prompt": "Who?"}, {"completion": "Some. All."}, {"completion": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score("--file", str(file), "--prompt", "Which?", "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [
        {"score": 0.5, "prompt": "Who?", "completion": "All\nof them."},  # two lines are two sentences
        {"score": 0.5, "prompt": "Which?", "completion": "Some. All."},
        {"score": None, "prompt": "Which?", "completion": ""},
    ]


def test_what_the_reward_needs_is_said(capsys):
    assert main(["rewards", "score", "Fluency", "A text."]) == 2
    assert "no log-probabilities of a reference at hand here; write init_args: {model: ...}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "piped", "message"),
    [
        (["--file", "nowhere.txt"], None, "'nowhere.txt' cannot be read"),
        (["a text", "--file", "texts.txt"], None, "texts and --file at once; write one of them"),
        ([], "", "nothing to score; the input is empty"),
        ([], None, "nothing to score; write texts, or --file FILE, or use a pipe"),
        (
            ["--file", "rows.jsonl"],
            None,
            'row 1: \'completion\' is None; write texts under these keys: {"completion": "..."}',
        ),
    ],
)
def test_wrong_calls(args, piped, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    stdin = io.StringIO(piped or "")
    stdin.isatty = lambda: piped is None
    monkeypatch.setattr(sys, "stdin", stdin)
    assert score(*args) == 2
    assert message in capsys.readouterr().err


def test_what_controls_a_terminal_is_escaped_in_scores_and_errors(tmp_path, capsys):
    assert score("Red \x1b[31m is\x07 red.") == 0
    assert capsys.readouterr().out == "1.0000\tRed \\x1b[31m is\\x07 red.\n"
    (tmp_path / "texts.jsonl").write_text('["\x1b]0;owned\x07"]\n')
    assert score("--file", str(tmp_path / "texts.jsonl")) == 2
    (tmp_path / "texts.jsonl").write_text('["\\u001b", "\x9b2J"]\n')
    assert score("--file", str(tmp_path / "texts.jsonl")) == 2
    shown = capsys.readouterr().err
    assert "\\x9b2J" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


FAULTY = """
from lit_debias import Reward

class Faulty(Reward):
    def __init__(self, fault: str = ""):
        self.fault = fault
        if fault == "init":
            raise ValueError("two\\nlines")

    def setup(self, device):
        if self.fault == "setup":
            raise OSError("no weights")

    def score(self, batch):
        if self.fault == "exit":
            raise SystemExit(0)
        if self.fault == "shape":
            return 1.0
        if self.fault == "all":
            raise KeyError("x")
        return [1 / len(text) for text in batch.completions]
"""


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    (tmp_path / "faulty_scores.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "faulty_scores.Faulty"
    sys.modules.pop("faulty_scores", None)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("init", "error: Faulty cannot be built: ValueError: two lines (faulty_scores.py, line 8)"),
        ("setup", "reward 'faulty_scores.Faulty' failed in setup: OSError: no weights"),
        ("exit", "reward 'faulty_scores.Faulty' raised SystemExit: 0 in "),
        ("shape", "reward 'faulty_scores.Faulty' returned float; return a list"),
        ("all", "error: reward 'faulty_scores.Faulty' failed in "),  # any row's fault is no row's
        ("", "'texts.txt', line 2: reward 'faulty_scores.Faulty' failed in "),
    ],
)
def test_a_reward_that_fails_is_one_line_and_nothing_is_printed(faulty, fault, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("one\n\nthree\n")
    args = [faulty, "--file", "texts.txt", "--init_args", json.dumps({"fault": fault})]
    assert main(["rewards", "score", *args]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1
