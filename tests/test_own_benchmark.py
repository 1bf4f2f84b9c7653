"""docs/own_benchmark.md, run as it stands on a tiny model: from the scaffold to a figure in the report."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from editable import install
from evaluation_runs import adapter, data

from lit_debias import benchmark
from lit_debias.cli.main import main
from lit_debias.cli.scaffold import names_of, render

__all__ = ["adapter", "data"]
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own_benchmark.md").read_text()
NAME = "lit-debias-kitchens"
MODULE = NAME.replace("-", "_")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    return [shlex.split(line[2:]) for block in blocks("console") for line in block.splitlines()]


@pytest.fixture
def demo(tiny_model, data, adapter, tmp_path, monkeypatch):
    """A folder with what the page needs: the demo's configuration and adapter, on a tiny model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "adapter").symlink_to(adapter)
    (tmp_path / "configs").mkdir()
    own = {"model": str(tiny_model), "data": data, "out": "runs/demo", "splits": ["test_group"], "limit": 1}
    small = {"quantization": "none", "dtype": "float32", "max_new_tokens": 4, "bootstrap": 20, "temperature": 0.7}
    (tmp_path / "configs" / "demo_evaluate.yaml").write_text(yaml.safe_dump(own | small))
    yield tmp_path
    sys.modules.pop(MODULE, None)


def test_the_commands_of_the_page(demo, monkeypatch, capsys):
    new, pip, plugins, check, own_tests, evaluate, report = commands()
    assert main(new[1:]) == 0
    assert pip == ["pip", "install", "-e", NAME]
    install(demo / NAME, monkeypatch)
    assert main(plugins[1:]) == 0
    assert f"Kitchens: benchmark of {NAME} 0.1.0" in capsys.readouterr().out
    assert main(check[1:]) == 0
    assert own_tests == ["python", "-m", "pytest", NAME]
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(demo / NAME)]) == 0
    assert main(evaluate[1:]) == 0
    results = json.loads(Path("runs/demo/results.json").read_text())
    for arm in ("before", "after"):
        found = results["arms"][arm]["measures"]
        assert found["kitchens/pct_stereotype"]["low"] < found["kitchens/pct_stereotype"]["high"]
        assert found["kitchens/pct_stereotype/work"]["n"] == 4
    assert main(report[1:]) == 0
    html = Path("runs/demo/report.html").read_text()
    assert "Kitchens: share of stereotypes preferred" in html


def test_the_options_of_the_page(demo, monkeypatch):
    assert main(commands()[0][1:]) == 0
    install(demo / NAME, monkeypatch)
    [options] = blocks("yaml")
    file = demo / "configs" / "demo_evaluate.yaml"
    file.write_text(file.read_text() + options)
    assert main(["evaluate", "-c", str(file)]) == 0
    results = json.loads(Path("runs/demo/results.json").read_text())
    assert results["settings"]["benchmarks"]["identities"]["kitchens"]["arguments"] == {"per_token": True}


def test_the_page_shows_the_generated_benchmark_and_its_files(tmp_path):
    [source] = blocks("python")
    assert source == render("benchmark.py.jinja", {**names_of(NAME), "kind": "benchmark"})
    assert main(["benchmarks", "new", NAME, "--out", str(tmp_path)]) == 0
    written = {str(path.relative_to(tmp_path / NAME)) for path in (tmp_path / NAME).rglob("*") if path.is_file()}
    assert set(re.findall(r"^\| `(.*?)` \|", PAGE, re.MULTILINE)) & written == written - {f"src/{MODULE}/py.typed"}


def test_the_page_explains_every_public_name():
    assert not [name for name in benchmark.__all__ if f"`{name}`" not in PAGE]
