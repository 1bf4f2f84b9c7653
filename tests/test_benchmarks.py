"""The benchmarks of single phases and of a step: complete reports on tiny models, gates that can fail, options."""

import functools
import importlib.metadata
import json
import sys

import pytest
import torch
from benchmarks import overlap, rewards, rollout, roofline, shapes, step, update
from benchmarks.clock import Clock, Parts
from benchmarks.provenance import commit
from benchmarks.settings import Settings
from benchmarks.workload import ending_ids, prompt_ids

from lit_debias.forward import choose
from lit_debias.forward.linear import FusedLinear
from lit_debias.packing import groups as packing
from lit_debias.rewards.overlap import OverlappedScoring
from lit_debias.support.precision import dtype_of

PHASES = {"rollout": "tokens/s", "reference": "packed tokens/s", "reward Fluency": "completions/s"}
PHASES |= {"update": "packed tokens/s", "step": "tokens/s"}
NOISE = [
    "ignore:You defined a `validation_step`:lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
]
pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


TINY = ("--shape", "tiny", "--quantization", "none", "--dtype", "float32", "--prompt-tokens", "8", "--quick")


@pytest.fixture(scope="module", autouse=True)
def _machine_measured_once():
    """The rates of this machine are measured for real, and once: they are seconds of large products."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("bytes_per_second", "flops_per_second"):
            patch.setattr(roofline, name, functools.cache(getattr(roofline, name)))
        yield


def run(program, folder, *arguments) -> tuple[int, dict]:
    out = folder / "figures" / "found.json"
    status = program.main(["--out", str(out), "--device", "cpu", *arguments])
    return status, json.loads(out.read_text())


def bench(folder, *arguments) -> tuple[int, dict]:
    return run(step, folder, "--prompt-tokens", "40", "--quick", *arguments)


def tiny(model) -> list[str]:
    return ["--model", str(model), "--quantization", "none", "--dtype", "float32"]


def check_phases(report) -> None:
    for phase in report["phases"].values():
        assert 0 < phase["seconds"]["min"] <= phase["seconds"]["median"] <= phase["seconds"]["max"]
        assert phase["peak_bytes"] > 1e6
        assert phase["rate"] > 0


def test_the_report_of_a_step_is_complete(tiny_model, tmp_path, capsys):
    status, report = bench(tmp_path, *tiny(tiny_model))
    assert status == 0
    assert report["passed"]
    assert {"benchmark", "date", "commit", "hardware", "versions", "rewards", "settings"} < report.keys()
    assert report["versions"]["torch"] == importlib.metadata.version("torch")
    assert (report["settings"]["prompts"], report["settings"]["completion_tokens"]) == (1, 8)
    assert report["trained_parameters"] > 0
    assert {name: gate["passed"] for name, gate in report["gates"].items()} == {
        "sampled_logprobs": True,
        "packed_gradient": True,
    }
    assert {name: phase["unit"] for name, phase in report["phases"].items()} == PHASES
    check_phases(report)
    assert "ok   sampled_logprobs" in capsys.readouterr().out


@pytest.mark.parametrize("decoder", ["lean", "hugging_face"])
def test_a_rollout_is_split_into_its_parts(decoder, tmp_path, capsys):
    status, report = run(rollout, tmp_path, *TINY, "--decoder", decoder)
    assert (status, report["benchmark"]) == (0, "rollout")
    assert report["phases"]["rollout"]["unit"] == "tokens/s"
    check_phases(report)
    assert report["parts"].keys() == {"refresh", "prefill", "decode", "sampling and text"}
    assert min(report["parts"].values()) > 0
    printed = capsys.readouterr().out
    assert f"decode: {report['parts']['decode']:.3f} s" in printed
    assert ("decoding" in report) == (decoder == "lean") == ("a decoding step: " in printed)


def test_a_decoding_step_beside_its_roofline(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "bytes_per_second", lambda device: 1e9)
    monkeypatch.setattr(roofline, "flops_per_second", lambda device, dtype: 1e9)
    _, report = run(rollout, tmp_path, *TINY)  # 2 rows of 8 tokens
    found = report["decoding"]
    vocabulary, width, layers, intermediate, kv_heads, head = 300, 32, 2, 48, 2, 8
    parameters = vocabulary * width + layers * width * (width + 2 * kv_heads * head + width + 3 * intermediate)
    (prompt,) = {report["settings"]["prompt_tokens"]}
    cached = 2 * layers * kv_heads * head * (prompt + 2 * 8 // 2)  # once a prompt, and half of each completion
    assert found["flops"] == 2 * 2 * parameters
    assert found["bytes"] == parameters * 4 + cached * 4
    assert found["roofline_seconds"] == max(found["flops"], found["bytes"]) / 1e9
    assert found["step_seconds"] == report["parts"]["decode"] / 7
    assert found["roofline_share"] == found["roofline_seconds"] / found["step_seconds"]
    assert found["beyond_products"] == 1 - found["products_seconds"] / found["step_seconds"]
    assert found["products_seconds"] > 0


def test_generate_is_timed_on_the_same_work(tmp_path):
    status, report = run(rollout, tmp_path, *TINY, "--arms", "lit-debias", "hf_generate")
    assert (status, report["phases"].keys()) == (0, {"rollout", "hf_generate"})
    check_phases(report)
    for phase in report["phases"].values():
        assert phase["rate"] * phase["seconds"]["median"] == pytest.approx(1 * 2 * 8)


VLLM = """
class SamplingParams:
    def __init__(self, **arguments):
        assert (arguments["n"], arguments["ignore_eos"], arguments["logprobs"]) == (2, True, 0)
        self.tokens = arguments["max_tokens"] - {missing}
class Completion:
    def __init__(self, tokens):
        self.token_ids, self.outputs = [0] * tokens, []
class LLM:
    def __init__(self, model, dtype, max_model_len, max_num_seqs, enforce_eager):
        assert (dtype, max_model_len, max_num_seqs) == ("float32", 16, 2)
    def generate(self, prompts, sampling, use_tqdm):
        assert [len(prompt["prompt_token_ids"]) for prompt in prompts] == [8]
        output = Completion(0)
        output.outputs = [Completion(sampling.tokens)] * 2
        return [output]
"""


@pytest.mark.parametrize("missing", [0, 1])
def test_vllm_is_asked_for_the_same_work(missing, tmp_path, monkeypatch, capsys):
    (tmp_path / "vllm.py").write_text(VLLM.format(missing=missing))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "found.json"
    arguments = ["--out", str(out), "--device", "cpu", *TINY, "--vllm-python", sys.executable]
    if missing:
        assert rollout.main(arguments) == 2
        assert "exit status 1: RuntimeError: vLLM sampled 14 tokens, not 16" in capsys.readouterr().err
        return
    assert rollout.main(arguments) == 0
    report = json.loads(out.read_text())
    assert report["phases"].keys() == {"rollout", "vllm"}
    assert report["phases"]["vllm"]["rate"] * report["phases"]["vllm"]["seconds"]["median"] == pytest.approx(16)
    assert report["phases"]["vllm"]["peak_bytes"] > 1e6


def test_natural_lengths_of_a_random_model_end_early(tmp_path):
    sizes = ("--completion-tokens", "16", "--group-size", "16", "--repeats", "1", "--prompt-tokens", "8")
    status, report = run(rollout, tmp_path, *TINY[:-1], *sizes, "--lengths", "natural")
    phase = report["phases"]["rollout"]
    sampled = phase["rate"] * phase["seconds"]["median"]
    assert status == 0
    assert 2 * 16 <= sampled < 2 * 16 * 16


def test_an_update_is_timed_packed_and_unpacked(tmp_path):
    status, report = run(update, tmp_path, *TINY, "--unpacked")
    assert (status, report["benchmark"]) == (0, "update")
    assert {name: phase["unit"] for name, phase in report["phases"].items()} == dict.fromkeys(
        ("packed", "unpacked"), "packed tokens/s"
    )
    packed = report["phases"]["packed"]
    assert packed["rate"] * packed["seconds"]["median"] == pytest.approx(8 + 2 * 8)
    check_phases(report)
    assert report["parts"].keys() == {"forward", "backward", "optimiser"}
    assert min(report["parts"].values()) > 0


REWARDS = ("--shape", "tiny", "--completions", "20", "--repeats", "2", "--pipeline-batch-size", "1", "4")


def test_rewards_are_timed_against_the_plain_pipeline(tmp_path):
    status, report = run(rewards, tmp_path, *REWARDS)
    assert (status, report["benchmark"]) == (0, "rewards")
    assert report["gates"]["plain_scores"]["passed"]
    assert set(report["phases"]) == {
        *(f"reward {head}" for head in rewards.HEADS),
        "rewards",
        "pipeline, batch 1",
        "pipeline, batch 4",
    }
    assert {phase["unit"] for phase in report["phases"].values()} == {"completions/s"}
    assert len(report["phases"]["rewards"]["seconds"]["all"]) == 2
    rates = {name: phase["rate"] for name, phase in report["phases"].items()}
    assert report["speedup"]["pipeline, batch 4"] == pytest.approx(rates["rewards"] / rates["pipeline, batch 4"])


def test_named_rewards_are_timed_alone(tmp_path):
    status, report = run(rewards, tmp_path, *REWARDS, "--reward", "Fluency")
    assert status == 0
    assert set(report["phases"]) == {"reward Fluency", "rewards"}
    assert report["speedup"] == {}


def test_wrong_scores_fail_the_gate_and_nothing_is_timed(tmp_path, monkeypatch):
    right = rewards.ask
    monkeypatch.setattr(rewards, "ask", lambda *args: right(*args)[::-1])  # rows in the wrong order
    status, report = run(rewards, tmp_path, *REWARDS)
    assert (status, report["passed"], report["phases"]) == (1, False, {})


OVERLAP = (
    *TINY[:-1],
    "--prompts",
    "3",
    "--group-size",
    "2",
    "--completion-tokens",
    "16",
    "--wait",
    "0",
    "--repeats",
    "2",
)


def test_sampling_and_scoring_in_turn_and_overlapped(tmp_path):
    status, report = run(overlap, tmp_path, *OVERLAP)
    assert (status, report["gates"]["same_scores"]["passed"]) == (0, True)
    assert report["phases"].keys() == {"in turn", "overlapped"}
    check_phases(report)


def test_other_scores_fail_the_gate_of_overlap(tmp_path, monkeypatch):
    right = OverlappedScoring.__call__
    monkeypatch.setattr(
        OverlappedScoring, "__call__", lambda scoring, number, group: right(scoring, -number % 3, group)
    )
    status, report = run(overlap, tmp_path, *OVERLAP)
    assert (status, report["passed"], report["phases"]) == (1, False, {})


def stale_copy(monkeypatch):
    """The inference copy forgets the adapter: rollouts from the wrong weights."""
    right = FusedLinear.refresh

    def without_adapter(fused):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "_lora", lambda: None)
            right(fused)

    monkeypatch.setattr(FusedLinear, "refresh", without_adapter)


def leaking_pack(monkeypatch):
    """Completions of a group see each other, under a dense mask."""

    def causal(segments):
        rows, length = segments.shape
        return torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, length, length)

    monkeypatch.setattr(packing, "_attention", causal)
    monkeypatch.setattr(choose, "why_not_lean", lambda model: "no reason")


def leaking_groups(monkeypatch):
    """Completions see their own future, in attention by groups."""
    right = packing.PackedGroups._completion_bias
    monkeypatch.setattr(packing.PackedGroups, "_completion_bias", lambda *args: torch.zeros_like(right(*args)))


@pytest.mark.parametrize(
    ("program", "fault", "gate"),
    [
        (step, stale_copy, "sampled_logprobs"),
        (step, leaking_groups, "packed_gradient"),
        (rollout, stale_copy, "sampled_logprobs"),
        (update, leaking_pack, "packed_gradient"),
    ],
)
def test_a_planted_fault_fails_its_gate_and_nothing_is_timed(
    program, fault, gate, tiny_model, tmp_path, monkeypatch, capsys
):
    fault(monkeypatch)
    for check in (
        "models.probing.ways.Expected",
        "rollout.decoding_check.DecodingCheck",
    ):
        monkeypatch.setattr(f"lit_debias.{check}.missed_by", lambda *_: None)
    status, report = run(program, tmp_path, "--prompt-tokens", "40", "--quick", *tiny(tiny_model))
    assert status == 1
    assert not report["passed"]
    assert not report["gates"][gate]["passed"]
    assert report["phases"] == {}
    assert f"FAIL {gate}" in capsys.readouterr().out


def test_a_model_of_a_shape_is_kept_for_the_next_call_and_has_text_for_every_token(tmp_path, monkeypatch):
    keep = ("--shape-folder", str(tmp_path / "shapes"))
    assert bench(tmp_path, "--shape", "tiny", "--quantization", "none", *keep)[0] == 0
    assert (tmp_path / "shapes" / "tiny" / "model.safetensors").is_file()
    monkeypatch.delattr("benchmarks.options.save_model")  # the second call must not build it again
    status, report = bench(tmp_path, "--shape", "tiny", "--quantization", "none", *keep)
    assert status == 0
    assert report["name"].startswith(f"tiny, {dtype_of('auto', 'cpu')}, cpu, 1 x 2 x 8".replace("torch.", ""))
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
    clock.seconds |= {"rollout": [1.0, 3.0, 2.0], "update": [4.0, 5.0, 3.0]}
    clock.peak_bytes |= {"rollout": 10, "update": 30}
    for tokens in (24, 24, 12):
        clock.count("rollout", tokens, "tokens/s")
        clock.count("update", 40, "packed tokens/s")
    clock.total("step", ["rollout", "update"], like="rollout")
    found = clock.figures()
    assert {name: phase["rate"] for name, phase in found.items()} == {
        "rollout": 8,  # 24 / 1, 24 / 3, 12 / 2
        "update": 10,  # 40 / 4
        "step": 3,  # 24 / 5, 24 / 8, 12 / 5
    }
    assert found["step"]["seconds"] == {"median": 5.0, "min": 5.0, "max": 8.0, "all": [5.0, 8.0, 5.0]}
    assert (found["step"]["peak_bytes"], found["step"]["unit"]) == (30, "tokens/s")


def test_what_no_part_holds_is_the_rest():
    parts = Parts("cpu")
    parts.seconds |= {"all": 10.0, "a": 3.0, "b": 5.0}
    assert parts.rest("c", whole="all") == {"a": 3.0, "b": 5.0, "c": 2.0}


def test_what_ends_a_completion():
    assert ending_ids(Settings(), [7], 100) == ()
    assert ending_ids(Settings(lengths="natural"), [7], 100) == (7,)
    assert ending_ids(Settings(lengths="natural", shape="tiny", completion_tokens=48), [7], 100) == (0, 24, 48, 72, 96)


def test_long_prompts_are_as_long_with_natural_lengths(tiny_model):
    settings = Settings(model=str(tiny_model), lengths="natural", prompts=10, prompt_tokens=256)
    lengths = [len(ids) for ids in prompt_ids(settings)]
    assert len(lengths) == 10
    assert max(lengths) <= 256
    assert min(lengths) > 256 - 80


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (step, ["--device", "cuda"], "no CUDA device"),
        (step, ["--device", "cpu", "--reward", "Fluencyy"], "did you mean 'Fluency'"),
        (rewards, ["--device", "cpu", "--reward", 'Fluency={"flor": 1}'], "flor"),
        (update, ["--device", "cpu", "--model", "./nowhere"], "no such file or folder"),
        (rollout, ["--device", "cpu", *TINY, "--prompt-tokens", "1"], "--prompt-tokens 1"),
        (rollout, ["--device", "cpu", *TINY, "--arms", "hf_generate", "--lengths", "natural"], "write --lengths fixed"),
    ],
)
def test_mistakes_are_one_line_and_status_2(program, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main(["--out", str(tmp_path / "found.json"), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in line
    assert not (tmp_path / "found.json").exists()


def test_the_commit_is_a_full_hash():
    assert commit() == "unknown" or len(commit().removesuffix("-dirty")) == 40
