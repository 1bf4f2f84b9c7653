"""Rewards, aggregators and observers at their worst: what they do to what they are handed stays their own affair."""

from __future__ import annotations

import json
import random
import threading
from functools import partial

import numpy as np
import pytest
import torch
from grpo_runs import Vowels, adapter_of, assert_same, grpo, trainer

from lit_debias.aggregators import WeightedSum
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.plugins.manager import hookimpl, load_plugins, show_scored
from lit_debias.rewards.asking import RewardError
from lit_debias.rewards.guard import Guard
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.settings import kept_settings
from lit_debias.rewards.suite import RewardSuite, flatten
from lit_debias.types import PromptBatch, Rollout, own_copy

LOCK = threading.Lock()


def make_rollout() -> Rollout:
    """Return 2 prompts x 2 completions x 3 tokens, with cells of all kinds."""
    ids = torch.arange(12).view(2, 2, 3)
    cells = {
        "text": ["r", "s"],
        "nested": [{"words": ["x", "y"]}, {"words": ["z"]}],
        "list": [["c", "a"], ["b"]],
        "tensor": [torch.ones(2), torch.zeros(2)],
        "array": [np.arange(3), np.arange(3)],
        "lock": [LOCK, LOCK],  # what cannot be copied is shared
    }
    texts = [["d", "c"], ["b", "a"]]
    mask = torch.ones(2, 2, 3, dtype=torch.bool)
    prompt = torch.zeros(2, 1, dtype=torch.long)
    return Rollout(
        PromptBatch(["p", "q"], cells), prompt, prompt == 0, ids, mask, ids.float(), ~mask[..., 0], texts, -ids.float()
    )


class Edits(Reward):
    needs_reference_logprobs = True

    def score(self, batch):
        batch.completions.sort()
        batch.prompts.reverse()
        batch.group_ids.clear()
        batch.columns["text"].clear()
        for row in range(4):
            batch.columns["nested"][row]["words"].append("more")
            batch.columns["list"][row].clear()
            batch.columns["tensor"][row].fill_(9)
            batch.columns["array"][row][:] = 9
            batch.completion_ids[row].append(9)
            batch.reference_logprobs[row].zero_()
        del batch.columns["lock"]
        return [0.0] * 4


class Sees(Reward):
    def score(self, batch):
        self.seen = repr(batch)
        return [float(ord(text)) for text in batch.completions]


@pytest.mark.parametrize("guard", [None, Guard()])
def test_what_a_reward_does_to_its_batch_reaches_nobody(guard):
    rollout, sees = make_rollout(), Sees()
    before = repr(rollout)
    scores = RewardSuite({"edits": Edits(), "sees": sees}, guard).score(rollout)
    assert scores.values["sees"].tolist() == [[100.0, 99.0], [98.0, 97.0]]
    assert sees.seen == repr(flatten(rollout))
    assert repr(rollout) == before


class Careless(Vowels):
    """Leaves torch and all random generators as it likes them."""

    def setup(self, device):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)

    def score(self, batch):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        scores = super().score(batch)
        for rows in (batch.completions, batch.prompts, batch.completion_ids):
            rows.clear()
        for row in batch.reference_logprobs or []:
            row.fill_(-50)
        return scores


class Grabs(WeightedSum):
    """Edits the scores that it turns into advantages, and the advantages that it is shown."""

    def __call__(self, scores, step):
        advantages = super().__call__(scores, step)
        for value in (*scores.values.values(), *scores.valid.values()):
            value.zero_()
        return advantages

    def metrics(self, scores, advantages, step):
        advantages.zero_()
        return {}


class Watches:
    @hookimpl
    def lit_debias_scored(self, rollout, scores):
        torch.set_grad_enabled(False)
        rollout.completion_ids.zero_()
        rollout.logprobs.fill_(3)
        rollout.texts.clear()
        scores.values.clear()


@pytest.mark.parametrize("overlap_scoring", [False, True])
def test_training_is_the_same_beside_plugins_that_edit_everything(
    tiny_model,
    tmp_path,
    monkeypatch,
    overlap_scoring,
):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"people from {place} are"}) + "\n" for place in "abcd"))

    def run(reward, aggregator, *observers):
        manager = load_plugins([])
        for observer in observers:
            manager.register(observer)
        monkeypatch.setattr("lit_debias.training.grpo.get_plugin_manager", lambda: manager)
        rewards = {"vowels": reward, "more": Vowels()}
        module = grpo(
            tiny_model, rewards=rewards, aggregator=aggregator, overlap_scoring=overlap_scoring, inner_epochs=2
        )
        t = trainer(tmp_path, max_steps=4)
        t.fit(module, PromptDataModule(str(data), batch_size=2))
        return adapter_of(module), float(t.callback_metrics["rewards/vowels/mean"])

    weights = {"vowels": 1.0, "more": 0.5}
    quiet, mean = run(Vowels(), WeightedSum(weights))
    loud, same_mean = run(Careless(), Grabs(weights), Watches(), Watches())
    assert_same(quiet, loud)
    assert mean == same_mean > 0
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_settings_are_set_back_also_after_a_failure():
    threads = torch.get_num_threads()

    def fail():
        torch.set_default_device("meta")
        torch.set_num_threads(threads + 1)
        torch.set_grad_enabled(False)
        raise KeyError

    with pytest.raises(KeyError), kept_settings():
        fail()
    assert torch.ones(1).requires_grad_().device.type == "cpu"
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_each_observer_sees_a_rollout_of_its_own_and_its_failure_is_one_line():
    class Fails:
        @hookimpl
        def lit_debias_scored(self, rollout):
            self.seen = rollout
            raise KeyError("two\nlines")

    manager, observers = load_plugins([]), [Watches(), Watches()]
    for number, observer in enumerate(observers):
        manager.register(observer, f"w{number}")
    rollout = make_rollout()
    before = repr(rollout)
    scores = RewardSuite({"sees": Sees()}).score(rollout)
    show_scored(manager, rollout, scores)
    assert repr(rollout) == before
    assert list(scores.values) == ["sees"]
    fails = Fails()
    manager.register(fails, "fails")
    with pytest.raises(UserError, match=r"plugin 'fails': lit_debias_scored failed in .*KeyError: 'two\\nlines'; mend"):
        show_scored(manager, rollout, scores)
    assert repr(fails.seen.completion_ids) == repr(rollout.completion_ids)


def test_copies_share_nothing_that_can_be_changed():
    rollout = make_rollout()
    copy = own_copy(rollout)
    assert repr(copy.prompts.columns["nested"]) == repr(rollout.prompts.columns["nested"])
    assert copy.prompts.columns["nested"][0]["words"] is not rollout.prompts.columns["nested"][0]["words"]
    assert copy.completion_ids.data_ptr() != rollout.completion_ids.data_ptr()
    assert copy.prompts.columns["lock"][0] is LOCK


class Leaves(Reward):
    def __init__(self, where: str) -> None:
        self.where = where

    def setup(self, device):
        if self.where == "setup":
            raise OSError("no\nsuch model")

    def score(self, batch):
        if self.where == "exit":
            raise SystemExit(0)
        return [10**5000] * len(batch)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("setup", r"reward 'r' failed in setup: OSError: no such model \(.*test_isolation.py, line \d+\)$"),
        ("exit", r"reward 'r' raised SystemExit: 0 in .*test_isolation.py"),
        ("number", r"reward 'r' returned what cannot be read \(ValueError\)"),
    ],
)
def test_whatever_an_unguarded_reward_raises_is_one_line(where, message):
    suite = RewardSuite({"r": Leaves(where)})
    run = partial(suite.setup, torch.device("cpu")) if where == "setup" else partial(suite.score, make_rollout())
    with pytest.raises(RewardError, match=message):
        run()
