"""Servers that die, hang, forget, or are somebody else's: no group is lost, and none is trained on twice."""

from __future__ import annotations

import pytest
import torch
from command_line import config, run, said, write  # noqa: F401
from grpo_runs import adapter_of, assert_same, grpo, prompts, trainer  # noqa: F401
from vllm_server import serving

from lit_debias import PromptDataModule
from lit_debias.plugins import PromptBatch
from lit_debias_vllm import VLLMEngine

MANY = PromptBatch([f"people from {place} are" for place in "abcdef"])


@pytest.fixture
def servers(tiny_model):
    with serving(tiny_model) as first, serving(tiny_model) as second:
        yield first, second


def engine_at(*servers, folder, **options) -> VLLMEngine:
    files = str(folder / "weights")
    defaults = {"max_new_tokens": 6, "patience": 0.01, "timeout": 60.0, "folder": files, "sync": "adapter"}
    return VLLMEngine([server.url for server in servers], **{**defaults, **options})


def answered(server) -> int:
    """Return how many requests of a rollout a server got, after those of the check."""
    return len(server.asked("/v1/completions"))


def undisturbed(policy, tiny_model, folder, **options):
    with serving(tiny_model) as server:
        return engine_at(server, folder=folder, **options).generate(policy, MANY, 4, seed=5)


@pytest.mark.parametrize("way", ["adapter", "merged"])
def test_groups_of_a_server_that_dies_are_sampled_elsewhere(policy, tiny_model, servers, tmp_path, way, caplog):
    first, second = servers
    engine = engine_at(first, second, folder=tmp_path, sync=way)
    engine.prepare(policy)
    first.before[answered(first) + 2] = first.die
    rollout = engine.generate(policy, MANY, 4, seed=5)
    assert rollout.texts == undisturbed(policy, tiny_model, tmp_path, sync=way).texts  # in place, each once
    assert f"{first.url} fails" in caplog.text
    first.restart()  # without what was loaded
    second.die()
    rollout = engine.generate(policy, MANY, 4, seed=6)
    torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)
    assert f"{first.url} samples again" in caplog.text


def test_a_server_that_forgot_the_adapter_gets_it_again_within_the_rollout(policy, server, tmp_path):
    engine = engine_at(server, folder=tmp_path, sync="adapter")
    engine.prepare(policy)
    server.before[answered(server) + 3] = server.restart
    rollout = engine.generate(policy, MANY, 4, seed=5)
    torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)
    assert len([body for body in server.asked("/v1/load_lora_adapter") if body["lora_name"]]) == 2


def test_merged_weights_that_a_server_forgot_between_two_rollouts_are_sent_again(policy, server, tmp_path):
    engine = engine_at(server, folder=tmp_path, sync="merged")
    engine.generate(policy, MANY, 4, seed=5)
    server.restart()  # answers as before, from the base
    rollout = engine.generate(policy, MANY, 4, seed=6)
    torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)


def test_a_server_that_hangs_is_left_after_the_timeout(policy, tiny_model, servers, tmp_path, caplog):
    first, second = servers
    engine = engine_at(first, second, folder=tmp_path, timeout=2.0)
    engine.prepare(policy)
    first.before[answered(first) + 1] = first.hang
    rollout = engine.generate(policy, MANY, 4, seed=5)
    assert rollout.texts == undisturbed(policy, tiny_model, tmp_path).texts
    assert "it does not answer in time" in caplog.text


def test_a_server_that_serves_another_model_is_left_out(policy, servers, tmp_path, caplog):
    first, second = servers
    engine = engine_at(first, second, folder=tmp_path, model="base")
    first.name = "other"
    rollout = engine.generate(policy, MANY, 4, seed=5)
    assert rollout.completion_mask[..., 0].all()
    assert f"{first.url} is left out for now: it serves other, and model says 'base'" in caplog.text
    assert not first.asked("/v1/completions")


def test_a_server_that_fails_again_and_again_does_not_keep_a_rollout(policy, servers, tmp_path, caplog):
    first, second = servers
    engine = engine_at(first, second, folder=tmp_path)
    engine.prepare(policy)
    first.edit = lambda reply: "nonsense"  # also to the check, so it is never ready again
    rollout = engine.generate(policy, MANY, 4, seed=5)
    torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)


def test_a_busy_server_is_asked_again_and_keeps_its_groups(policy, server, tmp_path, caplog):
    engine = engine_at(server, folder=tmp_path)
    engine.prepare(policy)
    true, busy = server._completions, iter([True])
    server._completions = lambda body: (429, {}) if next(busy, False) else true(body)
    engine.generate(policy, MANY, 4, seed=5)
    assert "fails" not in caplog.text


# ---------------------------------------------------------------- runs


def test_a_run_goes_on_with_one_of_two_servers_and_takes_every_step_once(tiny_model, servers, prompts, tmp_path):  # noqa: F811
    first, second = servers

    def fit(*of, folder):
        module = grpo(tiny_model, engine=engine_at(*of, folder=tmp_path))
        run = trainer(folder, max_steps=3)
        run.fit(module, PromptDataModule(str(prompts), batch_size=4))
        return module, run

    first.before[7] = first.die  # 2 of the check, 2 of each step
    module, run = fit(first, second, folder=tmp_path / "two")
    with serving(tiny_model) as alone:
        expected, _ = fit(alone, folder=tmp_path / "one")
    assert run.global_step == module.rollout_step == 3
    assert_same(adapter_of(module), adapter_of(expected))
    assert first.status == "dead"


def test_without_a_server_a_run_keeps_a_checkpoint_and_goes_on_later(tiny_model, server, config, tmp_path, capsys):  # noqa: F811
    options = {"urls": [server.url], "max_new_tokens": 6, "patience": 0.01, "sync": "adapter", "folder": str(tmp_path)}
    config["model"]["init_args"]["engine"] = {"class_path": "VLLMEngine", "init_args": options}
    config["trainer"] |= {"default_root_dir": str(tmp_path), "max_steps": 3}
    file = write(tmp_path, config)
    server.before[5] = server.die  # 2 of the check, 2 of the first step
    assert run("fit", "-c", file) == 2
    line = said(capsys)
    assert line.startswith("VLLMEngine: no server answers (http://127.0.0.1:")
    kept = tmp_path / "stopped.ckpt"
    assert line.endswith(f"resume with --ckpt_path {kept}")
    server.restart()
    assert run("fit", "-c", file, "--ckpt_path", str(kept)) == 0
    checkpoints = sorted(tmp_path.rglob("*step=3*.ckpt"))
    assert checkpoints
    state = torch.load(checkpoints[0], weights_only=True)
    assert (state["global_step"], state["grpo"]["rollout_step"]) == (3, 3)


# ---------------------------------------------------------------- doctor


def test_doctor_says_what_a_server_lacks(server, config, tmp_path, capsys):  # noqa: F811
    assert run("doctor", "--engine", server.url) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"ok {server.url} serves 'base' on cuda, up to 512 tokens" in shown
    assert "auto is what samples faster here" in shown
    assert "note files read from a folder that it must see" in shown
    assert "keep it in a trusted network" in shown
    server.runtime_adapters, server.logprobs_mode = False, "raw_logprobs"
    options = {"urls": [server.url], "sync": "adapter", "temperature": 0.7}
    config["model"]["init_args"]["engine"] = {"class_path": "VLLMEngine", "init_args": options}
    assert run("doctor", "--engine", write(tmp_path, config)) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "missing sync adapter is none here; it does not load adapters; start it with --enable-lora" in shown
    assert "missing log-probs before the temperature, which is 0.7; start it with --logprobs-mode processed" in shown
    server.die()
    assert run("doctor", "--engine", server.url) == 1
    assert "no connection" in capsys.readouterr().out


def test_doctor_wants_an_engine(config, tmp_path, capsys):  # noqa: F811
    del config["model"]["init_args"]["engine"]
    assert run("doctor", "--engine", write(tmp_path, config)) == 2
    assert "names no engine; write one under model.init_args.engine" in said(capsys)
