"""Rollouts that servers sample while the policy is trained: the same as in turn, whatever happens to the servers."""

from __future__ import annotations

import threading

import pytest
import torch
from grpo_runs import InterruptAt, Interruption, adapter_of, assert_same, grpo, prompts, trainer  # noqa: F401
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_debias import GRPO, PromptDataModule
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias.plugins import Policy, PromptBatch, RolloutEngine, UserError
from lit_debias_vllm import VLLMEngine
from lit_debias_vllm.server import ServerError
from lit_debias_vllm.versions import Versions

MANY = PromptBatch([f"people from {place} are" for place in "abcdef"])
SECONDS = 30.0
"""Until what waits for what never comes gives up."""


class InTurn(VLLMEngine):
    """Samples first."""

    under_way = RolloutEngine.under_way


def engine_at(server, folder, cls=VLLMEngine, **options) -> VLLMEngine:
    defaults = {"max_new_tokens": 6, "patience": 0.01, "timeout": 60.0, "folder": str(folder / "weights")}
    return cls([server.url], **{**defaults, **options})


class Telling(GRPO):
    """Says when the update of a step begins; the rollout of step k waits for that of step k."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.begun = [threading.Event() for _ in range(8)]
        self.begun[0].set()  # the first step has nothing to train on

    def update(self, experience):
        self.begun[self.rollout_step].set()
        super().update(experience)


def waiting_for_updates(server, module) -> list[bool]:
    """Let completions wait for the update of their step; return whether it came, one for each request."""
    found, true = [], server._completions

    def completions(body):
        if module.engine.rollouts:  # not before the first step
            found.append(module.begun[module.engine.rollouts - 1].wait(SECONDS))
        return true(body)

    server._completions = completions
    return found


def fit(module, folder, data, steps=3, ckpt=None, callbacks=()):
    keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_exception=True, save_top_k=-1)
    run = trainer(folder, max_steps=steps, max_epochs=-1, enable_checkpointing=True, callbacks=[keep, *callbacks])
    run.fit(module, PromptDataModule(str(data), batch_size=2, seed=5), ckpt_path=ckpt, weights_only=True)
    return run


@pytest.mark.parametrize(
    "options",
    [{}, {"overlap_scoring": True, "correction": ImportanceCorrection()}, {"inner_epochs": 2}],
    ids=["plain", "scoring", "epochs"],
)
def test_a_run_that_samples_while_it_trains_learns_what_one_in_turn_learns(
    tiny_model,
    server,
    prompts,  # noqa: F811
    tmp_path,
    options,
):
    options = {"one_step_off_policy": True, "group_size": 2, **options}
    in_turn = grpo(tiny_model, engine=engine_at(server, tmp_path, InTurn), **options)
    fit(in_turn, tmp_path / "in_turn", prompts)
    ahead = grpo(tiny_model, cls=Telling, engine=engine_at(server, tmp_path, check_every=1), **options)
    waited = waiting_for_updates(server, ahead)
    run = fit(ahead, tmp_path / "ahead", prompts)
    assert_same(adapter_of(in_turn), adapter_of(ahead))
    assert all(waited)
    assert len(waited) >= 2 * ahead.engine.rollouts
    assert 0 < run.callback_metrics["rollout_wait"] <= run.callback_metrics["rollout_time"]
    assert not portals()


def portals() -> list[str]:
    """Return the names of threads that send requests."""
    return [thread.name for thread in threading.enumerate() if "portal" in thread.name]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_a_run_that_is_interrupted_while_it_trains_samples_the_same_again(
    tiny_model,
    server,
    prompts,  # noqa: F811
    tmp_path,
    inner_epochs,
):
    def module():
        engine = engine_at(server, tmp_path)
        return grpo(tiny_model, engine=engine, group_size=2, one_step_off_policy=True, inner_epochs=inner_epochs)

    whole = module()
    fit(whole, tmp_path / "whole", prompts, 4)
    with pytest.raises(Interruption):
        fit(module(), tmp_path / "broken", prompts, 4, callbacks=[InterruptAt(1)])
    assert not portals()
    resumed = module()
    fit(resumed, tmp_path / "broken", prompts, 4, ckpt=tmp_path / "broken" / "last.ckpt")
    assert_same(adapter_of(whole), adapter_of(resumed))
    assert resumed.rollout_step == whole.rollout_step


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_whose_server_dies_while_it_trains_goes_on_as_if_nothing_had_been(tiny_model, server, prompts, tmp_path):  # noqa: F811
    def module():
        engine = engine_at(server, tmp_path, sync="adapter")
        return grpo(tiny_model, cls=Telling, engine=engine, group_size=2, one_step_off_policy=True)

    whole = module()
    fit(whole, tmp_path / "whole", prompts)
    asked = len(server.asked("/v1/completions"))
    broken = module()
    waited = waiting_for_updates(server, broken)
    server.before[asked + 2 + 2 * 2 + 1] = server.die  # 2 of the check, 2 of each step
    folder = tmp_path / "broken"
    with pytest.raises(UserError, match=r"no server answers .*; resume with --ckpt_path (.*)stopped.ckpt"):
        fit(broken, folder, prompts)
    assert all(waited)
    assert broken.trainer.global_step == 2  # the update was made, and is in the checkpoint
    server.restart()
    resumed = module()
    run = fit(resumed, folder, prompts, ckpt=folder / "stopped.ckpt")
    assert run.global_step == 3
    assert_same(adapter_of(whole), adapter_of(resumed))


# ---------------------------------------------------------------- the engine


def move(policy) -> None:
    """Do what an optimiser step does."""
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)


@pytest.mark.parametrize("way", ["adapter", "merged"])
def test_a_server_that_comes_back_gets_the_weights_of_the_start(policy, server, tmp_path, way, monkeypatch):
    expected = engine_at(server, tmp_path, sync=way).generate(policy, MANY, 4, seed=5)
    engine, moved, true = engine_at(server, tmp_path, sync=way), threading.Event(), server._completions
    engine.prepare(policy)
    arrived, asked, original = threading.Event(), [], Policy.logprobs_at

    def forgets_all(body):
        arrived.set()
        assert moved.wait(SECONDS)
        server.restart()
        server._completions = true
        return 503, {}

    def watched(policy, *arguments, **options):
        asked.append((threading.current_thread() is threading.main_thread(), engine._version.name))
        assert Versions(str(tmp_path)).now(policy).name == engine._version.name
        return original(policy, *arguments, **options)

    server._completions = forgets_all
    monkeypatch.setattr(Policy, "logprobs_at", watched)
    began_with = policy.adapter_weights()
    with engine.under_way(policy, MANY, 4, seed=5) as under_way:
        assert arrived.wait(SECONDS)
        move(policy)
        moved.set()
        with policy.with_adapter(began_with):
            rollout = under_way.result()
    assert len(asked) == 2  # the policy and the reference, of the server that came back
    assert all(in_main for in_main, _ in asked)
    assert rollout.texts == expected.texts
    assert torch.equal(rollout.logprobs, expected.logprobs)
    assert under_way.seconds > 0


def test_weights_that_are_not_written_by_then_are_not_written_later(policy, tmp_path):
    version = Versions(str(tmp_path)).now(policy)
    with version.written(["adapter"]):
        assert version.adapter().is_dir()
        with pytest.raises(ServerError, match="merged weights, which only the next rollout will bring"):
            version.merged()
    assert version.merged().is_dir()


def test_a_server_that_was_not_compared_because_the_rollout_failed_is_compared_later(policy, server, tmp_path):
    engine = engine_at(server, tmp_path, check_every=1)
    engine.prepare(policy)
    server.before[len(server.asked("/v1/completions")) + 3] = server.die  # after the 2 of the check
    with pytest.raises(UserError, match="no server answers"):
        engine.generate(policy, MANY, 2, seed=0)
    server.restart()
    server.deaf = True
    with pytest.raises(UserError, match="the adapter does not arrive there"):
        engine.generate(policy, MANY, 2, seed=0)


def test_leaving_ends_what_is_on_its_way(policy, server, tmp_path):
    engine, arrived = engine_at(server, tmp_path), threading.Event()
    engine.prepare(policy)
    true = server._completions

    def hangs(body):
        arrived.set()
        server.patience.wait(SECONDS)
        return true(body)

    server._completions = hangs

    def interrupted():
        with engine.under_way(policy, MANY, 2, seed=0):
            assert arrived.wait(SECONDS)
            assert portals()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not portals()
    server.patience.set()
