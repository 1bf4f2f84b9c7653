"""Two CPU processes do what one does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


def run(model, folder, name, devices) -> dict:
    prompts, out = folder / "prompts.jsonl", folder / f"{devices}.pt"
    rows = [
        {"prompt": f"people from {p} are", "reference": "judged " * n, "biased": "kind"}
        for n, p in enumerate("abcdefgh", 1)
    ]
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    command = [sys.executable, str(WORKER), str(model), str(prompts), str(out), str(devices), name]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


def assert_same(alone, together, metrics) -> None:
    for name, value in alone["adapter"].items():
        torch.testing.assert_close(together["adapter"][name], value, rtol=1e-4, atol=2e-6, msg=name)
    for name in metrics:
        scale = 2 if name == "num_tokens" else 1  # the mean over ranks of a count
        assert together["metrics"][name] * scale == pytest.approx(alone["metrics"][name], rel=1e-3), name


@pytest.mark.parametrize("aggregator", ["sum", "gdpo"])
def test_two_processes_make_the_step_of_one(tiny_model, tmp_path, aggregator):
    alone, together = (run(tiny_model, tmp_path, aggregator, devices) for devices in (1, 2))
    assert (alone["prompts"], together["prompts"]) == (4, 2)  # whole groups on each rank
    metrics = ("reward", "loss", "kl", "entropy", "grad_norm", "num_tokens", "alarms/length", "alarms/refusals")
    assert_same(alone, together, metrics)


@pytest.mark.parametrize("baseline", ["sft", "dpo"])
def test_baselines_too(tiny_model, tmp_path, baseline):
    alone, together = (run(tiny_model, tmp_path, baseline, devices) for devices in (1, 2))
    own = {"sft": (), "dpo": ("rewards/margins", "rewards/accuracies", "logps/chosen")}[baseline]
    assert_same(alone, together, ("loss", "entropy", "grad_norm", "num_tokens", *own))
