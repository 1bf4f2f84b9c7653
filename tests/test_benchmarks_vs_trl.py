"""The comparison with TRL and the single GPU call: order, arithmetic, gates and limits; stubs do the arms' work."""

import importlib.util
import json
import sys

import pytest
import torch
from benchmarks import gpu, vs_trl
from benchmarks.arms import COMPILED, DEFAULT, GRAPHED, OURS, RECOMPUTING, TUNED, Arms
from benchmarks.gpu import Item
from benchmarks.processes import ArmError
from benchmarks.settings import Settings
from benchmarks.vs_trl import cells, parity_gates, parity_settings, speedups
from benchmarks.workload import even_share, fixed_completions

STUB = """
import json, sys
from pathlib import Path
folder, arm, out, *options = sys.argv[1:]
folder, out, micro_batch = Path(folder), Path(out), int(options[1]) if options else 0
with (folder / "calls").open("a") as calls:
    calls.write(f"{arm} {micro_batch}\\n")
number = len((folder / "calls").read_text().splitlines())
if micro_batch > 4:
    found = {"out_of_memory": True}
elif arm == "trl_default":
    sys.exit("no luck")
else:
    step = 1.0 if arm == "lit-debias" else 4.0
    seconds = dict.fromkeys(("rollout", "reference", "reward", "update"), [step / 4] * 2)
    seconds["step"] = [step, step + number]
    found = {"seconds": seconds, "tokens": [24, 24], "peak_bytes": number, "versions": {}}
out.write_text(json.dumps(found))
"""


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """Arms that do no work; returns the file of their calls."""
    (tmp_path / "stub.py").write_text(STUB)

    def command(self, arm, task, settings, out):
        return [sys.executable, str(tmp_path / "stub.py"), str(tmp_path), arm, str(out)]

    monkeypatch.setattr(Arms, "command", command)
    monkeypatch.setattr(Arms, "check", lambda self, arms, settings: None)
    monkeypatch.setattr(Arms, "parity", lambda self, arm, settings: tensors())
    return tmp_path / "calls"


def tensors() -> dict[str, torch.Tensor]:
    names = ("logprobs", "reference_logprobs", "advantages", "gradient")
    return {name: torch.arange(1.0, 7.0) for name in names}


def compare(tmp_path, *arguments) -> tuple[int, dict]:
    sizes = ["--prompts", "2", "--group-size", "4", "--completion-tokens", "3", "--prompt-tokens", "8"]
    out = tmp_path / "vs_trl.json"
    tiny = ["--shape", "tiny", "--device", "cpu", "--out", str(out)]
    status = vs_trl.main([*tiny, *sizes, *arguments])
    return status, json.loads(out.read_text()) if out.exists() else {}


def test_arms_take_turns_and_are_summed_up(stubbed, tmp_path, capsys):
    status, report = compare(tmp_path, "--rounds", "2")
    assert status == 0
    # TRL's micro-batch of 8 is out of memory once; 4 is remembered
    assert stubbed.read_text().split("\n")[:-1] == [
        "lit-debias 0",
        "trl_tuned 8",
        "trl_tuned 4",
        "lit-debias 0",
        "trl_tuned 4",
    ]
    assert {"date", "commit", "hardware", "versions", "gates", "cells"} < report.keys()
    [cell] = report["cells"]
    ours, theirs = cell["arms"][OURS], cell["arms"][TUNED]
    assert ours["phases"]["step"] == {"median": 1.5, "min": 1.0, "max": 5.0, "all": [1.0, 2.0, 1.0, 5.0]}
    assert ours["tokens_per_second"] == 18  # 24 / 1, 24 / 2, 24 / 1, 24 / 5
    assert theirs["tokens_per_second"] == pytest.approx((24 / 4 + 24 / 7) / 2)  # 24 / 4 twice, 24 / 7, 24 / 9
    assert cell["speedup"] == {TUNED: pytest.approx(18 / theirs["tokens_per_second"])}
    assert (ours["peak_bytes"], theirs["peak_bytes"], theirs["micro_batch"]) == (4, 5, 4)
    assert "trl_tuned" in capsys.readouterr().out


def test_an_arm_that_fails_is_named_and_the_others_go_on(stubbed, tmp_path, capsys):
    status, report = compare(tmp_path, "--arms", OURS, DEFAULT, "--rounds", "2")
    assert (status, report["passed"]) == (1, False)
    [cell] = report["cells"]
    assert cell["errors"] == {DEFAULT: "exit status 1: no luck"}
    assert cell["arms"][OURS]["processes"] == 2
    assert "FAIL trl_default: exit status 1: no luck" in capsys.readouterr().out


def test_an_arm_that_fails_is_written_down_before_the_next_one_begins(tmp_path, monkeypatch):
    out = tmp_path / "out.json"

    def steps(self, arm, settings):
        if arm == DEFAULT:
            raise ArmError("no luck")
        written = json.loads(out.read_text())
        assert written["cells"][0]["errors"] == {DEFAULT: "no luck"}
        raise KeyboardInterrupt

    monkeypatch.setattr(Arms, "steps", steps)
    monkeypatch.setattr(Arms, "parity", lambda self, arm, settings: tensors())
    with pytest.raises(KeyboardInterrupt):
        vs_trl.Comparison(Arms("python", 1), [DEFAULT, OURS], 1, out, "cpu").run([Settings()])


@pytest.mark.parametrize("name", ["logprobs", "advantages", "gradient"])
def test_sides_that_differ_are_not_timed(name, stubbed, tmp_path, monkeypatch):
    def parity(self, arm, settings):
        found = tensors()
        if arm != OURS:
            found[name] = found[name] + torch.tensor([1.0, 0, 0, 0, 0, 0])
        return found

    monkeypatch.setattr(Arms, "parity", parity)
    status, report = compare(tmp_path)
    assert (status, report["passed"], report["cells"]) == (1, False, [])
    assert [gate for gate, found in report["gates"].items() if not found["passed"]] == [f"nf4, {name}"]
    assert not stubbed.exists()


def test_other_shapes_never_pass():
    gates = parity_gates(tensors(), {name: value[:2] for name, value in tensors().items()})
    assert not any(gate["passed"] for gate in gates.values())


def test_the_grid_has_every_point_with_every_kind_of_lengths():
    found = list(cells(Settings(), ["fixed", "natural"], grid=True))
    points = {(cell.lengths, cell.quantization, cell.prompt_tokens, cell.group_size) for cell in found}
    assert len(points) == len(found) == 2 * 2 * 2 * 3
    assert list(cells(Settings(), ["fixed"], grid=False)) == [Settings()]


def test_the_parity_batch_is_small_strict_and_the_same_everywhere():
    small = parity_settings(Settings(quantization="nf4", lengths="natural", prompts=8, group_size=16))
    assert (small.quantization, small.dtype, small.lengths) == ("nf4", "float32", "fixed")
    found = fixed_completions(small, vocabulary=50)
    assert found == fixed_completions(small, vocabulary=50)
    assert [len(group) for group in found] == [4, 4]
    assert len({len(row) for group in found for row in group}) > 1
    assert even_share([[2, 4, 5, 7], [1], []]) == [0.5, 0.0, 0.0]


def test_a_python_without_trl_is_a_mistake(tmp_path, capsys):
    assert compare(tmp_path, "--trl-python", str(tmp_path / "python")) == (2, {})
    assert "no Python there that can import trl" in capsys.readouterr().err


def test_prompts_that_cannot_be_so_short_are_a_mistake(stubbed, tmp_path, capsys):
    assert compare(tmp_path, "--prompt-tokens", "1") == (2, {})
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "--prompt-tokens 1: the chat template takes" in line
    assert not stubbed.exists()


def test_a_process_has_its_limit():
    with pytest.raises(ArmError, match=r"not done after 0\.001 minutes"):
        Arms(sys.executable, minutes=0.001)._run(OURS, [sys.executable, "-c", "import time; time.sleep(60)"])


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl==1.16.0 on PYTHONPATH")
@pytest.mark.timeout(1200)
def test_the_real_trl_agrees_and_is_timed(tmp_path):
    fast = ("--quantization", "none", "--dtype", "float32", "--quick", "--rounds", "1", "--repeats", "1")
    status, report = compare(tmp_path, *fast)
    assert status == 0
    assert all(gate["passed"] for gate in report["gates"].values())
    [cell] = report["cells"]
    assert cell["arms"].keys() == {OURS, TUNED}
    for arm in cell["arms"].values():
        assert arm["tokens"]["all"] == [1 * 2 * 8]
        assert arm["phases"].keys() == {"rollout", "reference", "reward", "update", "step"}
        assert all(phase["min"] > 0 for phase in arm["phases"].values())


def test_what_tells_our_arms_from_each_other(tmp_path):
    sides = {
        OURS: ("our_side", False, False, "sdpa", None),
        COMPILED: ("our_side", True, False, "sdpa", None),
        GRAPHED: ("our_side", False, True, "flex", None),
        RECOMPUTING: ("our_side", False, False, "sdpa", True),
        TUNED: ("trl_side", False, False, "sdpa", None),
    }
    for arm, (side, *ways) in sides.items():
        command = Arms("python", 1).command(arm, "steps", Settings(), tmp_path)
        assert side in command
        given = json.loads(command[command.index("--settings") + 1])
        assert [given[name] for name in ("torch_compile", "cuda_graph", "attention", "gradient_checkpointing")] == ways


def test_speedups_by_hand():
    arms = {name: {"tokens_per_second": rate} for name, rate in ((OURS, 30), (COMPILED, 40), (TUNED, 10), (DEFAULT, 5))}
    assert speedups(arms, OURS) == {TUNED: 3, DEFAULT: 6}
    assert speedups(arms, COMPILED) == {TUNED: 4, DEFAULT: 8}
    assert speedups({TUNED: arms[TUNED]}, COMPILED) == {}


# ---------------------------------------------------------------- the single GPU call


def gpu_call(tmp_path, *arguments) -> tuple[int, dict]:
    status = gpu.main(["--out", str(tmp_path), "--device", "cpu", "--shape", "tiny", *arguments])
    return status, {item["name"]: item for item in json.loads((tmp_path / "gpu.json").read_text())["items"]}


def only(monkeypatch, *chosen: Item) -> None:
    monkeypatch.setattr(gpu, "items", lambda *_: iter(chosen))


def test_without_time_everything_is_skipped_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "no_trl", lambda python: "no trl here")
    status, found = gpu_call(tmp_path, "--minutes", "0")
    assert status == 0
    assert {item["status"] for item in found.values()} == {"skipped"}
    assert found["vs_trl_large"]["reason"] == "no trl here"
    assert found["rollout_small"]["reason"] == "0 s left, and it takes about 20 s"
    assert found.keys() == {
        "trl_parity",
        "rollout_compiled_small",
        *("vllm_small", "vllm_large", "vllm_large_nf4"),
        *(f"{name}_{size}" for name in ("vs_trl", "rollout", "update", "step") for size in ("small", "large")),
    }


def test_an_item_that_fails_or_takes_too_long_is_named_and_the_rest_runs(tmp_path, monkeypatch):
    only(monkeypatch, Item("late", ("step", "--help"), 0, 0.01), Item("wrong", ("nonsense",), 0, 200))
    status, found = gpu_call(tmp_path)
    assert status == 1
    assert {name: item["status"] for name, item in found.items()} == {"late": "stopped", "wrong": "failed"}
    assert found["late"]["reason"] == "not done after 0 s"
    assert "nonsense" in (tmp_path / "wrong.log").read_text()


def test_a_gpu_gets_its_graphs_and_its_attention_and_all_but_vllm_fits_into_the_time(tmp_path):
    options = gpu.parser().parse_args([])
    found = {item.name: item for item in gpu.items(options, "cuda", tmp_path)}
    assert GRAPHED in found["vs_trl_large"].arms
    assert {name for name, item in found.items() if "--cuda-graph" in item.arguments} == {
        f"{name}_{size}" for name in ("rollout", "step") for size in ("small", "large")
    }
    assert {name for name, item in found.items() if "flex" in item.arguments} == {
        f"{name}_{size}" for name in ("update", "step") for size in ("small", "large")
    }
    without = [item for item in found.values() if not item.vllm]
    assert sum(item.seconds + sum(item.arms.values()) for item in without) <= 60 * options.minutes


def test_the_graphed_arm_is_the_one_whose_parity_is_checked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Arms, "parity", lambda runner, arm, settings: asked.append(arm))
    monkeypatch.setattr(vs_trl, "parity_gates", lambda *_: {"all": {"passed": False}})
    for arms in ([OURS, TUNED], [OURS, GRAPHED, TUNED]):
        vs_trl.Comparison(Arms("python", 1), arms, 1, tmp_path / "out.json", "cpu").run([Settings()])
    assert asked == [OURS, TUNED, GRAPHED, TUNED]


@pytest.mark.processes
def test_a_real_item_runs_on_a_cpu_with_a_tiny_shape(tmp_path, monkeypatch):
    options = gpu.parser().parse_args(["--shape", "tiny"])
    every = list(gpu.items(options, "cpu", tmp_path / "shapes"))
    only(monkeypatch, *(Item(i.name, i.arguments, 0, 200) for i in every if i.name == "update_small"))
    status, found = gpu_call(tmp_path)
    assert (status, found["update_small"]["status"]) == (0, "passed")
    assert json.loads((tmp_path / "update_small.json").read_text())["phases"]["packed"]["rate"] > 0


def test_a_cpu_is_asked_for_with_a_shape(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "--shape tiny" in capsys.readouterr().err
