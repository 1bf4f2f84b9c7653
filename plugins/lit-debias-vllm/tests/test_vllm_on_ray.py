"""``ray://servers``: the servers of ``lit-debias ray``, which are somewhere else after they were started again."""

from __future__ import annotations

import pytest
import torch
from ray_stand_in import Actor, RayError, ray  # noqa: F401
from vllm_server import serving

from lit_debias.cli import on_ray as command
from lit_debias.cli import ray_servers
from lit_debias.plugins import PromptBatch, UserError
from lit_debias_vllm import VLLMEngine, on_ray

MANY = PromptBatch([f"people from {place} are" for place in "abcdef"])


class At:
    """What is behind an actor whose server is somewhere."""

    def __init__(self, server) -> None:
        self.server = server

    def address(self) -> str:
        if self.server is None:
            raise RayError("The actor is\nunavailable")
        return self.server.url


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setenv(on_ray.VARIABLE, "server-0-x server-1-x")


def test_they_are_those_that_the_command_has_started(names):
    assert (on_ray.VARIABLE, on_ray.ALL) == (ray_servers.SERVERS, command.NAMED)
    engine = VLLMEngine(["http://localhost:8000/v1", "ray://servers"])
    assert engine.urls == ["http://localhost:8000", "ray://server-0-x", "ray://server-1-x"]


@pytest.mark.parametrize("url", ["ray://servers", "ray://cluster:10001"])
def test_elsewhere_there_are_none(url, monkeypatch):
    monkeypatch.delenv(on_ray.VARIABLE, raising=False)
    with pytest.raises(UserError, match=f"urls has {url}; ray://servers are the servers that `lit-debias ray` starts"):
        VLLMEngine([url])


def test_one_that_was_started_again_is_found_where_it_is_now(policy, tiny_model, tmp_path, names, ray, caplog):  # noqa: F811
    with serving(tiny_model) as first, serving(tiny_model) as second, serving(tiny_model) as elsewhere:
        moving = ray.actors["server-0-x"] = Actor(At(first))
        ray.actors["server-1-x"] = Actor(At(second))
        engine = VLLMEngine(["ray://servers"], max_new_tokens=6, patience=0.01, folder=str(tmp_path))
        engine.generate(policy, MANY, 4, seed=4)
        first.before[len(first.asked("/v1/completions")) + 2] = first.die
        moving.instance.server = None
        engine.generate(policy, MANY, 4, seed=5)
        assert "ray://server-0-x fails" in caplog.text
        del ray.actors["server-1-x"]
        second.die()
        moving.instance.server = elsewhere
        rollout = engine.generate(policy, MANY, 4, seed=6)
    torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)
    assert len(elsewhere.asked("/v1/completions")) == 2 + len(MANY.asked)  # the check's, and each group once
    assert "ray://server-0-x samples again" in caplog.text


def test_doctor_says_what_ray_says(names, ray):  # noqa: F811
    ray.actors["server-0-x"] = Actor(At(None))
    lost, unknown = VLLMEngine(["ray://servers"]).examine()
    assert lost.found == "Ray does not say where it is (The actor is unavailable)"
    assert unknown.found == "Ray does not say where it is (Failed to look up actor with name 'server-1-x'.)"
