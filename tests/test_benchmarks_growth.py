"""The growth of a step's cost: the counts of the cost model by hand, its fit, and the program on tiny models."""

import json
from dataclasses import replace
from importlib.util import find_spec
from inspect import signature

import pytest
import torch
from benchmarks import cost, growth, our_side
from benchmarks.cost import Architecture, Machine, Memory, Work
from benchmarks.growth import Point, plan, relative_errors
from benchmarks.processes import ArmError
from benchmarks.settings import Settings
from benchmarks.shapes import model_config, random_model, save_model
from benchmarks.vs_trl import Arms

from lit_debias.forward.memory import KeptBytes
from lit_debias.packing.groups import pack
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.training.grpo import GRPO

NOISE = [
    "ignore:You defined a `validation_step`:lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
]
pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]
needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")

SMALL = Architecture(layers=1, hidden=2, intermediate=3, heads=1, queries=2, keys=1, vocabulary=5, tied=True)
CELL = Settings(prompts=1, group_size=2, prompt_tokens=3, completion_tokens=4)  # 3 + 2 x 3 packed tokens


def test_sizes_by_hand():
    assert SMALL.linear == 30  # q and o 2x2, k and v 2x1, three of 2x3
    assert (SMALL.head, SMALL.parameters, replace(SMALL, tied=False).parameters) == (10, 40, 50)
    assert SMALL.adapter == 16 * (4 + 4 + 3 + 3 + 5 + 5 + 5)
    assert cost.packed_tokens(CELL) == 9
    assert cost.attention_flops(SMALL, CELL) == 8 * (9 + 2 * 3 * 6)
    several = replace(CELL, prompts=5)
    assert [cost.passes(several, budget) for budget in (8, 9, 18, 27, 45, 1000)] == [5, 5, 3, 2, 1, 1]
    assert cost.groups_together(several, 1000) == 5
    assert signature(GRPO).parameters["micro_batch_tokens"].default == cost.MICRO_BATCH_TOKENS


def test_sizes_are_those_of_the_model():
    with torch.device("meta"):
        model = random_model("tiny")
    shape = Architecture.of(model_config("tiny"))
    weights = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(weights) == shape.linear + shape.head
    assert Architecture.of(model_config("135m")).adapter == 4_884_480  # what training SmolLM2-135M reports


def test_work_by_hand():
    assert cost.phases(SMALL, CELL) == {
        # a prompt of 3, then 3 steps of 2 rows that see the prompt and 2 tokens of their own on average
        "rollout": Work(
            flops=2 * 30 * (3 + 6) + 2 * 10 * (1 + 6) + 8 * (9 + 2 * 3 * (3 + 2)),
            bytes=4 * 2 * 30 + 2 * 40 * 4 + 4 * (3 * 3 + 2 * 3 * 2) + 32 * 5 * 8,
            decoding_layers=4,
            packed_layers=0,
        ),
        "reference": Work(2 * 30 * 9 + 2 * 10 * 8 + 360, 2 * 30 + 2 * 2724 + 32 * 5 * 8, 0, 1),
        "update": Work(
            flops=4 * 30 * 9 + 6 * 464 * 9 + 4 * 10 * 8 + 3 * 360,
            bytes=2 * 2 * 30 + 4 * 2724 + 56 * 5 * 8 + 40 * 464,
            decoding_layers=0,
            packed_layers=3,
        ),
    }
    three, once = (cost.phases(SMALL, replace(CELL, prompts=prompts)) for prompts in (3, 1))
    assert three["update"].packed_layers == once["update"].packed_layers  # they share a pass
    assert three["update"].flops == 3 * once["update"].flops


def test_memory_by_hand():
    # 9 tokens of 4 x 2 + 2 x 2 + 3 x 3 + 112 numbers, keys and values of 3 + 2 x 6 tokens, weights of 9 + 2 x 18 pairs
    assert cost.activation_bytes(SMALL, CELL) == 2 * (9 * 133 + 2 * 15) + 6 * 45 == 2724
    assert cost.transient_bytes(SMALL, CELL) == 2724 + 10 * 5 * 8
    assert cost.transient_bytes(SMALL, replace(CELL, prompts=4)) == 4 * (2724 + 10 * 5 * 8)
    alone = replace(CELL, prompts=2, prompt_tokens=1500)  # a group each in a pass
    assert cost.transient_bytes(SMALL, alone) == cost.activation_bytes(SMALL, alone) + 10 * 5 * 8
    long = replace(CELL, prompts=1, group_size=1, completion_tokens=64)
    words = replace(SMALL, vocabulary=2**16)  # of whose logits no more than a slice is held
    assert cost.transient_bytes(words, long) == cost.activation_bytes(words, long) + 10 * 2**20
    wide = replace(SMALL, vocabulary=1000)
    rows = replace(CELL, group_size=2000, prompt_tokens=1, completion_tokens=1)  # sampling holds the most
    assert cost.transient_bytes(wide, rows) == 2 * 2 * 1 * 2001 + 8 * 1000 * 2000
    assert cost.resident_bytes(SMALL, CELL) == pytest.approx(4.127 / 8 * 30 + 2 * (40 + 40) + 16 * 464)
    plain = replace(CELL, quantization="none", dtype="float32")
    assert cost.resident_bytes(SMALL, plain) == 4 * (40 + 40) + 16 * 464


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(2, 3, 90, 30), (1, 4, 20, 60)], ids=str)
def test_activations_are_what_autograd_keeps(dtype, sizes, tmp_path):
    prompts, group_size, prompt_tokens, completion_tokens = sizes
    settings = replace(
        Settings(dtype=dtype, quantization="none", prompts=prompts),
        group_size=group_size,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )
    save_model("tiny", tmp_path, "cpu")
    policy = QLoRAPolicy(str(tmp_path), "none", dtype, gradient_checkpointing=False)
    policy = policy.load("cpu")
    masks = (torch.ones(shape, dtype=torch.bool) for shape in (sizes[::2], (*sizes[:2], sizes[3])))
    prompt_mask, completion_mask = masks
    packed = pack(prompt_mask.long() + 2, prompt_mask, completion_mask.long() + 2, completion_mask)
    kept = KeptBytes(there_anyway=[weight for layer in policy.forms.lean_model.layers for weight in layer.weights()])
    with kept.counting():
        policy.forms.way.outputs(packed)
    predicted = prompts * cost.activation_bytes(Architecture.of(model_config("tiny")), settings)
    factors = [
        factor for layer in policy.forms.lean_model.layers for fused in layer.linears for factor in fused._lora()
    ]
    adapters = sum(factor.numel() for factor in factors) * getattr(torch, dtype).itemsize  # no activations
    assert predicted == pytest.approx(kept.total - adapters, rel=0.06)


def test_constants_are_found_again():
    machine, memory = Machine(2e-12, 3e-11, 1e-4, 2e-3), Memory(5e8, 1.25)
    points = plan(Settings(shape="tiny", prompt_tokens=16), growth.QUICK)
    work = [each for point in points for each in cost.phases(point.model, point.settings).values()]
    cells = [(point.model, point.settings) for point in points]
    assert cost.fit_machine(work, [machine.seconds(each) for each in work]) == pytest.approx(machine)
    assert cost.fit_memory(cells, [memory.peak(*cell) for cell in cells]) == pytest.approx(memory)


def test_no_constant_is_negative():
    work = [Work(1, 0, 0, 0), Work(1, 1, 0, 0)]
    assert cost.fit_machine(work, [2.0, 1.0]) == pytest.approx((1.2, 0, 0, 0))  # least (x/2 - 1)^2 + (x - 1)^2


def test_errors_are_relative_to_what_was_measured():
    def point(seconds, peak):
        spreads = {"step": {"median": seconds}}
        return Point("base", True, CELL, SMALL, {"seconds": spreads, "peak_bytes": peak})

    said = [{"seconds": {"step": 3.0}, "peak_bytes": 100}, {"seconds": {"step": 3.0}, "peak_bytes": 150}]
    assert relative_errors([(point(2.0, 100), said[0]), (point(4.0, 100), said[1])]) == {
        "step": {"mean": 0.375, "max": 0.5},
        "peak_bytes": {"mean": 0.25, "max": 0.5},
    }


def test_the_plan_varies_one_thing_and_fits_on_every_second_point():
    base = Settings(prompt_tokens=128, shape="tiny")
    points = plan(base, {"group_size": (4, 16), "prompt_tokens": (128, 256), "shape": ("13m",)})
    assert [(point.vary, point.fitted) for point in points] == [
        ("base", True),
        ("group_size", False),
        ("group_size", True),
        ("prompt_tokens", False),  # 128 is the base
        ("shape", True),
    ]
    assert points[2].settings == replace(base, group_size=16)
    assert growth.base_steps(plan(base, {})) == base.warmup + base.repeats
    assert Point.from_json(json.loads(json.dumps(points[1].as_json()))) == points[1]


TINY = ("--shape", "tiny", "--quantization", "none", "--dtype", "float32", "--prompt-tokens", "8", "--device", "cpu")


def grow(tmp_path, *arguments) -> tuple[int, dict]:
    out = tmp_path / "growth.json"
    status = growth.main([*TINY, "--quick", "--out", str(out), *arguments])
    return status, json.loads(out.read_text()) if out.exists() else {}


@needs_matplotlib
def test_a_quick_run_measures_predicts_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Arms, "steps", lambda self, arm, settings: our_side.steps(settings))  # in this process
    status, report = grow(tmp_path, "--vary", "group_size", "completion_tokens")
    assert (status, report["passed"]) == (0, True)
    assert {"date", "commit", "hardware", "versions", "settings", "gates", "constants"} < report.keys()
    assert [(row["vary"], row["settings"]["group_size"]) for row in report["points"]] == [
        ("base", 2),
        ("group_size", 4),
        ("completion_tokens", 2),
    ]
    for row in report["points"]:
        phases = {"rollout", "reference", "update", "step"}
        assert row["measured"]["seconds"].keys() == row["predicted"]["seconds"].keys() == phases
        assert row["predicted"]["seconds"]["step"] > 0
        assert row["predicted"]["peak_bytes"] > 1e6
    assert report["relative_errors"].keys() == {"fitted", "tested"}
    assert "relative error, tested: rollout" in capsys.readouterr().out
    figure = (tmp_path / "growth.svg").read_text()
    assert figure.startswith("<?xml")

    again = tmp_path / "again.json"  # without measuring
    assert growth.main(["--measured", str(tmp_path / "growth.json"), "--out", str(again)]) == 0
    assert json.loads(again.read_text()) == report
    assert again.with_suffix(".svg").read_text() == figure


@needs_matplotlib
def test_a_point_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def steps(self, arm, settings):
        if settings.group_size == 4:
            raise ArmError("no luck")
        seconds = {phase: [1.0, 2.0] for phase in ("rollout", "reference", "update", "step")}
        return {"seconds": seconds, "peak_bytes": 10**9}

    monkeypatch.setattr(Arms, "steps", steps)
    status, report = grow(tmp_path, "--vary", "group_size", "prompt_tokens")
    assert (status, report["passed"], len(report["points"])) == (1, False, 2)
    assert list(report["errors"].values()) == ["no luck"]
    assert "no luck" in capsys.readouterr().out


@needs_matplotlib
def test_a_gate_that_fails_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.step.logprob_gate", lambda module, rollout: {"passed": False})
    monkeypatch.setattr(Arms, "steps", lambda self, arm, settings: pytest.fail("measured"))
    status, report = grow(tmp_path)
    assert (status, report["passed"], report["points"]) == (1, False, [])


def test_a_plan_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Arms, "steps", lambda self, arm, settings: pytest.fail("measured"))
    assert grow(tmp_path, "--plan") == (0, {})
    assert "5 processes, with as much work as" in capsys.readouterr().out


@needs_matplotlib
def test_a_result_that_is_not_there_is_a_mistake(tmp_path, capsys):
    assert growth.main(["--measured", str(tmp_path / "nothing.json")]) == 2
    assert "no such file; write the result of an earlier run" in capsys.readouterr().err
