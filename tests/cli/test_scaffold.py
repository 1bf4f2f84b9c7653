"""`lit-debias rewards new`: names, and what is in the way. tests/test_tutorial.py installs and runs what it writes."""

from __future__ import annotations

import compileall
import json

import pytest

from lit_debias.cli.main import main
from lit_debias.cli.scaffold import names_of


def new(*args) -> int:
    return main(["rewards", "new", *map(str, args)])


def test_names_by_hand():
    assert names_of("lit-debias-short-answers") == {
        "name": "lit-debias-short-answers",
        "short": "short-answers",
        "key": "short_answers",
        "title": "Short answers",
        "module": "lit_debias_short_answers",
        "cls": "ShortAnswers",
    }
    assert names_of("brevity2")["cls"] == "Brevity2"


def test_the_folder(tmp_path, capsys):
    assert new("lit-debias-short-answers", "--out", tmp_path) == 0
    folder = tmp_path / "lit-debias-short-answers"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "pairs.jsonl",
        "pyproject.toml",
        "src/lit_debias_short_answers/__init__.py",
        "src/lit_debias_short_answers/py.typed",
        "tests/test_lit_debias_short_answers.py",
    ]
    text = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert "{{" not in text
    assert 'short-answers = "lit_debias_short_answers"' in (folder / "pyproject.toml").read_text()
    assert compileall.compile_dir(folder, quiet=2)
    assert all(json.loads(line)["better"] for line in (folder / "pairs.jsonl").read_text().splitlines())
    assert f"pip install -e {folder}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Brevity", "'Brevity' is no name for a plugin; write small letters, digits and hyphens"),
        ("two_words", "is no name for a plugin"),
        ("class", "is no name for a plugin"),
        ("lit-debias-2", "'lit-debias-2' gives no name for a class; write a letter first"),
        ("variety", "lit-debias-fluency has a reward Variety already"),
        ("lit-debias-reward", "lit-debias has a class Reward already"),
        ("json", "there is a module json already"),
    ],
)
def test_wrong_names(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new(name) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "brevity").mkdir()
    assert new("brevity", "--out", tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert new("brevity", "--out", tmp_path / "file") == 2
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lit-debias-crows-pairs", "lit-debias has a benchmark CrowsPairs already"),
        ("bbq", "lit-debias has a benchmark bbq already"),
        ("lit-debias-item", "lit-debias has a class Item already"),
    ],
)
def test_names_of_benchmarks_that_are_taken(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmarks", "new", name]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
