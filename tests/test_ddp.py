"""Two CPU processes do what one does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.mark.parametrize("aggregator", ["sum", "gdpo"])
def test_two_processes_make_the_step_of_one(tiny_model, tmp_path, aggregator):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"people from {place} are"}) for place in "abcdefgh"))
    results = {}
    for devices in (1, 2):
        out = tmp_path / f"{devices}.pt"
        command = [sys.executable, str(WORKER), str(tiny_model), str(prompts), str(out), str(devices), aggregator]
        environment = {**os.environ, "PYTHONPATH": str(WORKER.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        results[devices] = torch.load(out, weights_only=True)
    assert (results[1]["prompts"], results[2]["prompts"]) == (4, 2)  # whole groups on each rank
    for name, alone in results[1]["adapter"].items():
        torch.testing.assert_close(results[2]["adapter"][name], alone, rtol=1e-4, atol=2e-6, msg=name)
    for name in ("reward", "loss", "kl", "entropy", "grad_norm", "num_tokens"):
        scale = 2 if name == "num_tokens" else 1  # the mean over ranks of a count
        assert results[2]["metrics"][name] * scale == pytest.approx(results[1]["metrics"][name], rel=1e-3), name
