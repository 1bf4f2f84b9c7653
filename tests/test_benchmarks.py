"""The throughput benchmark: a complete report on a tiny model, gates that can fail, and its options."""

import importlib.metadata
import json

import pytest
import torch
from benchmarks import settings, shapes, throughput
from benchmarks.clock import Clock, phases
from benchmarks.measurement import sized_text
from benchmarks.provenance import commit
from benchmarks.settings import Settings
from support import loaded

from lit_debias import inference_copy, policy
from lit_debias.errors import UserError
from lit_debias.grpo import packing

PHASES = {"rollout": "tokens/s", "reference": "packed tokens/s", "reward Fluency": "completions/s"}
PHASES |= {"update": "packed tokens/s", "step": "tokens/s"}
NOISE = [
    "ignore:You defined a `validation_step`:lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
]
pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


def bench(out, *arguments) -> tuple[int, dict]:
    status = throughput.main(["--out", str(out), "--device", "cpu", "--prompt-tokens", "40", "--quick", *arguments])
    return status, json.loads((out / "throughput.json").read_text())


def tiny(model) -> list[str]:
    return ["--model", str(model), "--quantization", "none", "--dtype", "float32"]


def test_the_report_is_complete(tiny_model, tmp_path, capsys):
    status, report = bench(tmp_path, *tiny(tiny_model))
    assert status == 0
    assert report["passed"]
    assert {"date", "commit", "hardware", "versions", "rewards", "arms"} < report.keys()
    assert report["versions"]["torch"] == importlib.metadata.version("torch")
    [arm] = report["arms"]
    assert (arm["settings"]["prompts"], arm["settings"]["completion_tokens"]) == (1, 8)
    assert arm["trained_parameters"] > 0
    assert {name: gate["passed"] for name, gate in arm["gates"].items()} == {
        "sampled_logprobs": True,
        "packed_gradient": True,
    }
    assert {name: phase["unit"] for name, phase in arm["phases"].items()} == PHASES
    for phase in arm["phases"].values():
        assert 0 < phase["seconds"]["min"] <= phase["seconds"]["median"] <= phase["seconds"]["max"]
        assert phase["peak_bytes"] > 1e6
    assert "ok   sampled_logprobs" in capsys.readouterr().out


def stale_copy(monkeypatch):
    """The inference copy forgets the adapter: rollouts from the wrong weights."""
    right = inference_copy.merged_weight
    monkeypatch.setattr(
        inference_copy,
        "merged_weight",
        lambda layer: right(layer.base_layer) if hasattr(layer, "base_layer") else right(layer),
    )


def leaking_pack(monkeypatch):
    """Completions of a group see each other, under a dense mask."""

    def causal(segments):
        rows, length = segments.shape
        return torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, length, length)

    monkeypatch.setattr(packing, "_attention", causal)
    monkeypatch.setattr(policy, "use_group_attention", lambda model: None)


def leaking_groups(monkeypatch):
    """Completions see their own future, in attention by groups."""
    bias = packing.PackedGroups.completion_bias.func
    monkeypatch.setattr(
        packing.PackedGroups, "completion_bias", property(lambda packed: torch.zeros_like(bias(packed)))
    )


@pytest.mark.parametrize(
    ("fault", "gate"),
    [(stale_copy, "sampled_logprobs"), (leaking_pack, "packed_gradient"), (leaking_groups, "packed_gradient")],
)
def test_a_planted_fault_fails_its_gate_and_nothing_is_timed(fault, gate, tiny_model, tmp_path, monkeypatch, capsys):
    fault(monkeypatch)
    status, report = bench(tmp_path, *tiny(tiny_model))
    assert status == 1
    assert not report["passed"]
    assert not report["arms"][0]["gates"][gate]["passed"]
    assert report["arms"][0]["phases"] == {}
    assert f"FAIL {gate}" in capsys.readouterr().out


def test_a_shape_is_built_in_passing_and_has_text_for_every_token(tmp_path, monkeypatch):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    monkeypatch.setitem(shapes.SHAPES, "0.5b", {**shapes.SHAPES["0.5b"], **small, "vocab_size": 300})
    status, report = bench(tmp_path, "--shape", "0.5b", "--quantization", "none")
    assert status == 0
    assert report["arms"][0]["name"] == "0.5b, bfloat16, cpu"
    tokenizer = shapes.word_tokenizer(300)
    assert len(tokenizer) == 300
    assert tokenizer.decode([257, 299]) == " w257 w299"
    assert tokenizer.decode(tokenizer.encode("An é.")) == "An é."


@pytest.mark.parametrize(
    ("shape", "parameters"),
    # model.safetensors of the Qwen2.5 releases, tied heads counted once
    [("0.5b", 494_032_768), ("1.5b", 1_543_714_304), ("7b", 7_615_616_512)],
)
def test_shapes_have_the_published_number_of_parameters(shape, parameters):
    with torch.device("meta"):
        model = shapes.random_model(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_rates_and_sums_by_hand():
    clock = Clock("cpu")
    clock.seconds |= {"rollout": [1.0, 3.0, 2.0], "reward Judge": [1.0, 1.0, 0.5], "update": [4.0, 5.0, 3.0]}
    clock.peak_bytes |= {"rollout": 10, "reward Judge": 1, "update": 30}
    step = Settings(prompts=2, group_size=3, prompt_tokens=5, completion_tokens=4)
    found = phases(clock, step)
    assert {name: phase["rate"] for name, phase in found.items()} == {
        "rollout": 24 / 2,  # 2 x 3 x 4 tokens, median 2 s
        "reward Judge": 6 / 1,
        "update": (2 * 5 + 24) / 4,
        "step": 24 / 6,  # 6, 9 and 5.5 s
    }
    assert found["step"]["seconds"] == {"median": 6.0, "min": 5.5, "max": 9.0, "all": [6.0, 9.0, 5.5]}
    assert found["step"]["peak_bytes"] == 30


@pytest.mark.parametrize("tokens", [40, 41, 42])
def test_prompts_have_exactly_the_tokens_asked_for(tokens, tiny_model):
    policy = loaded(tiny_model)
    assert policy.encode_prompts([sized_text(policy, "w2", tokens)])[0].shape[1] == tokens
    with pytest.raises(UserError, match="--prompt-tokens 3: the chat template takes"):
        sized_text(policy, "w2", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu"], "no CUDA device"),
        (["--device", "cuda"], "no CUDA device"),
        (["--device", "cpu", "--reward", "Fluencyy"], "did you mean 'Fluency'"),
        (["--device", "cpu", "--reward", 'Fluency={"flor": 1}'], "flor"),
        (["--device", "cpu", "--model", "./nowhere"], "no such file or folder"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert throughput.main(["--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_gpu_check_covers_the_shapes_in_bf16_and_nf4():
    arms = settings.gpu_arms()
    assert [(arm.shape, arm.quantization) for arm in arms] == [
        ("0.5b", "none"),
        ("0.5b", "nf4"),
        ("1.5b", "nf4"),
        ("7b", "nf4"),
    ]
    assert {arm.device for arm in arms} == {"cuda"}
    assert arms[-1].repeats < arms[0].repeats


def test_the_commit_is_a_full_hash():
    assert commit() == "unknown" or len(commit().removesuffix("-dirty")) == 40
