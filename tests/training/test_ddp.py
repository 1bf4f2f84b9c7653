"""Two CPU processes do what one does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_debias.training.adapter_module import AdapterModule

pytestmark = pytest.mark.processes
WORKER = Path(__file__).parents[1] / "helpers" / "ddp_worker.py"
RUNS = ("sum", "gdpo", "dynamic", "sft", "dpo")

DYNAMIC = ("sampled", "kept", "spread", "reward")


@pytest.fixture(scope="module")
def found(tiny_model, tmp_path_factory):
    """Return, by the number of processes, what each run has found."""
    folder = tmp_path_factory.mktemp("ddp")
    rows = [
        {"prompt": f"people from {p} are", "reference": "judged " * n, "biased": "kind"}
        for n, p in enumerate("abcdefgh", 1)
    ]
    held_out = [row | {"prompt": row["prompt"].replace("people", "cooks")} for row in rows]
    for name, written in {"prompts": rows, "held_out": held_out}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in written))
    path = os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)  # another test's, with which Lightning's launcher would seed again
    for devices in (1, 2):
        command = [sys.executable, str(WORKER), str(tiny_model), str(folder), str(devices), *RUNS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {n: {run: torch.load(folder / f"{run}-{n}.pt", weights_only=True) for run in RUNS} for n in (1, 2)}


def assert_same(alone, together, metrics) -> None:
    for name, value in alone["adapter"].items():
        torch.testing.assert_close(together["adapter"][name], value, rtol=1e-4, atol=2e-6, msg=name)
    for name in metrics:
        assert together["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-3), name


@pytest.mark.parametrize("aggregator", ["sum", "gdpo"])
def test_two_processes_make_the_step_of_one(found, aggregator):
    alone, together = (found[devices][aggregator] for devices in (1, 2))
    assert (alone["prompts"], together["prompts"]) == (4, 2)  # whole groups on each rank
    metrics = ("reward", "loss", "kl", "entropy", "grad_norm", "num_tokens", "alarms/length", "alarms/refusals")
    lengths = [f"completions/{name}_length" for name in ("min", "mean", "max")]
    rewards = [f"rewards/{name}/{what}" for name in ("vowels", "length") for what in ("mean", "std", "missing_rate")]
    assert_same(alone, together, (*metrics, *lengths, *rewards))


def test_processes_that_keep_different_numbers_of_groups_make_the_step_of_one(found):
    alone, together = (found[devices]["dynamic"] for devices in (1, 2))
    assert_same(
        alone, together, ("reward", "loss", "kl", "grad_norm", *(f"dynamic_sampling/{name}" for name in DYNAMIC))
    )
    assert (alone["prompts"], together["prompts"]) == (3, 1)  # the other process has 2
    assert alone["metrics"]["dynamic_sampling/sampled"] == 6  # a batch of 4, and the one without a spread twice
    assert alone["metrics"]["dynamic_sampling/kept"] == 3


def test_the_first_process_measures_for_all(found):
    metrics = [f"evaluate/{name}{end}" for name in ("preference_margin", "length") for end in ("", "_low", "_high")]
    assert_same(found[1]["sum"], found[2]["sum"], metrics)
    assert "evaluate/length" not in found[1]["gdpo"]["metrics"]


@pytest.mark.parametrize("baseline", ["sft", "dpo"])
def test_baselines_too(found, baseline):
    own = {"sft": (), "dpo": ("rewards/margins", "rewards/accuracies", "logps/chosen")}[baseline]
    assert_same(found[1][baseline], found[2][baseline], ("loss", "entropy", "grad_norm", "num_tokens", *own))


def test_extremes_of_several_ranks_are_no_means():
    how = {}
    module = SimpleNamespace(log=lambda name, value, shown, *, reduce_fx, **_: how.update({name: reduce_fx}))
    lengths = [f"completions/{name}_length" for name in ("min", "mean", "max")]
    times, off = ["rollout_time", "step_time"], "sampling/sampling_logp_difference"
    AdapterModule._log(module, dict.fromkeys([*lengths, *times, f"{off}/mean", f"{off}/max", "tokens_per_second"], 1.0))
    assert [how[name] for name in lengths] == ["min", "mean", "max"]
    assert [how[name] for name in times] == ["max", "max"]
    assert (how[f"{off}/mean"], how[f"{off}/max"], how["tokens_per_second"]) == ("mean", "max", "sum")
