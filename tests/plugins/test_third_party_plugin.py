"""A stranger's plugin: packed as a wheel, installed by pip into a fresh environment, listed, and trained with."""

from __future__ import annotations

import base64
import hashlib
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

pytestmark = pytest.mark.processes  # test_tutorial.py is the short form

MODULE = """
from lit_debias import Reward, RewardBatch, hookimpl


class Brevity(Reward):
    \"\"\"Rewards short answers.\"\"\"

    def __init__(self, words: int = 20) -> None:
        self.words = words

    def score(self, batch: RewardBatch) -> list[float]:
        return [min(1.0, self.words / (1 + len(text.split()))) for text in batch.completions]


@hookimpl
def lit_debias_rewards():
    return [Brevity]


@hookimpl
def lit_debias_scored(rollout, scores):
    print("brevity saw", tuple(scores.values["short"].shape))
"""


def pack_wheel(folder: Path) -> Path:
    """Write the plugin's wheel by hand, so that no build backend has to be at hand offline."""
    info = "stranger_rewards-3.1.dist-info"
    files = {
        "stranger_rewards.py": MODULE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: stranger-rewards\nVersion: 3.1\nRequires-Dist: lit-debias\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[lit_debias]\nstranger = stranger_rewards\n",
    }
    record = [f"{name},{digest(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    wheel = folder / "stranger_rewards-3.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Interpreter of a fresh environment: the dependencies of this one, and the plugin, which this one lacks."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder / "venv")})
    here = sysconfig.get_path("purelib")
    Path(site, "dependencies.pth").write_text(f"import site; site.addsitedir({here!r})\n")  # with their .pth files
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(pack_wheel(folder))], check=True)
    return interpreter


def lit_debias(python: Path, *args: str, cwd: Path) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), "-W", "ignore", "-m", "lit_debias.cli.main", *args]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_run(folder: Path, model: Path) -> Path:
    """Write prompts and a configuration with the stranger's reward; return the configuration."""
    prompts = ["Describe a nurse.", "Describe a driver.", "Describe a cook.", "Describe a clerk."]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    policy = {"model": str(model), "quantization": "none", "dtype": "float32", "rank": 2, "alpha": 4}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "limit_val_batches": 0,
        },
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "policy": {"class_path": "QLoRAPolicy", "init_args": policy},
                "engine": {"class_path": "LocalEngine", "init_args": {"max_new_tokens": 6}},
                "group_size": 3,
                "rewards": {"short": {"class_path": "Brevity", "init_args": {"words": 3}}},
                "aggregator": {"class_path": "WeightedSum", "init_args": {"weights": {"short": 1.0}}},
            },
        },
        "data": {"class_path": "PromptDataModule", "init_args": {"path": "prompts.jsonl", "batch_size": 2}},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_it_is_listed_with_its_origin(python, tmp_path):
    rows = json.loads(lit_debias(python, "plugins", "--json", cwd=tmp_path))
    [row] = [row for row in rows if row["name"] == "Brevity"]
    assert row == {
        "kind": "reward",
        "name": "Brevity",
        "class": "stranger_rewards.Brevity",
        "distribution": "stranger-rewards",
        "version": "3.1",
        "summary": "Rewards short answers.",
    }
    assert {"WeightedSum", "LocalEngine"} <= {row["name"] for row in rows}


def test_it_trains_by_its_short_name(python, tmp_path, tiny_model):
    output = lit_debias(python, "fit", "-c", str(write_run(tmp_path, tiny_model)), cwd=tmp_path)
    assert output.count("brevity saw (2, 3)") == 1  # one step: 2 prompts, groups of 3
