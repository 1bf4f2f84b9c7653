"""The benchmark of VLLMEngine, with a server that stands in for vLLM; what vLLM itself does, `make test-vllm` shows."""

import argparse
import json

import pytest
import torch
from benchmarks import vllm_engine, vllm_processes
from benchmarks.vllm_engine import Size, goals, of_way, publish
from support import perturb
from vllm_server import serving

from lit_debias_vllm_server import Receiver


class Offline:
    """Samples nothing, and says that it took a second."""

    def __init__(self, missing=0):
        self.tasks, self.missing = [], missing

    def rollout(self, task):
        self.tasks.append(task)
        tokens = sum(how["n"] * how["max_tokens"] for how in task["sampling"])
        return {"seconds": 1.0, "tokens": tokens - self.missing}


@pytest.fixture
def policy(tiny_model):
    torch.manual_seed(0)
    policy = vllm_engine.loaded(str(tiny_model))
    perturb(policy)
    return policy


OPTIONS = argparse.Namespace(sizes=["2x2x3"], rounds=2, switches=2)


def test_both_sides_sample_the_same_and_the_figures_are_written(policy, tiny_model, tmp_path, capsys):
    other = Offline()
    with serving(tiny_model, receiver=Receiver()) as server:
        found = of_way(policy, server.url, "adapter", other, OPTIONS)
        sent = [body for body in server.asked("/v1/completions") if body["n"] == 2]
    assert len(other.tasks) == 3  # one warms up
    for number, task in enumerate(other.tasks):
        mine = sorted((body["prompt"], body["seed"]) for body in sent[2 * number : 2 * number + 2])
        assert mine == sorted(zip(task["prompts"], (how["seed"] for how in task["sampling"]), strict=True))
        assert task["adapter"].endswith("-adapter")
    rates = found["rates"]["2 x 2 x 3"]
    assert rates["offline"]["all"] == [12.0, 12.0]
    assert [len(found["switch_seconds"][by]["all"]) for by in ("folder", "http")] == [2, 2]
    settings = {"model": "tiny", "device": "cpu"}
    report = {"benchmark": "vllm_engine", "settings": settings, "ways": {"adapter": found}}
    out = tmp_path / "out.json"
    code = publish({**report, "goals": goals(report["ways"])}, out)
    written = json.loads(out.read_text())
    assert code == (0 if written["passed"] else 1)
    assert {"date", "commit", "hardware", "versions"} <= written.keys()
    assert "2 x 2 x 3" in capsys.readouterr().out


def test_a_side_that_samples_fewer_tokens_is_no_figure(policy, tiny_model):
    with serving(tiny_model) as server, pytest.raises(RuntimeError, match="offline: 11 tokens were sampled, not 12"):
        of_way(policy, server.url, "merged", Offline(missing=1), OPTIONS)


def test_a_goal_is_missed_below_nine_tenths_or_half_a_second():
    def ways(ratio, seconds):
        spread = {"median": ratio, "all": [ratio]}
        return {"merged": {"rates": {"x": {"ratio": spread}}, "switch_seconds": {"folder": {"median": seconds}}}}

    assert [goal["passed"] for goal in goals(ways(0.91, 0.4)).values()] == [True, True]
    assert [goal["passed"] for goal in goals(ways(0.89, 0.6)).values()] == [False, False]


def test_a_server_is_started_with_the_options_of_the_other_side():
    options = vllm_processes.options_of("/m", rows=4, longest=64, adapter_rank=16)
    line = " ".join(vllm_processes.flags(options))
    assert line.startswith("--model /m --dtype bfloat16 --max-model-len 64 --max-num-seqs 4")
    assert "--no-enable-chunked-prefill" in line
    assert line.endswith("--enable-lora --max-loras 2 --max-lora-rank 16")
    assert Size.read("8x4x16").total == 512


def test_an_environment_without_vllm_is_one_line(tiny_model, capsys, tmp_path):
    given = ["--model", str(tiny_model), "--vllm-python", "/nowhere/python", "--out", str(tmp_path / "x.json")]
    assert vllm_engine.main(given) == 2
    assert (
        "error: --vllm-python /nowhere/python: No such file or directory; write the Python" in capsys.readouterr().err
    )
