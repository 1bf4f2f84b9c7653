"""The policy on architectures that are unlike Llama: right, or refused in one line; and the sweep that says so."""

import json
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from benchmarks import architectures
from benchmarks.architecture_checks import check
from benchmarks.tiny_architectures import architectures as every_architecture

from lit_debias.errors import UserError
from lit_debias.policy.recipe import QLoRAPolicy

RIGHT = {"right", "slower but right"}
REFUSED = {"refused"}
RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "architectures.json"
KNOWN = {one.name: one for one in every_architecture()}


def elsewhere(name, expected):
    """Return a case whose peculiarity test_ways.py or test_attention_windows.py tries too, and sooner."""
    return pytest.param(name, expected, marks=pytest.mark.processes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"right"}),
        ("opt", {"right"}),
        ("llama, dynamic NTK", RIGHT | REFUSED),  # rotates old keys anew
        elsewhere("mistral", RIGHT),  # a window in every layer
        elsewhere("qwen2, window", RIGHT),  # a window in some layers
        elsewhere("gemma3_text", RIGHT),
        ("gemma3n_text", RIGHT),  # where the embedding is zero, as that of padding is, its gradient is not a number
        elsewhere("gpt_neo", RIGHT),  # a window in its own attention
        elsewhere("bloom", RIGHT),  # ALiBi, and only plain masks
        elsewhere("mpt", RIGHT),  # ALiBi, in silence
        ("gpt2", RIGHT),  # linear layers of its own kind
        ("mixtral", RIGHT),  # experts without linear layers
        ("laguna", RIGHT),  # PEFT reads the names of its shared experts otherwise
        ("axk2, all within the top k", RIGHT),  # layers that only choose keys
        elsewhere("phimoe", RIGHT | REFUSED),  # chooses experts at random in train mode
        elsewhere("lfm2", RIGHT),  # convolutions from one completion into the next
        ("falcon_h1", RIGHT),  # a recurrent state, and layers that PEFT must not touch
        elsewhere("mamba, targets", RIGHT),  # nothing but a recurrent state
        elsewhere("cohere", RIGHT | REFUSED),  # scaled logits
        elsewhere("gemma2", RIGHT | REFUSED),  # capped logits
        ("bert", REFUSED),  # sees what follows
    ],
)
def test_an_architecture_is_right_or_refused(name, expected):
    finding = check(KNOWN[name])
    assert finding.verdict in expected, finding


# ---------------------------------------------------------------- the sweep can fail


def shifted(method):
    return lambda *args, **kwargs: method(*args, **kwargs) + 0.01


def drifting(method):
    return lambda *args, **kwargs: method(*args, **kwargs) + 1e-5 * torch.rand(())


def detached(method):
    def forward(*args, **kwargs):
        result = method(*args, **kwargs)
        return result._replace(logprobs=result.logprobs + 0.01 * (result.logprobs - result.logprobs.detach()))

    return forward


def raising(error):
    def raises(*args, **kwargs):
        raise error

    return lambda method: raises


@pytest.mark.parametrize(
    ("method", "damage", "verdict", "reason"),
    [
        ("logprobs", shifted, "WRONG", "update 0.01, reference 0.01"),
        ("logprobs", drifting, "WRONG", "update twice"),
        ("logprobs", lambda method: lambda *args, **kwargs: method(*args, **kwargs) * torch.nan, "WRONG", "update nan"),
        ("forward", detached, "WRONG", "gradient 0.01"),
        ("forward", raising(ValueError("no such axis")), "TRACEBACK", "ValueError: no such axis; "),
        ("load", raising(UserError("write another model")), "refused", "write another model"),
        ("load", raising(UserError("first\nsecond")), "WRONG", "a refusal of several lines"),
    ],
)
def test_a_damaged_policy_is_found_out(method, damage, verdict, reason, monkeypatch):
    load = QLoRAPolicy.load

    def load_and_damage(policy, device):
        if method == "load":
            damage(load)()
        loaded = load(policy, device)  # whatever it compares, it sees the undamaged policy
        setattr(loaded, method, damage(getattr(loaded, method)))
        return loaded

    monkeypatch.setattr(QLoRAPolicy, "load", load_and_damage)
    finding = check(KNOWN["llama"])
    assert (finding.verdict, reason in finding.reason) == (verdict, True), finding
    assert finding.passed == (verdict == "refused")


def test_what_cannot_be_built_is_told():
    finding = check(replace(KNOWN["llama"], options={"num_attention_heads": 5}))
    assert finding.verdict == "not built"
    assert "5" in finding.reason


def findings(verdicts):
    def examined(chosen, workers):
        for one in reversed(chosen):  # processes end in any order
            figures = {"update": 2.0, "gradient": 3.0}
            yield architectures.Finding(one.name, one.model_type, verdicts[one.name], "packed", "a reason", figures)

    return examined


@pytest.mark.parametrize(("worst", "status"), [("slower but right", 0), ("WRONG", 1), ("TRACEBACK", 1)])
def test_the_report_of_a_sweep(worst, status, tmp_path, monkeypatch, capsys):
    verdicts = {"mistral": worst, "mistral, no window": "right", "musicgen": "not built"}
    monkeypatch.setattr(architectures, "examined", findings(verdicts))
    out = tmp_path / "found.json"
    assert architectures.main(["--out", str(out), "--only", "musicgen", "mistral"]) == status
    report = json.loads(out.read_text())
    assert {one["name"]: one["verdict"] for one in report["architectures"]} == verdicts
    assert (report["passed"], report["verdicts"]["not built"]) == (status == 0, 1)
    assert report["versions"]["transformers"] == transformers.__version__
    assert "slower but right: " in capsys.readouterr().out


def test_an_unknown_architecture_is_a_mistake_of_the_user(capsys):
    assert architectures.main(["--only", "mistrall"]) == 2
    assert "did you mean 'mistral'?" in capsys.readouterr().err


def test_a_process_that_dies_takes_no_other_finding_along(monkeypatch):
    def pooled(chosen, workers):
        for one in chosen:
            if one.name == "bloom":
                raise BrokenProcessPool
            yield architectures.Finding(one.name, one.model_type, "right")

    monkeypatch.setattr(architectures, "pooled", pooled)
    chosen = architectures.choose(["llama", "bloom", "opt"])
    found = {one.name: one.verdict for one in architectures.examined(chosen, 2)}
    assert found.pop("bloom") == "TRACEBACK"
    assert found.keys() == {one.name for one in chosen} - {"bloom"}
    assert set(found.values()) == {"right"}


# ---------------------------------------------------------------- the committed result


def test_the_committed_result_is_of_every_architecture():
    committed = json.loads(RESULT.read_text())
    if committed["versions"]["transformers"] != transformers.__version__:
        pytest.skip("another version of transformers has other architectures")
    assert [one["name"] for one in committed["architectures"]] == list(KNOWN)
    wrong = [one["name"] for one in committed["architectures"] if one["verdict"] in {"WRONG", "TRACEBACK"}]
    assert wrong == []
