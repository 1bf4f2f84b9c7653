"""``lit-debias ray``: what it asks of the user, and, where Ray is installed, that a killed worker costs nothing."""

import importlib.util
import os

import pytest
from benchmarks import on_ray as runs_on_ray
from command_line import run, said

from lit_debias.cli import on_ray
from lit_debias.cli.main import main
from lit_debias.errors import LostProcessError

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: object())


def test_without_ray_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    assert run("ray", "--run", "run.yaml") == 2
    assert said(capsys) == "Ray is not installed; pip install 'lit-debias[ray]'"


@pytest.mark.parametrize("option", ["--workers=0", "--restarts=-2", "--timeout=0"])
def test_numbers_that_make_no_sense_are_refused(installed, option, capsys):
    assert run("ray", "--run", "run.yaml", option) == 2
    assert "write at least 1, -1 and 1" in said(capsys)


def test_a_missing_configuration_is_found_before_ray_starts(installed, tmp_path, capsys):
    assert run("ray", "--run", tmp_path / "none.yaml") == 2
    assert said(capsys).startswith(f"there is no configuration {tmp_path / 'none.yaml'}")


def test_a_base_that_is_shared_out_is_not_quietly_made_whole(installed, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("trainer: {strategy: {class_path: ModelParallelStrategy}}")
    assert run("ray", "--run", tmp_path / "run.yaml") == 2
    assert "start lit-debias fit with torchrun instead" in said(capsys)


def test_a_worker_tells_a_mistake_from_a_lost_neighbour(tmp_path, monkeypatch, capsys):
    work = {"folder": str(tmp_path), "arguments": ["fit", "-c", "none.yaml"], "launch": "Ray x", "servers": ["a", "b"]}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(on_ray.LAUNCH, "")
    monkeypatch.setenv(on_ray.SERVERS, "")
    assert on_ray.fit_here(work) == 2
    assert os.environ["LIT_DEBIAS_SERVERS"] == "a b"
    assert "none.yaml" in said(capsys)
    assert on_ray.fit_here(work | {"folder": str(tmp_path / "away")}) == 2
    assert said(capsys).startswith(f"this machine has no folder {tmp_path / 'away'}")

    def lost(args):
        raise LostProcessError("process 0 of 2 has lost the others")

    monkeypatch.setattr("lit_debias.cli.main._run", lost)
    assert main(["fit"]) == 75
    with pytest.raises(RuntimeError, match="lost"):
        on_ray.fit_here(work)


@pytest.mark.parametrize(
    ("address", "variable", "local"),
    [(None, "", True), ("local", "1.2.3.4:6379", True), (None, "1.2.3.4:6379", False), ("auto", "", False)],
)
def test_a_job_of_a_cluster_is_not_alone(monkeypatch, address, variable, local):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert on_ray._is_local(address) == local


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed; benchmarks/results/ray_cpu.json holds what it did")
def test_a_killed_worker_costs_nothing(tmp_path):
    found = runs_on_ray.measure(tmp_path, ["two processes", runs_on_ray.KILLED])
    assert found["passed"], found
