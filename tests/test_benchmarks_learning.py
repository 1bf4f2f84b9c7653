"""The benchmark of whole runs: plan and arithmetic by hand, the order of runs by stubs, and TRL itself where it is."""

import importlib.util
import json
import sys

import pytest
import torch
from benchmarks import learning
from benchmarks.learning import OURS, TRL, Trainers, blocks, difference, exact_gate, paired, summary
from benchmarks.learning_plan import Plan, no_e, short_words
from benchmarks.learning_plot import smooth
from benchmarks.processes import ArmError
from safetensors.torch import save_file

SHAPES = {"layer.lora_A.default.weight": (2, 300), "layer.lora_B.default.weight": (5, 2)}


def test_rewards_are_shares_of_words():
    assert short_words("The 12 quick foxes don't run") == pytest.approx(2 / 5)  # The, run; digits are no words
    assert no_e("The End of a story, Eve") == pytest.approx(3 / 6)  # of, a, story
    assert short_words("...") == no_e("") == 0.0


def test_each_prompt_is_asked_before_one_is_asked_again():
    plan = Plan(steps=6, prompts=2, distinct_prompts=4)
    texts = plan.prompt_texts()
    assert len(texts) == 12
    parts = [texts[start : start + 4] for start in (0, 4, 8)]
    assert all(set(part) == set(parts[0]) and len(set(part)) == 4 for part in parts)
    assert texts == plan.prompt_texts() != Plan(steps=6, prompts=2, distinct_prompts=4, seed=2).prompt_texts()


def test_the_first_adapter_is_a_fresh_one_whatever_the_order_of_names():
    first = Plan().first_adapter(SHAPES)
    assert not first["layer.lora_B.default.weight"].any()
    a = first["layer.lora_A.default.weight"]
    assert 0.9 / 300**0.5 < a.abs().max() <= 1 / 300**0.5  # PEFT draws from U(-1/sqrt(inputs), 1/sqrt(inputs))
    again = Plan().first_adapter(dict(reversed(SHAPES.items())))
    assert all(torch.equal(first[name], again[name]) for name in SHAPES)
    assert not torch.equal(a, Plan(seed=2).first_adapter(SHAPES)["layer.lora_A.default.weight"])


def test_the_difference_is_relative_to_the_way():
    plan = Plan()
    first = plan.first_adapter(SHAPES)
    ours = {name: weight + 0.3 for name, weight in first.items()}
    theirs = {name: weight + 0.33 for name, weight in first.items()}
    assert difference(plan, ours, ours) == 0
    assert difference(plan, ours, theirs) == pytest.approx(0.1, rel=1e-4)
    assert difference(plan, ours, {"other": torch.zeros(1)}) == float("inf")


def test_parts_of_a_run():
    assert blocks([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert blocks([1.0, 3.0, 5.0, 7.0, 9.0], 2) == [2.0, 7.0]  # what remains goes to the last
    assert blocks([1.0, 3.0]) == [1.0, 3.0]  # shorter than six


def test_an_interval_by_students_t():
    found = paired([0.1, 0.2, 0.3])  # standard deviation 0.1, t of two degrees of freedom 4.3027
    assert found["mean"] == pytest.approx(0.2)
    assert found["high"] - found["mean"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert found["low"] == pytest.approx(0.2 - 0.24841, rel=1e-3)
    assert paired([0.1]) == {"mean": 0.1, "seeds": 1}


def test_a_point_of_the_figure_is_the_mean_of_five_steps():
    assert smooth([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]


def run(arm: str, seed: int, rewards: list[float], seconds: float) -> dict:
    return {"reward": "no_e", "arm": arm, "seed": seed, "rewards": rewards, "seconds": [1.0, seconds], "tokens": [1, 1]}


def test_seeds_are_compared_in_pairs():
    runs = [
        *(run(OURS, 1, [0.2, 0.4], 10.0), run(TRL, 1, [0.1, 0.3], 50.0)),
        *(run(OURS, 2, [0.6, 0.8], 20.0), run(TRL, 2, [0.7, 0.9], 70.0)),
    ]
    found = summary(runs)["no_e"]
    assert found["ours_minus_trl"]["mean"] == pytest.approx(0.0)  # +0.1 and -0.1
    assert found["ours_minus_trl"]["high"] > 0.1
    assert found["seconds_of_trl"] == 10 / 50  # the fastest of each
    last = found["arms"][OURS]["blocks"][-1]
    assert (last["mean"], last["min"], last["max"]) == (pytest.approx(0.6), 0.4, 0.8)


# ---------------------------------------------------------------- the program, with stubs


class Stub:
    """Trainers that learn nothing; TRL's adapter ends ``apart`` beside ours."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int, bool]] = []
        self.apart = 0.001

    def learn(self, trainers, arm, plan, given=None):
        self.calls.append((arm, plan.reward, plan.seed, given is not None))
        folder = trainers.folder / str(len(self.calls))
        folder.mkdir()
        curve = {
            "reward": [0.5 + 0.01 * step for step in range(plan.steps)],
            "seconds": [float(step + 1) for step in range(plan.steps)],
            "completions": [[[1, 2], [3]]] * plan.steps,
        }
        (folder / "curve.json").write_text(json.dumps(curve))
        apart = self.apart if arm == TRL else 0.0
        adapter = {name: weight + 1.0 + apart for name, weight in plan.first_adapter(SHAPES).items()}
        save_file(adapter, folder / "adapter.safetensors")
        return folder


@pytest.fixture
def stub(monkeypatch):
    result = Stub()
    monkeypatch.setattr(Trainers, "learn", lambda *args, **kwargs: result.learn(*args, **kwargs))
    monkeypatch.setattr(learning, "has_trl", lambda python: True)
    monkeypatch.setattr(learning, "check_trl", lambda python: None)
    return result


def test_trainers_take_turns_after_the_exact_part(stub, tmp_path, capsys):
    out = tmp_path / "learning.json"
    assert learning.main(["--steps", "12", "--seeds", "1", "2", "--dtype", "float32", "--out", str(out)]) == 0
    assert stub.calls[:2] == [(OURS, "short_words", 1, False), (TRL, "short_words", 1, True)]
    assert [(arm, reward, seed) for arm, reward, seed, _ in stub.calls[2:]] == [
        *((OURS, "short_words", 1), (TRL, "short_words", 1), (TRL, "no_e", 1), (OURS, "no_e", 1)),
        *((OURS, "short_words", 2), (TRL, "short_words", 2), (TRL, "no_e", 2), (OURS, "no_e", 2)),
    ]
    found = json.loads(out.read_text())
    assert found["passed"]
    assert found["runs"][0]["tokens"] == [3] * 12
    (gate,) = found["gates"].values()
    assert gate["difference"] == pytest.approx(0.001, rel=1e-3)
    assert "<svg" in out.with_suffix(".svg").read_text()
    shown = capsys.readouterr().out
    assert "1-2" in shown
    assert "11-12" in shown
    assert "no difference by step" in shown


def test_nothing_runs_where_adapters_move_apart(stub, tmp_path, capsys):
    stub.apart = 0.02
    out = tmp_path / "learning.json"
    assert learning.main(["--dtype", "float32", "--out", str(out)]) == 1
    assert len(stub.calls) == 2
    assert not json.loads(out.read_text())["passed"]
    assert "FAIL" in capsys.readouterr().out


def test_bf16_s_rounding_is_measured_and_decides_nothing(stub, tmp_path):
    plan = Plan(dtype="bfloat16", steps=4)
    gate = exact_gate(Trainers(tmp_path, sys.executable, 1.0), plan, 2)
    assert gate["passed"]
    assert gate["difference_in_bfloat16"] == pytest.approx(0.001, rel=1e-3)


def test_without_trl_lit_debias_learns_alone(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "has_trl", lambda python: False)
    out = tmp_path / "learning.json"
    assert learning.main(["--steps", "2", "--seeds", "1", "--out", str(out)]) == 0
    assert {arm for arm, *_ in stub.calls} == {OURS}
    assert "ours_minus_trl" not in json.loads(out.read_text())["summary"]["no_e"]


def test_a_trl_that_is_asked_for_and_missing_is_one_line(tmp_path, capsys):
    assert learning.main(["--arms", "trl", "--trl-python", "/nowhere/python", "--out", str(tmp_path / "x.json")]) == 2
    assert "no Python there that can import trl" in capsys.readouterr().err


def test_a_process_that_fails_is_told(stub, tmp_path, monkeypatch, capsys):
    def fail(*_args, **_kwargs):
        raise ArmError("exit status 1: no luck")

    monkeypatch.setattr(Trainers, "learn", fail)
    assert learning.main(["--out", str(tmp_path / "x.json")]) == 1
    assert "no luck" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl==1.16.0 on PYTHONPATH")
@pytest.mark.timeout(300)
def test_the_same_completions_move_trls_adapter_alike(tmp_path):
    plan = Plan(dtype="float32", steps=3, completion_tokens=12)
    gate = exact_gate(Trainers(tmp_path, sys.executable, 5.0), plan, 3)
    assert gate["passed"], gate


@pytest.mark.processes
def test_lit_debias_learns_for_real(tmp_path):
    plan = Plan(steps=2, completion_tokens=4, group_size=2, prompts=1, dtype="float32")
    folder = Trainers(tmp_path, sys.executable, 5.0).learn(OURS, plan)
    found = learning.run_of(OURS, plan, folder)
    assert len(found["rewards"]) == len(found["seconds"]) == len(found["tokens"]) == 2
    assert all(2 <= tokens <= 8 for tokens in found["tokens"])
    assert found["seconds"][0] < found["seconds"][1]
