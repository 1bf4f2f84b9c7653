"""What `make dist` built, installed into an environment of its own and used there as a user would.

Only what these wheels hold is installed; their dependencies are those of the environment that runs the tests.
"""

import html
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from command_line import config  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.release, pytest.mark.timeout(1200)]  # commands of their own, each of which starts anew
ROOT = Path(__file__).parent.parent
DIST = Path(os.environ.get("DIST", ROOT / "dist"))
PROJECTS = {
    folder.parent: folder.parent / "src" for folder in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/*.toml")]
}
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "COLUMNS": "200",
    "OMP_NUM_THREADS": "1",
}
REWARDS = {
    "overlong": {"class_path": "SoftOverlong", "init_args": {"max_new_tokens": 6, "buffer": 4}},
    "rules": {"class_path": "Rules"},
    "fluency": {"class_path": "Fluency"},
    "variety": {"class_path": "Variety"},
}
OFFICIAL = {"DebertaFairness", "Fluency", "Variety", "CounterfactualConsistency", "Informativeness", "TextClassifier"}
OFFICIAL |= {"LLMJudge", "StructuredJudge", "Rules", "ColocatedVLLMEngine", "VLLMEngine"}
OFFICIAL |= {"Agents", "Ceb", "CebWriting", "Recommendation"}


@pytest.fixture(scope="module")
def wheels() -> dict[str, Path]:
    """Return distribution -> its wheel."""
    found = {file.name.split("-")[0].replace("_", "-"): file for file in DIST.glob("*.whl")}
    assert set(found) == {"lit-debias", *(folder.name for folder in PROJECTS if folder != ROOT)}, "run `make dist`"
    return found


@pytest.fixture(scope="module")
def environment(wheels, tmp_path_factory) -> Path:
    """Return the folder of an environment that holds the wheels, and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, *wheels.values()], env=CLEAN, check=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # A path in a .pth file comes last, and the .pth files in there, those of editable installs, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


@pytest.fixture
def lit_debias(environment, tmp_path):
    """Return a function that runs the installed command in a folder of its own, and returns what it printed."""

    def run(*arguments: object) -> str:
        command = [environment / "bin" / "lit-debias", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=CLEAN, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("project", PROJECTS, ids=lambda folder: folder.name)
def test_a_wheel_holds_every_file_of_its_package_and_a_license(wheels, project):
    name = "lit-debias" if project == ROOT else project.name
    names = set(zipfile.ZipFile(wheels[name]).namelist())
    own = (file for file in PROJECTS[project].rglob("*") if file.is_file() and ".egg-info" not in str(file))
    expected = {str(file.relative_to(PROJECTS[project])) for file in own if "__pycache__" not in file.parts}
    content = {entry for entry in names if ".dist-info/" not in entry}
    assert content == expected
    assert any(entry.endswith(".dist-info/licenses/LICENSE") for entry in names)
    assert any(entry.endswith("/py.typed") for entry in names)


def test_what_is_imported_is_what_was_installed(environment, wheels):
    names = [name.replace("-", "_") for name in wheels]
    code = f"import importlib; print([importlib.import_module(name).__file__ for name in {names}])"
    done = subprocess.run([environment / "bin" / "python", "-c", code], env=CLEAN, capture_output=True, check=True)
    assert done.stdout.decode().count(str(environment)) == len(names)


def test_the_plugins_are_found_and_the_machine_is_described(lit_debias):
    shown = lit_debias("plugins")
    assert not [name for name in OFFICIAL if name not in shown]
    assert "torch" in lit_debias("doctor")
    lit_debias("rewards", "new", "mine")  # from templates that lie in the wheel


def test_one_step_and_its_report(lit_debias, config, tmp_path, tiny_model):
    lit_debias("synthesize", "--out", "data", "--size", "600")
    arguments = config["model"]["init_args"]
    arguments["rewards"] = REWARDS
    arguments["aggregator"]["init_args"]["weights"] = dict.fromkeys(REWARDS, 1.0)
    config["trainer"]["max_steps"] = 1
    config["trainer"]["callbacks"] = [{"class_path": "AdapterExport", "init_args": {"out": "run/adapter"}}]
    config["trainer"]["logger"]["init_args"]["save_dir"] = "run/logs"
    config["data"]["init_args"]["path"] = "data"
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(config))
    lit_debias("fit", "-c", "grpo.yaml")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()

    judged = ("--judges", "{rules: {class_path: Rules}}", "--quantization", "none", "--dtype", "float32")
    small = ("--limit", "4", "--max_new_tokens", "4", "--bootstrap", "20", "--out", "run")
    lit_debias("evaluate", "--model", tiny_model, "--data", "data", "--adapter", "run/adapter", *judged, *small)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["verdict"]["measure"] == "bias_intensity/rules"
    assert results["arms"]["after"]["measures"]["prose_perplexity"]["n"] == 24  # the passages lie in the wheel
    lit_debias("report", "run")
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert results["verdict"]["sentence"] in page
    assert "Rewards by name" in page
