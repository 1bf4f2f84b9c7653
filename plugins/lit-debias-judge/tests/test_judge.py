"""LLMJudge against a server that fails, is busy, slow, or answers rubbish; its key, its costs and its memory."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
import torch
from chat_server import ChatServer
from judge_server import SECRET, asked, batch

from lit_debias.errors import UserError
from lit_debias.evaluation.fingerprint import check_judges, describe
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias_judge import FAIRNESS, LLMJudge, client
from lit_debias_judge.client import LONGEST_PAUSE, RequestError, again, wished_pause
from lit_debias_judge.template import fill, parse


def judge(server: ChatServer, **arguments) -> LLMJudge:
    reward = LLMJudge("m", url=server.url, **arguments)
    reward.setup(torch.device("cpu"))
    return reward


# -------------------------------------------------------------------- what is asked, and what is read


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"score": 7}', 0.7),
        (' {"reason": "One {odd} word.", "score": 2.5}\n', 0.25),
        ('{"score": 0}', 0.0),
        ('{"score": 10}', 1.0),
        ('{"score": 10.1}', None),
        ('{"score": -1}', None),
        ('{"score": "7"}', None),
        ('{"score": true}', None),
        ('{"score": null}', None),
        ('{"score": NaN}', None),
        ('{"score": [7]}', None),
        ('{"grade": 7}', None),
        ('[{"score": 7}]', None),
        ('"score"', None),
        ("7", None),
        ("I would say 7 of 10.", None),
        ('```json\n{"score": 7}\n```', None),
        ('{"score": 7', None),
        ('{"score": 7} {"score": 8}', None),
        ("[" * 100_000, None),
        ("", None),
        (None, None),
    ],
)
def test_answers_are_read_strictly(answer, score):
    assert parse(answer, 0, 10) == score


def test_a_scale_by_hand():
    assert [parse(f'{{"score": {number}}}', 1, 5) for number in (1, 2, 5, 0)] == [0.0, 0.25, 1.0, None]


def test_a_template_is_filled_once():
    filled = fill('{prompt}|{completion}|{"score": 1}', {"prompt": "{completion}", "completion": "{prompt} {x}"})
    assert filled == '{completion}|{prompt} {x}|{"score": 1}'


def test_the_request(server):
    options = {"max_tokens": None, "seed": 3}
    assert judge(server, options=options).score(batch("They are kind.")) == [0.7]
    [(key, body)] = server.requests
    assert key == f"Bearer {SECRET}"
    question = FAIRNESS.replace("{prompt}", "Describe a nurse.").replace("{completion}", "They are kind.")
    assert body["messages"] == [{"role": "user", "content": question}]
    del body["messages"]
    assert body == {"model": "m", "temperature": 0, "response_format": {"type": "json_object"}, "seed": 3}


def test_columns_of_the_data(server):
    template = "JSON from 0 to 10: is {completion} like {reference}?"
    reward = judge(server, template=template)
    assert reward.columns == ("reference",)
    reward.score(batch("a", reference=["b"]))
    assert asked(server) == ["JSON from 0 to 10: is a like b?"]
    assert LLMJudge("m").columns == ()


def test_many_at_a_time_in_order_and_never_more(server):
    server.together = threading.Barrier(3)
    names = [f"Completion {number}." for number in range(9)]
    scores = judge(server, concurrency=3, retries=0).score(batch(*names))
    assert scores == [0.7] * 9
    assert server.most == 3
    server.together = threading.Barrier(1)
    server.script = [f'{{"score": {number}}}' for number in range(4)]
    scores = judge(server, concurrency=1).score(batch("a", "b", "c", "d"))
    assert scores == [0.0, 0.1, 0.2, 0.3]


def test_it_works_where_an_event_loop_runs(server):
    async def notebook():
        return judge(server).score(batch("They are kind."))

    assert asyncio.run(notebook()) == [0.7]


# -------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_busy_server_is_asked_again(server, status):
    server.script = [status, status]
    reward = judge(server, retries=2)
    assert reward.score(batch("They are kind.")) == [0.7]
    assert (len(server.requests), reward.usage.retries, reward.usage.failed) == (3, 2, 0)


def test_a_server_says_when_to_ask_again(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(client, "again", lambda error: pauses.append(again(error)) or pauses[-1])
    server.script = [(429, {"Retry-After": "7"}), (503, {}), (429, {"Retry-After": "9999"})]
    assert judge(server, retries=3).score(batch("They are kind.")) == [0.7]
    assert pauses == [7.0, True, LONGEST_PAUSE]  # True: stamina's own growing pause


def test_retry_after_is_seconds_or_a_date():
    soon = datetime.now(timezone.utc) + timedelta(seconds=30)
    assert 20 < wished_pause({"retry-after": format_datetime(soon, usegmt=True)}) <= 30
    assert wished_pause({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert [wished_pause({"retry-after": text}) for text in ("0.5", "-1", "soon", "nan", "")] == [
        0.5,
        0,
        None,
        None,
        None,
    ]
    assert again(RequestError("status 400", 400)) is False
    assert again(ValueError()) is False


def test_what_fails_for_good_has_no_score_and_the_others_have_one(server, caplog):
    server.script = ['{"score": 9}', 500, 500, "no JSON", 400, '{"score": 3}']
    reward = judge(server, retries=1, concurrency=1)
    assert reward.score(batch("a", "b", "c", "d", "e")) == [0.9, None, None, None, 0.3]
    usage = reward.usage
    assert (usage.scored, usage.answers, usage.unreadable, usage.failed, usage.retries) == (2, 3, 1, 2, 1)
    [record] = caplog.records[-1:]
    assert "3 of 5 texts have no score: 1 answers unreadable, 2 requests failed (status 500)" in record.getMessage()
    assert reward.score(batch("b")) == [0.7]  # what failed is asked again


@pytest.mark.parametrize(
    "rubbish", [{"hello": 1}, {"choices": []}, {"choices": None}, {"choices": [{"message": {"content": None}}]}, {}]
)
def test_rubbish_is_no_score(server, rubbish):
    server.script = [rubbish]
    reward = judge(server, concurrency=1)
    assert reward.score(batch("a", "b")) == [None, 0.7]
    assert (reward.usage.unreadable, reward.usage.uncounted, reward.usage.prompt_tokens) == (1, 1, 100)
    assert "without 1 answer that named no tokens" in str(reward.usage)


def test_a_slow_server_is_asked_again_and_given_up(server):
    server.script = ["slow", "slow"]
    reward = judge(server, timeout=0.05, retries=1)
    with pytest.raises(UserError, match=r"no answer of model 'm' at http\S+ \(APITimeoutError\); check that it runs"):
        reward.score(batch("They are kind."))
    assert (reward.usage.retries, reward.usage.failed) == (1, 1)


def test_no_server_stops_a_run_that_never_had_an_answer(server):
    with pytest.raises(UserError, match="APIConnectionError"):
        LLMJudge("m", url="http://127.0.0.1:9/v1", retries=0).score(batch("They are kind."))
    reward = judge(server, retries=0)
    reward.score(batch("a"))
    server.script = [503]
    assert reward.score(batch("b")) == [None]  # an outage later on costs scores, not the run


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_stops_the_run_and_keeps_what_was_paid_for(server, status, tmp_path):
    server.script = ['{"score": 1}', *[status] * 30]
    texts = [f"Number {number}." for number in range(30)]
    reward = judge(server, concurrency=1, cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=rf"LLMJudge: http\S+ refuses model 'm' with status {status}; .*OPENAI_API_KEY"):
        reward.score(batch(*texts))
    assert len(server.requests) == 2
    assert judge(server, cache_dir=str(tmp_path)).score(batch(texts[0])) == [0.1]
    assert len(server.requests) == 2


def test_the_key_is_nowhere(server, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    reward = judge(server, retries=1, concurrency=1)
    server.script = [500, '{"score": 1}', 400, 401]
    reward.score(batch("a", "b"))
    with pytest.raises(UserError) as caught:
        reward.score(batch("c"))
    assert server.requests[0][0] == f"Bearer {SECRET}"
    assert caplog.records
    written = [repr(vars(record)) + record.getMessage() for record in caplog.records]
    seen = [*written, *capfd.readouterr(), str(caught.value), repr(caught.value.__cause__), repr(vars(reward))]
    seen += [repr(reward._client), repr(pickle.dumps(reward)), json.dumps(describe(reward)), str(reward.usage)]
    assert [text for text in seen if SECRET in text] == []


# -------------------------------------------------------------------- what it costs, and what is remembered


def test_costs_by_hand(server, caplog):
    caplog.set_level(logging.INFO, "lit_debias_judge")
    server.script = ['{"score": 1}', "no JSON", 503]
    reward = judge(server, concurrency=1, retries=1, input_price=2.5, output_price=10.0)
    reward.score(batch("a", "b", "c"))
    # three answers of 100 + 20 tokens, one of them unreadable and paid for: 300 x 2.5 + 60 x 10 = 1350 millionths
    assert (reward.usage.prompt_tokens, reward.usage.completion_tokens) == (300, 60)
    assert reward.usage.cost == pytest.approx(0.00135)
    assert "300 + 60 tokens, cost 0.00135" in caplog.text


def test_equal_texts_are_asked_once_and_empty_ones_never(server):
    reward = judge(server)
    assert reward.score(batch("a", "a", " \n", "", "b")) == [0.7, 0.7, None, None, 0.7]
    server.script = ['{"score": 1}'] * 9
    assert reward.score(batch("b", "a")) == [0.7, 0.7]
    assert (len(server.requests), reward.usage.cached, reward.usage.scored) == (2, 2, 5)


def test_scores_on_disk_belong_to_model_template_and_scale(server, tmp_path):
    folder = str(tmp_path / "new" / "folder")
    template = "JSON from 0 to 10, 100 at most: {prompt} {completion}"
    for arguments in ({}, {}, {"scale": (0, 100)}, {"options": {"seed": 1}}, {"template": FAIRNESS}):
        judge(server, **{"template": template, "cache_dir": folder, **arguments}).score(batch("a"))
    assert len(server.requests) == 4  # the second found what the first had kept
    other = LLMJudge("n", template=template, url=server.url, cache_dir=folder)
    other.setup(torch.device("cpu"))
    other.score(batch("a"))
    assert len(server.requests) == 5


def test_an_unreadable_answer_is_not_remembered(server, tmp_path):
    server.script = ["no JSON"]
    assert judge(server, cache_dir=str(tmp_path)).score(batch("a")) == [None]
    assert judge(server, cache_dir=str(tmp_path)).score(batch("a")) == [0.7]


def test_what_makes_it_fast_does_not_make_another_judge(server, tmp_path):
    reward = judge(server)
    reward.score(batch("a"))
    twin = judge(server, concurrency=1, timeout=5, input_price=1, cache_dir=str(tmp_path), api_key_env="OTHER")
    with pytest.raises(UserError, match="same class and settings"):
        check_judges({"judge": twin}, {"reward": reward})
    check_judges({"judge": judge(server, options={"seed": 1})}, {"reward": reward})


# -------------------------------------------------------------------- a user's mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "model is empty"),
        ({"url": "localhost:8000"}, "LLMJudge: url is no plain address"),
        ({"url": "http://me:pass@host/v1"}, "no plain address"),
        ({"url": "http://host/v1?key=pass"}, "no plain address"),
        ({"api_key_env": SECRET}, "api_key_env is no name"),
        ({"api_key_env": "sk_pass"}, "api_key_env is no name"),
        ({"options": {"api_key": SECRET}}, "LLMJudge.options.api_key holds a key or password"),
        ({"options": {"headers": {"Authorization": SECRET}}}, "options.headers.Authorization holds a key"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0.0}, "timeout=0.0"),
        ({"input_price": -1.0}, "input_price=-1.0"),
        ({"output_price": float("nan")}, "output_price=nan"),
        ({"scale": (5, 5)}, r"scale=\[5, 5\]; write two finite numbers"),
        ({"scale": (1, 5), "template": "JSON 1 {completion}"}, "does not say 5"),
        ({"template": "JSON 0 10 {prompt}"}, "has no {completion}"),
        ({"template": "0 10 {completion}"}, "asks for no JSON"),
        ({"options": {"messages": []}}, "options has 'messages'"),
        ({"cache_dir": __file__}, "is no folder"),
    ],
)
def test_mistakes_are_found_when_it_is_made(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        LLMJudge(**{"model": "m", **arguments})
    assert SECRET not in str(caught.value)
    assert "pass" not in str(caught.value).replace("password", "")


def test_openai_wants_a_key_and_a_local_server_does_not(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="the variable that api_key_env names is empty; export the key"):
        LLMJudge("m")
    assert judge(server).score(batch("They are kind.")) == [0.7]
    assert server.requests[0][0] == "Bearer none"


def test_is_found_through_its_entry_point():
    found = {component.name: component.distribution for component in components(get_plugin_manager())}
    assert found["LLMJudge"] == "lit-debias-judge"
