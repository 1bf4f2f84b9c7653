"""Benchmarks of one's own in an evaluation and beside training: by name, with options, kept, left out with a note."""

from __future__ import annotations

import json

import pytest
import yaml
from evaluation_runs import adapter, data, run
from numbers_benchmark import Numbers, install

from lit_debias.benchmark import CannotAskError
from lit_debias.benchmark.measuring import samples
from lit_debias.cli.main import main
from lit_debias.evaluation.callback import EvaluationCallback
from lit_debias.evaluation.duration import how_long, in_words
from lit_debias.rewards.suite import RewardSuite

__all__ = ["adapter", "data"]
ASKED: list[str] = []


class Counted(Numbers):
    """Numbers, which remember that they were asked."""

    name = "counted"

    def ask(self, model, items):
        ASKED.append(self.name)
        return super().ask(model, items)


class Choosy(Numbers):
    """Asks with a system message."""

    name = "choosy"

    def ask(self, model, items):
        if model.system:
            raise CannotAskError("the model has a message of its own")
        return super().ask(model, items)


def figures(results, arm="before"):
    return {name: one["value"] for name, one in results["arms"][arm]["measures"].items() if "/" in name}


def evaluate(tiny_model, data, out, **options):
    ASKED.clear()
    prose = out / "prose.txt"
    prose.write_text("The lift was out of order.")
    return run(tiny_model, data, out, **{"system_prompt": None, "prose": str(prose), **options})


def test_options_and_items_decide_whether_figures_are_kept(tiny_model, data, tmp_path):
    results = evaluate(tiny_model, data, tmp_path, benchmarks=[Counted(5)])
    assert results["arms"]["before"]["measures"]["counted/mean"]["value"] == 2
    assert results["measures"]["counted/mean"]["label"] == "Numbers: mean"
    assert (len(ASKED), ASKED[0]) == (1, "counted")
    evaluate(tiny_model, data, tmp_path, benchmarks=[Counted(5)])
    assert ASKED == []
    evaluate(tiny_model, data, tmp_path, benchmarks=[Counted(6)])
    assert len(ASKED) == 1


def test_another_benchmark_costs_none_of_the_kept_figures(tiny_model, data, tmp_path):
    evaluate(tiny_model, data, tmp_path, benchmarks=[Counted()])

    class Failing(Numbers):
        name = "failing"

        def score(self, items, answers, bootstrap):
            raise ValueError("no luck")

    class Other(Counted):
        name = "other"

    with pytest.raises(Exception, match="benchmark 'failing': score"):
        evaluate(tiny_model, data, tmp_path, benchmarks=[Counted(), Other(), Failing()])
    assert ASKED == ["other"]
    results = evaluate(tiny_model, data, tmp_path, benchmarks=[Other(), Counted()])
    assert ASKED == []
    assert [name for name in figures(results) if "/mean" in name] == ["other/mean", "counted/mean"]


def test_changed_items_are_asked_anew(tiny_model, data, tmp_path, monkeypatch):
    evaluate(tiny_model, data, tmp_path, benchmarks=[Counted()])
    read = Counted.read
    monkeypatch.setattr(Counted, "read", lambda self, folder: read(self, folder)[1:])
    results = evaluate(tiny_model, data, tmp_path, benchmarks=[Counted()])
    assert ASKED == ["counted"]
    assert results["arms"]["before"]["measures"]["counted/mean"]["value"] == 2


def test_who_cannot_be_asked_is_left_out_with_a_note(tiny_model, data, tmp_path):
    for _ in range(2):  # kept, too
        results = evaluate(tiny_model, data, tmp_path, benchmarks=[Choosy()], system_prompt="Be fair.")
        assert "choosy/mean" in results["arms"]["before"]["measures"]
        assert "choosy/mean" not in results["arms"]["prompt_only"]["measures"]
        assert "prompt_only: Numbers was not measured: the model has a message of its own" in results["notes"]


def test_the_command_takes_names_and_benchmarks_with_options(tiny_model, data, tmp_path, capsys):
    install(Numbers, Counted)
    file = tmp_path / "evaluate.yaml"
    options = {"model": str(tiny_model), "data": str(data), "out": str(tmp_path / "out"), "system_prompt": None}
    options |= {"quantization": "none", "dtype": "float32", "limit": 1, "max_new_tokens": 2, "bootstrap": 5}

    def asked(benchmarks, *more):
        file.write_text(yaml.safe_dump({**options, "benchmarks": benchmarks}))
        code = main(["evaluate", "-c", str(file), *more])
        return code if code else json.loads((tmp_path / "out" / "results.json").read_text())

    results = asked([{"class_path": "Numbers", "init_args": {"count": 9}}, "counted"])
    assert results["arms"]["before"]["measures"]["numbers/mean"]["value"] == 4
    assert results["arms"]["before"]["measures"]["counted/mean"]["value"] == 1.5
    assert "benchmarks: about 1 s (numbers 1 s), by the time that 8 items of each take" in capsys.readouterr().out
    results = asked("counted", "--benchmarks", "all-offline", "--benchmark_limit", "3")
    measures = set(results["arms"]["before"]["measures"])
    assert {
        "numbers/mean",
        "counted/mean",
        "winoqueer/score",
        "sesgo/accuracy_ambiguous",
        "association/bias_soft",
        "skew/min_skew",
    } <= measures
    capsys.readouterr()
    for wrong, message in (
        ("numbrs", "there is no 'numbrs'; did you mean 'numbers'?"),
        (["numbrs"], "there is no 'numbrs'; did you mean 'numbers'?"),
        ([{"class_path": "Numbrs"}], "did you mean 'Numbers'?"),
        ([{"class_path": "Numbers", "init_args": {"cont": 1}}], "did you mean 'count'?"),
        ([{"class_path": "Numbers", "init_args": {"count": "many"}}], "'many' is not a whole number"),
    ):
        assert asked(wrong) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1


def test_how_long_is_said_of_what_is_worth_it():
    def said(*benchmarks, arms=1):
        return list(how_long(None, samples(benchmarks, "", None, 0), RewardSuite({}), arms))

    assert said(Numbers(8)) == []
    assert said(Numbers(9), arms=3) == [
        "benchmarks: about 1 s, as long for each of 3 arms (numbers 1 s), by the time that 8 items of each take"
    ]
    assert [in_words(seconds) for seconds in (0.1, 60, 89, 150, 7000)] == ["1 s", "60 s", "89 s", "2 min", "117 min"]


def test_beside_training():
    callback = EvaluationCallback(benchmarks=[Numbers(3)])
    assert callback.choice.names == ("numbers",)
    assert [benchmark.count for benchmark in callback.choice.benchmarks] == [3]
    install(Numbers)
    callback = EvaluationCallback(["numbers/mean", "crows_pairs"], benchmarks=[Numbers(3)])
    assert callback.choice.names == ("numbers/mean", "crows_pairs")
    assert callback.choice.benchmarks[0].count == 3
    assert callback.choice.benchmarks[1:] == ["crows_pairs"]
    assert "numbers" in EvaluationCallback(benchmarks="all-offline").choice.names
