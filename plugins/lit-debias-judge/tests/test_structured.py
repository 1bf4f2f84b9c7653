"""StructuredJudge: what of an answer is valid, dropped and remembered; and `lit-debias explain` with it."""

from __future__ import annotations

import json

import pytest
import torch
from judge_server import asked, batch

from lit_debias.cli.main import main
from lit_debias.errors import UserError
from lit_debias.plugins import Explanation
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.support.hashing import sha256
from lit_debias_judge import EXPLANATION, TYPES, StructuredJudge
from lit_debias_judge.structured import verdict

FAIR = {"biased": False, "types": [], "groups": ["nurses"], "keywords": [], "reason": "No claim.", "suggestion": ""}
BIASED = {
    "biased": True,
    "types": ["gender", "occupation"],
    "groups": ["nurses"],
    "keywords": ["ALL", "always", "gentle souls"],
    "reason": "It speaks of all.",
    "suggestion": "Many nurses are kind.",
}
TEXT = "All nurses are Gentle Souls."


def judge(server, **arguments) -> StructuredJudge:
    reward = StructuredJudge("m", url=server.url, concurrency=1, **arguments)
    reward.setup(torch.device("cpu"))
    return reward


# -------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    "changes",
    [
        {"biased": "true"},
        {"biased": 1},
        {"biased": None},
        {"types": "gender"},
        {"types": ["sexism"]},
        {"types": ["Gender"]},
        {"types": ["gender", "gender"]},
        {"types": [["gender"]]},
        {"groups": None},
        {"groups": [3]},
        {"keywords": "All"},
        {"keywords": [None]},
        {"reason": 7},
        {"suggestion": None},
        {"biased": False},  # and yet with types
        {"confidence": 0.9},
    ],
)
def test_anything_invalid_is_no_answer(changes):
    assert verdict(json.dumps({**BIASED, **changes}), TYPES) is None


@pytest.mark.parametrize("key", list(BIASED))
def test_every_key_is_needed(key):
    assert verdict(json.dumps({name: value for name, value in BIASED.items() if name != key}), TYPES) is None


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        "It is biased.",
        f"```json\n{json.dumps(BIASED)}\n```",
        json.dumps([BIASED]),
        json.dumps(BIASED)[:-1],
        json.dumps(BIASED) * 2,
        json.dumps(BIASED).replace('"biased": true', '"biased": false, "biased": true'),
        "[" * 100_000,
    ],
)
def test_what_is_not_one_object_is_no_answer(answer):
    assert verdict(answer, TYPES) is None


def test_valid_answers_are_read_as_they_are():
    assert verdict(json.dumps(BIASED), TYPES) == BIASED
    assert verdict(f" {json.dumps(FAIR)}\n", TYPES) == FAIR
    assert verdict(json.dumps({**BIASED, "types": []}), TYPES) == {**BIASED, "types": []}  # of no type that is named


# -------------------------------------------------------------------- the reward


def test_the_score_is_1_minus_biased_and_none_where_nothing_is_valid(server):
    server.script = [json.dumps(BIASED), json.dumps(FAIR), json.dumps({**FAIR, "types": ["age"]}), 400]
    reward = judge(server)
    assert reward.score(batch("a", "b", "c", "d", " ")) == [0.0, 1.0, None, None, None]
    usage = reward.usage
    assert (usage.scored, usage.answers, usage.unreadable, usage.failed) == (2, 3, 1, 1)


def test_keywords_that_the_text_does_not_hold_are_dropped_and_counted(server, caplog):
    caplog.set_level("INFO", "lit_debias_judge")
    server.script = [json.dumps(BIASED)]
    reward = judge(server)
    [found] = reward.explain(batch(TEXT))
    assert found == Explanation(
        True,
        ("gender", "occupation"),
        ("nurses",),
        ("ALL", "gentle souls"),
        "It speaks of all.",
        "Many nurses are kind.",
        ("always",),
    )
    assert reward.usage.dropped == 1
    assert "1 keyword dropped" in caplog.text


def test_what_is_asked(server):
    server.script = [json.dumps(FAIR)]
    judge(server, types=("gender", "age")).score(batch("They are kind."))
    [question] = asked(server)
    whole = EXPLANATION.replace("{prompt}", "Describe a nurse.").replace("{completion}", "They are kind.")
    assert question == whole.replace("{types}", '"gender", "age"')
    body = server.requests[0][1]
    assert (body["max_tokens"], body["response_format"]) == (400, {"type": "json_object"})


def test_explanations_on_disk_belong_to_model_template_and_types(server, tmp_path):
    server.script = [json.dumps(BIASED), "rubbish", json.dumps(FAIR), json.dumps(FAIR)]
    folder = str(tmp_path)
    first = judge(server, cache_dir=folder)
    found = first.explain(batch(TEXT, "b"))
    assert found[1] is None
    again = judge(server, cache_dir=folder)
    assert again.explain(batch(TEXT))[0] == found[0]
    assert again.score(batch(TEXT)) == [0.0]
    assert (len(server.requests), again.usage.answers) == (2, 0)
    assert again.score(batch("b")) == [1.0]  # what was invalid is asked again
    assert judge(server, cache_dir=folder, types=TYPES[:2]).score(batch(TEXT)) == [1.0]
    assert len(server.requests) == 4


def test_who_judges(server):
    reward = judge(server)
    assert reward.about() == {"judge": "StructuredJudge m", "template_sha256": sha256([reward.template])}
    assert reward.about() != judge(server, types=("age",)).about()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"types": ()}, "types=\\(\\); write a list of different names"),
        ({"types": ("age", "age")}, "write a list of different names"),
        ({"types": ("age", " ")}, "write a list of different names"),
        ({"template": "JSON {completion}", "types": ("age",)}, "does not name the type 'age'; write {types}"),
        ({"template": "{types} {completion}"}, "asks for no JSON"),
        ({"template": "JSON {types}"}, "has no {completion}"),
        ({"model": ""}, "StructuredJudge: model is empty"),
    ],
)
def test_mistakes_are_found_when_it_is_made(arguments, message):
    with pytest.raises(UserError, match=message):
        StructuredJudge(**{"model": "m", **arguments})


def test_is_found_through_its_entry_point():
    found = {component.name: component.distribution for component in components(get_plugin_manager())}
    assert found["StructuredJudge"] == "lit-debias-judge"


# -------------------------------------------------------------------- the command


def test_explain_a_file(server, tmp_path, capsys):
    file = tmp_path / "responses.jsonl"
    rows = [{"prompt": "Nurses?", "response": TEXT}, {"prompt": "Who?", "response": "Anybody."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.script = [json.dumps(BIASED), "rubbish"]
    options = ["--judge.model", "m", "--judge.url", server.url, "--judge.concurrency", "1"]
    assert main(["explain", str(file), "--judge", "StructuredJudge", *options]) == 0
    first, second = map(json.loads, (tmp_path / "explanations.jsonl").read_text().splitlines())
    assert (first["prompt"], first["response"], first["judge"]) == ("Nurses?", TEXT, "StructuredJudge m")
    assert first["template_sha256"] == StructuredJudge("m", url=server.url).about()["template_sha256"]
    assert first["explanation"] == {
        **BIASED,
        "keywords": ["ALL", "gentle souls"],
        "dropped_keywords": ["always"],
    }
    assert second["explanation"] is None
    shown = " ".join(capsys.readouterr().out.split())
    assert "biased 1.00, n = 1" in shown
    assert "type: gender 1.00, n = 1" in shown
    assert "without a valid explanation 0.50, n = 2" in shown
