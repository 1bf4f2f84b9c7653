"""The benchmark of sampling while the policy is trained: figures by hand, and both kinds of step on a stand-in."""

import json
import re
import sys

import pytest
from benchmarks import asynchronous
from benchmarks.asynchronous import IN_TURN, OVERLAPPED, PARTS, Either, MeasuredAhead
from benchmarks.clock import spread
from benchmarks.measurement import measured
from benchmarks.settings import Settings
from vllm_server import serving


def phases(in_turn: list[float], overlapped: list[float]) -> dict:
    return {arm: {"seconds": spread(each)} for arm, each in {IN_TURN: in_turn, OVERLAPPED: overlapped}.items()}


def parts(sampling: float, update: float) -> dict:
    one = {"rollout_time": spread([sampling]), "update": spread([update]), "rollout_wait": spread([0.0])}
    return {IN_TURN: one, OVERLAPPED: one}


def test_at_best_the_shorter_part_takes_no_time():
    found = asynchronous.summary(phases([11.0, 11.0], [8.0, 8.0]), parts(sampling=6.0, update=4.0))
    assert found["at_best"] == 7.0
    assert found["of_the_gain"] == pytest.approx(0.75)
    assert found["times_as_fast"] == pytest.approx(11 / 8)


def test_a_step_that_is_not_faster_is_a_miss(tmp_path, capsys):
    for overlapped, code in ((10.0, 0), (12.0, 1)):
        known = phases([11.0], [overlapped]), parts(6.0, 4.0)
        found = {"settings": {"device": "cpu"}, "name": "x", "phases": known[0], "parts": known[1]}
        assert asynchronous.publish({**found, "summary": asynchronous.summary(*known)}, tmp_path / "x.json") == code
        assert json.loads((tmp_path / "x.json").read_text())["passed"] is (code == 0)
    assert "MISS 0.92 times as fast; 7.00 s at best" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("python", "message"),
    [("/nowhere/python", "no such file"), (sys.executable, "vLLM's server does not start: .*No module named")],
)
def test_without_vllm_it_is_one_line(tiny_model, tmp_path, capsys, python, message, monkeypatch):
    monkeypatch.setattr(asynchronous, "write_base", lambda model, folder, dtype: None)
    monkeypatch.setattr(asynchronous, "OPTIONS", ())
    options = ["--model", str(tiny_model), "--vllm-python", python, "--out", str(tmp_path / "x.json")]
    assert asynchronous.main(options) == 2
    assert re.match(f"error: --vllm-python {python}: {message}", capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_both_kinds_of_step_are_timed_with_their_parts(tiny_model, tmp_path):
    settings = Settings(str(tiny_model), quantization="none", dtype="float32", prompt_tokens=40).quick()
    with serving(tiny_model) as server:
        engine = Either([server.url], settings.completion_tokens, folder=str(tmp_path / "weights"))
        found = measured(MeasuredAhead(settings, engine))
    for arm in (IN_TURN, OVERLAPPED):
        assert len(found["phases"][arm]["seconds"]["all"]) == settings.repeats
        assert {name: len(each) for name, each in found["parts"][arm].items()} == dict.fromkeys(PARTS, settings.repeats)
        assert all(value > 0 for value in found["parts"][arm]["update"])
    waited = {arm: found["parts"][arm]["rollout_wait"][0] for arm in (IN_TURN, OVERLAPPED)}
    assert waited[IN_TURN] < found["parts"][IN_TURN]["rollout_time"][0]
