"""docs/tutorial.md, run as it stands: a newcomer's plugin, installed by pip into a fresh environment, in a real run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import one_process
import pytest
import yaml
from editable import install
from one_process import answers

from lit_debias.cli.main import main
from lit_debias.cli.scaffold import names_of, render

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
DEMO = ROOT / "configs" / "demo.yaml"
NAME = "lit-debias-brevity"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[tuple[list[str], list[str]]]:
    """Return each command of the page with the output that the page shows."""
    steps = [part.splitlines() for block in blocks("console") for part in block.split("$ ")[1:]]
    return [(shlex.split(command), output) for command, *output in steps]


def with_added_lines(text: str) -> str:
    """Return a configuration with the added lines of the page, each after the line that stands before it there."""
    [diff] = blocks("diff")
    lines, position = text.splitlines(), 0
    for line in diff.splitlines():
        if line.startswith("+"):
            lines.insert(position, line[1:])
            position += 1
        else:
            position = lines.index(line[1:], position) + 1
    return "\n".join(lines)


def small_demo() -> str:
    """Return the demo's configuration without the rewards of a trained reward model, and from a fresh adapter."""
    trained = ("fairness:", "neutrality:", "relevance:", "adapter:", "reference:")
    return "\n".join(line for line in DEMO.read_text().splitlines() if not line.strip().startswith(trained))


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Interpreter of a fresh environment with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("newcomer") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    here = sysconfig.get_path("purelib")
    Path(site, "dependencies.pth").write_text(f"import site; site.addsitedir({here!r})\n")  # with their .pth files
    return folder / "bin" / "python"


def run(python: Path, *args: str, **options) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(python), *args], env=environment, capture_output=True, text=True, timeout=500, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture
def here(monkeypatch):
    """Install and run in this process."""

    def run_here(folder: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
        install(folder, monkeypatch)
        return list(answers(commands))

    yield run_here
    sys.modules.pop(NAME.replace("-", "_"), None)


@pytest.fixture
def newcomers(python):
    """Install by pip into an environment of its own, and run there."""

    def run_there(folder: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
        pip = ["-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
        run(Path(sys.executable), *pip, "--no-index", "--no-deps", "--no-build-isolation", "-e", str(folder))
        log = run(python, "-W", "ignore", one_process.__file__, input=json.dumps(commands))
        return [json.loads(line) for line in log.splitlines() if line.startswith("[")]

    return run_there


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*logging interval:")
@pytest.mark.parametrize("place", ["here", pytest.param("newcomers", marks=pytest.mark.processes)])
def test_the_commands_of_the_page(place, tiny_model, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text(small_demo())
    (tmp_path / "brevity.yaml").write_text(with_added_lines(small_demo()))
    prompts = [{"prompt": f"Describe a {word}."} for word in ("nurse", "driver", "cook", "clerk")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))

    (create, _), (pip, _), *steps = commands()
    assert main(create[1:]) == 0
    assert pip == ["pip", "install", "-e", NAME]
    tiny = {"model": tiny_model, "quantization": "none", "dtype": "float32", "rank": 2}
    options = [option for name, value in tiny.items() for option in (f"--model.policy.{name}", str(value))]
    options += ["--trainer.max_steps", "1", "--model.engine.max_new_tokens", "6", "--model.group_size", "2"]
    options += ["--data.path", "prompts.jsonl", "--data.prompt_kinds", "null", "--trainer.logger", "CSVLogger"]
    options += ["--trainer.logger.save_dir", "logs"]
    asked = [
        [*args, *options] if "fit" in args else [*args, "--json"] if "plugins" in args else args
        for args, _ in steps
        if args[0] != "cp"
    ]
    found = request.getfixturevalue(place)(tmp_path / NAME, asked)
    assert [code for code, _ in found] == [0] * len(asked), found

    rows = json.loads(found[0][1])
    [row] = [row for row in rows if row["name"] == "Brevity"]
    assert (row["distribution"], row["version"]) == (NAME, "0.1.0")
    assert "3 passed" in found[1][1]
    assert "all 2 in order" in found[2][1]
    [expected] = [output for args, output in steps if "score" in args]
    assert [line.rstrip() for line in found[3][1].splitlines()] == expected
    logged = sorted(Path("logs").rglob("metrics.csv"))
    assert len(logged) == len([args for args in asked if "fit" in args])
    assert all("rewards/brevity/mean" in file.read_text() for file in logged)


def test_four_lines_are_added_to_the_demo():
    [diff] = blocks("diff")
    assert sum(line.startswith("+") for line in diff.splitlines()) == 4
    before, after = yaml.safe_load(DEMO.read_text()), yaml.safe_load(with_added_lines(DEMO.read_text()))
    before["model"]["init_args"]["rewards"]["brevity"] = {"class_path": "Brevity", "init_args": {"words": 30}}
    before["model"]["init_args"]["aggregator"]["init_args"]["weights"]["brevity"] = 0.3
    assert after == before


def test_the_page_shows_the_generated_reward():
    [source] = blocks("python")
    assert source == render("reward.py.jinja", names_of(NAME))


def test_the_page_names_the_generated_files(tmp_path):
    assert main(["rewards", "new", NAME, "--out", str(tmp_path)]) == 0
    written = {str(path.relative_to(tmp_path / NAME)) for path in (tmp_path / NAME).rglob("*") if path.is_file()}
    assert set(re.findall(r"^\| `(.*?)` \|", PAGE, re.MULTILINE)) == written - {"src/lit_debias_brevity/py.typed"}
    shutil.rmtree(tmp_path / NAME)
