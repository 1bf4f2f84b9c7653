"""VLLMEngine against a server that samples from a plain Hugging Face model: agreement, versions, refusals."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from support import loaded, perturb, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_server import serving

from lit_debias.plugins import PromptBatch, UserError
from lit_debias_vllm import VLLMEngine, answers, engine, sampling
from lit_debias_vllm.__main__ import main as write_base
from lit_debias_vllm.sampling import Sampling, seed_of
from lit_debias_vllm.server import Abilities, ServerError
from lit_debias_vllm.sync import choose_way

PROMPTS = PromptBatch(["people from the north are", "the rider", "nurses are"])
WAYS = ("adapter", "merged")


def engine_at(*servers, tmp_path, **options) -> VLLMEngine:
    folder = str(tmp_path / "weights")
    defaults = {"max_new_tokens": 6, "patience": 0.01, "timeout": 60.0, "folder": folder, "sync": "adapter"}
    return VLLMEngine([server.url for server in servers], **{**defaults, **options})


def move(policy) -> None:
    """Do what an optimiser step does."""
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)


# ---------------------------------------------------------------- what a rollout holds


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_policy(policy, server, tmp_path, way, temperature):
    engine = engine_at(server, tmp_path=tmp_path, sync=way, temperature=temperature)
    for _ in range(2):
        rollout = engine.generate(policy, PROMPTS, 4, seed=3)
        torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout, temperature), atol=1e-4, rtol=1e-4)
        move(policy)  # the second rollout is of another policy


def test_a_rollout_is_one_of_the_contract(policy, server, tmp_path):
    told = {}
    rollout = engine_at(server, tmp_path=tmp_path).generate(policy, PROMPTS, 4, seed=3, on_group=told.__setitem__)
    ids, mask = policy.encode_prompts(PROMPTS.asked)
    assert torch.equal(rollout.prompt_ids, ids)
    assert torch.equal(rollout.prompt_mask, mask)
    assert rollout.completion_ids.shape[:2] == (3, 4)
    assert rollout.texts == policy.decode(rollout.completion_ids, rollout.completion_mask)
    assert rollout.logprobs[~rollout.completion_mask].eq(0).all()
    assert torch.equal(rollout.truncated, rollout.lengths.eq(6) & ~torch.isin(last_of(rollout), torch.tensor([2])))
    assert rollout.truncated.any()
    assert sorted(told) == [0, 1, 2]
    for number, group in told.items():
        assert group.texts == rollout.group(number).texts
        assert torch.equal(group.lengths, rollout.group(number).lengths)


def last_of(rollout) -> torch.Tensor:
    return rollout.completion_ids.gather(-1, rollout.lengths[..., None] - 1)[..., 0]


def test_every_end_of_the_policy_ends_a_completion(policy, server, tmp_path):
    engine = engine_at(server, tmp_path=tmp_path, max_new_tokens=8)
    free = engine.generate(policy, PROMPTS, 4, seed=3)
    chosen = int(free.completion_ids[1, 2, 4])
    policy.eos_token_ids = (2, chosen)
    rollout = engine.generate(policy, PROMPTS, 4, seed=3)
    assert server.asked("/v1/completions")[-1]["stop_token_ids"] == [2, chosen]
    assert int(rollout.lengths[1, 2]) <= 5
    assert int(last_of(rollout)[1, 2]) == chosen
    assert not rollout.truncated[1, 2]


def test_greedy_takes_the_most_probable_tokens_once(policy, server, tmp_path):
    rollout = engine_at(server, tmp_path=tmp_path).generate(policy, PROMPTS, 2, seed=0, greedy=True)
    assert torch.equal(rollout.completion_ids[:, 0], rollout.completion_ids[:, 1])
    torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)
    assert {body["n"] for body in server.asked("/v1/completions")[-3:]} == {1}


def test_completions_follow_from_the_seed_and_the_prompts_place_alone(policy, server, tmp_path, monkeypatch):
    whole = engine_at(server, tmp_path=tmp_path).generate(policy, PROMPTS[:2], 4, seed=3)
    for rank in (0, 1):  # each of two processes has one of them
        monkeypatch.setattr(engine, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(engine, "world_size", lambda: 2)
        part = engine_at(server, tmp_path=tmp_path).generate(policy, PROMPTS[rank : rank + 1], 4, seed=3)
        assert part.texts[0] == whole.texts[rank]
    assert engine_at(server, tmp_path=tmp_path).generate(policy, PROMPTS[:2], 4, seed=4).texts != whole.texts


def test_seeds_of_prompts_do_not_overlap():
    seeds = sorted(seed_of(step, place) for step in range(50) for place in range(50))
    assert min(after - before for before, after in pairwise(seeds)) > 1000
    assert seeds[0] >= 0
    assert seeds[-1] < 2**63 - 10_000  # what vLLM takes, with the group's added


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("way", WAYS)
def test_weights_travel_when_they_have_changed_and_only_then(policy, server, tmp_path, way):
    engine = engine_at(server, tmp_path=tmp_path, sync=way)
    path = {"adapter": "/v1/load_lora_adapter", "merged": "/collective_rpc"}[way]
    for travelled in (1, 1, 2, 2):
        engine.generate(policy, PROMPTS, 2, seed=0)
        assert len([body for body in server.asked(path) if body.get("lora_name") != ""]) == travelled
        if len(server.asked("/v1/completions")) == 8:  # 2 of the check, 6 of two rollouts
            move(policy)
    [written] = (tmp_path / "weights").glob("*/*")  # files of one version stay
    assert written.name.endswith(way)
    assert {file.stat().st_mode & 0o777 for file in written.iterdir()} == {0o644}  # servers of other users read them


def test_the_adapter_before_is_unloaded_and_names_are_never_used_again(policy, server, tmp_path):
    engine = engine_at(server, tmp_path=tmp_path, sync="adapter")
    for _ in range(3):
        engine.generate(policy, PROMPTS, 2, seed=0)
        move(policy)
    names = [body["lora_name"] for body in server.asked("/v1/load_lora_adapter") if body["lora_name"]]
    assert len(set(names)) == 3
    assert [body["lora_name"] for body in server.asked("/v1/unload_lora_adapter")] == names[:2]
    assert list(server.adapters) == names[2:]
    assert {body["cache_salt"] for body in server.asked("/v1/completions")} == set(names)


def test_an_adapter_on_top_of_merged_weights_is_refused(policy, server, tmp_path):
    engine_at(server, tmp_path=tmp_path, sync="merged").prepare(policy)
    with pytest.raises(UserError, match=r"merged weights were sent to .* before; start it anew"):
        engine_at(server, tmp_path=tmp_path, sync="adapter").prepare(policy)


def test_a_name_says_the_scale_too(tiny_model):
    names = set()
    for alpha in (16.0, 32.0, 32.0):
        torch.manual_seed(1)
        names.add(engine.Versions(None).now(loaded(tiny_model, alpha=alpha)).name)
    assert len(names) == 2


def test_what_killed_processes_left_behind_is_removed(policy, tmp_path):
    versions = engine.Versions(str(tmp_path))
    own = versions.now(policy).folder
    dead = own.with_name(own.name.replace(f"-{own.name.split('-')[-2]}-", "-4194305-"))  # above Linux's largest
    dead.mkdir()
    other = tmp_path / "lit-debias-elsewhere-4194305-x"
    other.mkdir()
    again = engine.Versions(str(tmp_path))
    assert sorted([own, other, again.now(policy).folder]) == sorted(tmp_path.iterdir())


def test_4_bit_weights_are_merged_as_plain_ones(tiny_model, server, tmp_path):
    policy = loaded(tiny_model, quantization="nf4")
    perturb(policy)
    rollout = engine_at(server, tmp_path=tmp_path, sync="merged").generate(policy, PROMPTS, 4, seed=3)
    torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("asked", "abilities", "way"),
    [
        ("auto", Abilities(True, True, "cpu", True), None),  # measured
        ("auto", Abilities(True, False), "adapter"),
        ("auto", Abilities(False, True, "cuda", False), "merged"),
        ("adapter", Abilities(True, True, "cpu", True), "adapter"),
        ("auto", Abilities(False, False), "does not load adapters; start it with --enable-lora"),
        ("adapter", Abilities(True, True, "cuda", False), "does not load adapters; start it with --enable-lora"),
        ("merged", Abilities(True, False), "does not reload weights; start it with the environment variable VLLM_SE"),
    ],
)
def test_the_way_follows_from_what_the_server_can_do(asked, abilities, way):
    with nullcontext() if way in (None, *WAYS) else pytest.raises(ValueError, match=way):
        assert choose_way(asked, abilities) == way


def test_a_server_that_processes_share_is_given_adapters_alone():
    both = Abilities(True, True, "cpu", True)
    assert choose_way("auto", both, merged_allowed=False) == "adapter"
    with pytest.raises(ValueError, match="shared by several processes"):
        choose_way("merged", both, merged_allowed=False)


def test_processes_share_servers_out_where_there_are_enough(monkeypatch):
    urls = [f"http://s{number}:8000" for number in range(3)]
    monkeypatch.setattr(engine, "rank", lambda: 1)
    monkeypatch.setattr(engine, "world_size", lambda: 2)
    assert [server.url for server in VLLMEngine(urls)._new_pool().servers] == ["http://s1:8000"]
    monkeypatch.setattr(engine, "world_size", lambda: 4)
    assert [server.url[7:9] for server in VLLMEngine(urls)._new_pool().servers] == ["s1", "s2", "s0"]


def test_the_base_of_a_policy_is_written_for_a_server(policy, tiny_model, tmp_path, capsys):
    assert write_base([str(tiny_model), str(tmp_path / "base"), "--dtype", "float32"]) == 0
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(tiny_model).state_dict().items():
        assert torch.equal(weight, written[name]), name
    assert AutoTokenizer.from_pretrained(tmp_path / "base").chat_template
    assert write_base(["/nowhere", str(tmp_path / "none")]) == 2
    assert "lit_debias_vllm: error:" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "engine_options", "message"),
    [
        ({"deaf": True}, {}, "nats a token from the policy's, and .* from the untouched reference's: the adapter"),
        ({"deaf": True}, {"sync": "merged"}, "the adapter does not arrive there"),
        ({"logprobs_mode": "raw_logprobs"}, {"temperature": 0.5}, "start it with --logprobs-mode processed_logprobs"),
        ({"runtime_adapters": False, "developer_mode": False}, {}, "does not load adapters; start it with --en"),
        ({"longest": 30}, {}, r"are \d\d tokens, and .* takes 30; start it with --max-model-len \d\d or more"),
        ({}, {"model": "other"}, "no server answers .*it serves base, and model says 'other'"),
        ({"name": "x"}, {"urls": ["http://127.0.0.1:9"]}, "no server answers .*127.0.0.1:9: no connection"),
    ],
)
def test_a_server_that_is_not_set_up_is_one_line(policy, tiny_model, tmp_path, options, engine_options, message):
    with serving(tiny_model, **options) as server:
        engine = engine_at(server, tmp_path=tmp_path, **{k: v for k, v in engine_options.items() if k != "urls"})
        if "urls" in engine_options:
            engine = VLLMEngine(**engine_options, patience=0.01)
        with pytest.raises(UserError, match=message) as caught:
            engine.generate(policy, PROMPTS, 4, seed=0)
    assert "\n" not in str(caught.value)


def test_another_base_is_refused(policy, tmp_path):
    folder = save_tiny_model(tmp_path / "other")
    other = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(folder)
    with serving(folder) as server:
        engine = engine_at(server, tmp_path=tmp_path, sync="adapter")
        with pytest.raises(UserError, match=r"max_gap is 0\.25: it has another model or other weights"):
            engine.prepare(policy)


def test_a_server_that_keeps_old_weights_is_noticed_later(tiny_model, server, tmp_path):
    policy = loaded(tiny_model)  # an adapter that does nothing yet: nobody could tell
    engine = engine_at(server, tmp_path=tmp_path, check_every=3)
    engine.generate(policy, PROMPTS, 4, seed=0)
    server.deaf = True
    perturb(policy)
    engine.generate(policy, PROMPTS, 4, seed=1)
    with pytest.raises(UserError, match="the adapter does not arrive there"):
        engine.generate(policy, PROMPTS, 4, seed=2)


def test_a_server_on_another_machine_does_not_see_the_folder(policy, server, tmp_path):
    engine = engine_at(server, tmp_path=tmp_path, sync="merged")
    server._reload = lambda body: (500, {"error": {"message": "Call to collective_rpc method failed"}})
    with pytest.raises(UserError, match=r"does not take the merged weights in .*must see that folder under"):
        engine.prepare(policy)


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_token_that_is_certain_may_have_no_log_prob(policy, server, tmp_path, value, monkeypatch):
    def without_first(reply):
        for choice in reply["choices"]:
            choice["logprobs"]["token_logprobs"][0] = value
        return reply

    rollouts = engine_at(server, tmp_path=tmp_path)
    rollouts.prepare(policy)
    server.edit = without_first
    with pytest.raises(UserError, match="gives no log-probability for a token that the policy gives 0"):
        rollouts.generate(policy, PROMPTS, 4, seed=0)
    monkeypatch.setattr(answers, "SURE", -math.inf)
    rollout = rollouts.generate(policy, PROMPTS, 4, seed=0)
    assert rollout.logprobs[..., 0].eq(0).all()
    torch.testing.assert_close(rollout.logprobs[..., 1:], policy.logprobs(rollout)[..., 1:], atol=1e-4, rtol=1e-4)


CHOICE = {"index": 0, "token_ids": [5, 2], "logprobs": {"token_logprobs": [-1.0, 1e-7]}, "finish_reason": "stop"}


def reply(**changes):
    return {"model": "m", "choices": [{**CHOICE, **changes}]}


def test_rounding_above_a_probability_of_1_is_0():
    [completion] = Sampling(1, 4, 1.0, (2,)).read(reply(), "m", "http://x")
    assert completion.logprobs == [-1.0, 0.0]
    assert not completion.truncated


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (reply() | {"model": "another"}, ServerError, "it answers as 'another' where 'm' was asked"),
        (reply(token_ids=None), ServerError, "has not the fields of vLLM"),
        (reply(logprobs=None), ServerError, "has not the fields of vLLM"),
        (reply(token_ids=[5, 6, 2]), ServerError, "3 token_ids, 2 token_logprobs"),
        (reply(finish_reason="abort"), ServerError, "for the reason 'abort'"),
        ({"model": "m", "choices": []}, ServerError, "sent 0 completions where 1 were asked"),
        ("what", ServerError, "has not the fields"),
        (reply(token_ids=[5, 7]), UserError, "ends completions at token 7, which ends none of the policy's"),
        (reply(finish_reason="length"), UserError, "cuts completions at 2 tokens, and max_new_tokens is 4"),
        (reply(logprobs={"token_logprobs": [-9999.0, -1.0]}), UserError, "says -9999 for the log-probability"),
        (reply(logprobs={"token_logprobs": [0.5, -1.0]}), UserError, "says 0.5 for the log-probability"),
    ],
)
def test_answers_that_cannot_be_trained_on(answer, kind, message):
    with pytest.raises(kind, match=message):
        Sampling(1, 4, 1.0, (2,)).read(answer, "m", "http://x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": []}, "write the address of each server once"),
        ({"urls": ["http://a:1", "http://a:1/v1/"]}, "write the address of each server once"),
        ({"urls": ["a:8000"]}, "url is no plain address"),
        ({"urls": ["http://a:1"], "check_every": 0}, "write check_every >= 1"),
        ({"urls": ["http://a:1"], "patience": 0.0}, "finite numbers above 0"),
        ({"urls": ["http://a:1"], "temperature": 0.0}, "finite temperature > 0"),
        ({"urls": ["http://a:1"], "temperature": 2.5}, "vLLM takes at most 2"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        VLLMEngine(**options)


def test_nothing_is_left_to_the_servers_defaults():
    body = Sampling(4, 8, 1.0, (2,)).body("m", "v", [1, 5], 7)
    assert {name: body[name] for name in sampling.WHOLE_DISTRIBUTION} == sampling.WHOLE_DISTRIBUTION
    assert body["prompt"] == [1, 5]  # token ids
    assert Sampling.greedy(8, (2,)).body("m", "v", [1], 7)["seed"] is None
