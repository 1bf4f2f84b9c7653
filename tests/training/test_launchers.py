"""Launchers that start a run again: SLURM, torchrun and others. Their environment variables stand for them."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from command_line import config, run, said, write  # noqa: F401  (a fixture)
from safetensors.torch import load_file

from lit_debias.training import machines
from lit_debias.training.checkpoints import read

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "debias",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "node-[7-8]",
}
PREEMPTED = {"class_path": "machine_faults.Preempted"}
pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.fixture
def job(config, tmp_path, monkeypatch):
    """A run of four steps, in a job of SLURM that was never started before."""
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    requeue = tmp_path / "scontrol"
    requeue.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    requeue.chmod(requeue.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    config["trainer"] |= {"max_steps": 4, "logger": False, "default_root_dir": "run"}
    return config


def fit(job, out, *args, callbacks=(), **trainer) -> int:
    callbacks = [*callbacks, {"class_path": "AdapterExport", "init_args": {"out": out}}]
    return run(
        "fit", "-c", write(Path.cwd(), job | {"trainer": job["trainer"] | trainer | {"callbacks": callbacks}}), *args
    )


def adapter(out):
    return load_file(f"{out}/adapter_model.safetensors")


def test_a_job_that_slurm_takes_back_goes_on_from_the_end_of_a_step(job, tmp_path, capfd, monkeypatch):
    assert fit(job, "whole", default_root_dir="whole") == 0
    assert fit(job, "cut", callbacks=[PREEMPTED]) == 1
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    saved = Path("run/hpc_ckpt_1.ckpt")
    assert read(saved)["global_step"] == 2  # the signal came before the optimiser's second step
    shutil.rmtree("run/checkpoints")  # of Lightning's own

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    capfd.readouterr()
    assert fit(job, "cut") == 0
    assert "this run was started again; resuming from " + str(saved) in capfd.readouterr().err
    assert {name: value.tolist() for name, value in adapter("cut").items()} == {
        name: value.tolist() for name, value in adapter("whole").items()
    }


def test_a_checkpoint_that_was_named_is_where_a_run_began_and_not_where_it_goes_on(job, capfd, monkeypatch):
    assert fit(job, "first", max_steps=1) == 0
    [began] = Path("run/checkpoints").iterdir()
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # of a job that had not saved anything
    assert fit(job, "second", "--ckpt_path", str(began), max_steps=2) == 0
    assert "started again" not in capfd.readouterr().err
    assert fit(job, "second", "--ckpt_path", str(began)) == 0
    assert "this run was started again; resuming from " in capfd.readouterr().err
    monkeypatch.delenv("SLURM_RESTART_COUNT")  # a second run in the same job
    assert fit(job, "third", "--ckpt_path", str(began)) == 0
    assert "started again" not in capfd.readouterr().err


def test_without_a_word_slurms_own_checkpoint_is_taken_and_last_is_the_newest(job, capfd):
    assert fit(job, "cut", callbacks=[PREEMPTED]) == 1
    saved = Path("run/hpc_ckpt_1.ckpt")
    shutil.rmtree("run/checkpoints")
    assert fit(job, "cut", max_steps=3) == 0
    assert f"resuming from {saved}" in capfd.readouterr().err
    newer = max(Path("run/checkpoints").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert fit(job, "cut", "--ckpt_path", "last") == 0
    assert f"resuming from {newer}" in capfd.readouterr().err


def test_a_job_of_another_shape_is_one_line(job, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert fit(job, "out", strategy="ddp", devices=1) == 2
    assert "set `num_nodes=1` in Lightning" in said(capsys)


@pytest.mark.parametrize(
    ("variables", "name", "again"),
    [
        ({}, None, False),
        ({"SLURM_JOB_ID": "7"}, "SLURM 7", False),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, "SLURM 7", True),
        ({"LIT_DEBIAS_LAUNCH": "x", "SLURM_JOB_ID": "7"}, "x", True),
    ],
)
def test_a_launch_has_a_name_that_restarts_share(variables, name, again, monkeypatch):
    for old in ("LIT_DEBIAS_LAUNCH", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(old, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert (machines.launch(), machines.restarted()) == (name, again)


def test_a_launch_of_torchrun_is_named_by_its_agent(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert machines.launch().endswith(f" {os.getppid()}")
    assert machines.restarted()
