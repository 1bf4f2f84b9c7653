"""`lit-debias explain`: an evaluation or a file goes in, a file of explanations and a table come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_material import record, write_evaluation

from lit_debias.cli.explain import explain
from lit_debias.cli.main import main
from lit_debias.errors import UserError
from lit_debias.evaluation.explanations import by_arm, load
from lit_debias.evaluation.publish import next_steps
from lit_debias.evaluation.settings import EvaluationSettings
from lit_debias.plugins import ExplainingReward, Explanation, Reward


class Spots(ExplainingReward):
    """Finds a text biased where it says "all"; where it says "huh" there is no explanation, and "stop" ends it."""

    def __init__(self, columns: tuple[str, ...] = ()):
        self.columns, self.asked = columns, 0

    def explain(self, batch):
        self.asked += len(batch)
        if "stop" in batch.completions:
            raise UserError("the server is gone")
        found = [Explanation("all" in text, ("age",) if "all" in text else ()) for text in batch.completions]
        return [None if "huh" in text else one for text, one in zip(batch.completions, found, strict=True)]

    def about(self):
        return {"judge": "Spots", "template_sha256": "0123456789abcdef"}


class Fixed(Reward):
    """Another judge, with one score for all."""

    def __init__(self, value: float = 0.2):
        self.value = value

    def score(self, batch):
        return [self.value] * len(batch)


def evaluation(folder):
    arms = {
        arm: [record(i, side, 0.2, text) for i in range(3) for side, text in enumerate(texts)]
        for arm, texts in {"before": ("all of them", "some of them"), "after": ("some", "huh")}.items()
    }
    write_evaluation(folder / "deep" / "evaluation", arms)
    return folder


def test_the_arms_of_an_evaluation(tmp_path, capsys):
    explain(str(evaluation(tmp_path)), Spots(), {"fixed": Fixed()}, bootstrap=20)
    arms = by_arm(load(tmp_path / "deep" / "evaluation" / "explanations.jsonl"))
    assert {name: len(rows) for name, rows in arms.items()} == {"before": 6, "after": 6}
    first = arms["before"][0]
    assert (first.prompt, first.response, first.cluster) == ("What are riders like, 0?", "all of them", "twins t0")
    assert first.scores == {"judge": 0.2, "fixed": pytest.approx(0.2)}
    assert [one.explanation for one in arms["after"][:2]] == [Explanation(False), None]
    shown = " ".join(capsys.readouterr().out.split())
    assert "biased 0.50, n = 6 0.00, n = 3" in shown
    assert "without a valid explanation 0.00, n = 6 0.50, n = 6" in shown
    assert "Cohen's kappa with judge" in shown


def test_an_evaluation_names_the_command_where_a_judge_can_explain():
    settings = EvaluationSettings("m", "data", "my runs", judges={"fixed": Fixed(), "spots": Spots()})
    assert next_steps(settings) == [
        "next: lit-debias report 'my runs'",
        "judge 'spots' also says why: lit-debias explain 'my runs' --judge Spots ...",
    ]


def test_a_limit_is_of_each_arm(tmp_path):
    judge = Spots()
    explain(str(evaluation(tmp_path)), judge, limit=2, bootstrap=5)
    assert judge.asked == 4


def test_columns_of_a_file(tmp_path, capsys):
    file = tmp_path / "answers.csv"
    file.write_text("question,answer,age\n2,all of them,30\n,007,31\n")
    explain(str(file), Spots(("age",)), columns={"prompt": "question", "response": "answer"}, bootstrap=5)
    rows = load(tmp_path / "explanations.jsonl")
    assert [(row.prompt, row.response, row.explanation.biased) for row in rows] == [
        ("2", "all of them", True),
        ("", "007", False),
    ]


def test_what_was_answered_before_a_judge_stopped_is_kept(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"response": "stop" if n == 70 else "all"}) + "\n" for n in range(80)))
    (tmp_path / "mine.jsonl").write_text("of another day")
    with pytest.raises(UserError, match="the server is gone"):
        explain(str(file), Spots(), out=tmp_path / "mine.jsonl")
    assert len(load(tmp_path / "mine.partial.jsonl")) == 64
    assert (tmp_path / "mine.jsonl").read_text() == "of another day"


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ('{"text": "x"}', {}, "has no column 'response'; name it: --columns '{response: COLUMN}'"),
        ('{"response": 3}', {}, "row 1: 'response' is 3; write a text"),
        ('{"response": "x", "prompt": null}\n{"response": "y", "prompt": "p"}', {}, "row 1: 'prompt' is None"),
        ('{"response": "x"}', {"judge": Spots(("age",))}, "judge 'judge' needs the data column 'age'"),
        ('{"response": "x"}', {"judges": {"far": Fixed(2.0)}}, "judge 'far' returned 2; a judge must score from 0"),
        ('{"response": "x"}', {"limit": 0}, "limit=0"),
        ('{"response": "x"}', {"out": Path("/tmp")}, "--out /tmp is a folder; write the name of a file"),
        ('{"response": "x"}', {"columns": {"response": "answer"}}, "has no column 'answer' (wanted as 'response')"),
    ],
)
def test_mistakes(content, more, message, tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text(content + "\n")
    with pytest.raises(UserError) as caught:
        explain(str(file), **{"judge": Spots(), **more})
    assert message in str(caught.value)
    assert not (tmp_path / "explanations.jsonl").exists()


def test_a_folder_without_an_evaluation_and_a_judge_that_does_not_explain(tmp_path, capsys):
    with pytest.raises(UserError, match="there is no evaluation in it; name a folder of `lit-debias evaluate`"):
        explain(str(tmp_path), Spots())
    assert main(["explain", str(tmp_path), "--judge", "Variety"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "judge" in shown


class Broken(Spots):
    """Returns something else than explanations."""

    def explain(self, batch):
        return [0.5] * len(batch)


def test_a_judge_that_returns_something_else_is_one_line(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"response": "x"}\n')
    with pytest.raises(
        UserError, match="'Broken': explain returned 1 value for 1 completion; return an Explanation or"
    ):
        explain(str(file), Broken())
