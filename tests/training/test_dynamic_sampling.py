"""Groups without a spread are left out and sampled again: by hand, and in whole runs."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from grpo_runs import (  # noqa: F401  (prompts is a fixture)
    InterruptAt,
    Interruption,
    Vowels,
    adapter_of,
    assert_same,
    grpo,
    prompts,
    trainer,
)
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD

from lit_debias.aggregators import Gate, Gated, GroupMaxMin, Lagrangian, MaxMin, WeightedSum
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.guard import Guard
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite, flatten
from lit_debias.rollout.engine import enough
from lit_debias.rollout.local import LocalEngine
from lit_debias.rollout.places import pick, put
from lit_debias.training.drawing import Drawing
from lit_debias.training.dynamic_sampling import Choosing, DynamicSampling, FirstGroups, lacking, needed
from lit_debias.types import PromptBatch, Rollout, Scores

SHORT = "ignore:dynamic_sampling. . of . groups have a spread"


class Scripted:
    """Answers with what stands in a script: prompt -> its groups, one for each time that it is asked."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script = {text: list(groups) for text, groups in script.items()}
        self.asked: list[list[str]] = []
        self.seeds: list[int] = []

    def generate(self, policy, prompts, group_size, seed, greedy=False, on_group=None):
        self.asked.append(prompts.texts)
        self.seeds.append(seed)
        groups = [self.script[text].pop(0) for text in prompts.texts]
        ids = torch.tensor([[[int(letter) + 1] for letter in group] for group in groups])
        inner = torch.ones(len(groups), 1, dtype=torch.long)
        cut = ids[..., 0] > 5
        texts = [list(group) for group in groups]
        return Rollout(prompts, inner, inner.bool(), ids, ids > 0, -0.5 * ids, cut, texts)


class Digit(Reward):
    """Scores a completion, which is a digit, by its value."""

    def __init__(self):
        self.sizes = []

    def score(self, batch):
        self.sizes.append(len(batch))
        return [float(text) for text in batch.completions]


class Rank(Digit):
    """A score that compares the completions of a batch."""

    depends_on_batch = True

    def score(self, batch):
        scores = super().score(batch)
        return [sum(other < score for other in scores) / len(scores) for score in scores]


class Fails(Digit):
    def score(self, batch):
        return [
            "?" if text == "0" else score for text, score in zip(batch.completions, super().score(batch), strict=True)
        ]


def choosing(script: dict[str, list[str]], reward: Reward | None = None, guard=None, **options) -> Choosing:
    options = {"mask_truncated": False} | options
    module = SimpleNamespace(
        engine=Scripted(script),
        policy=SimpleNamespace(failing_together=nullcontext),
        group_size=2,
        rewards=RewardSuite({"r": reward or Digit()}, guard),
        overlap_scoring=False,
        loss=SimpleNamespace(beta=0.0),
        aggregator=WeightedSum({"r": 1.0}),
        rollout_step=0,
        mask_truncated=options.pop("mask_truncated"),
    )
    return Choosing(DynamicSampling(**options), Drawing(module))


def choose(choosing: Choosing):
    """Return what comes out for all prompts of the script, and the metrics."""
    collected = choosing(PromptBatch(list(choosing.drawing.module.engine.script)), seed=7)
    names = ("sampled", "kept", "spread", "reward")
    return collected, [collected.metrics[f"dynamic_sampling/{name}"] for name in names]


def words(collected) -> dict[str, str]:
    rollout = collected.drawn.rollout
    return {text: "".join(group) for text, group in zip(rollout.prompts.texts, rollout.texts, strict=True)}


# ---------------------------------------------------------------- by hand


def test_prompts_without_a_spread_are_asked_again_until_they_have_one():
    chosen = choosing({"a": ["11", "10"], "b": ["01"], "c": ["00", "00", "02"], "d": ["10"]})
    collected, metrics = choose(chosen)
    engine = chosen.drawing.module.engine
    assert engine.asked == [["a", "b", "c", "d"], ["a", "c"], ["c"]]
    assert words(collected) == {"a": "10", "b": "01", "c": "02", "d": "10"}
    assert collected.drawn.scores.values["r"].tolist() == [[1, 0], [0, 1], [0, 2], [1, 0]]
    assert collected.drawn.rollout.logprobs[2].tolist() == [[-0.5], [-1.5]]
    assert metrics == [7, 4, 0.5, 0.5]  # 4 + 2 + 1 groups; the first four hold 1 + 1, 0 + 1, 0 + 0, 1 + 0
    assert engine.seeds[0] == 7
    assert len(set(engine.seeds)) == 3


def test_spare_prompts_fill_the_places_of_others_in_the_order_of_the_batch():
    chosen = choosing({"a": ["11"], "b": ["01"], "c": ["00"], "d": ["10"], "e": ["09"]}, groups=2)
    collected, metrics = choose(chosen)
    assert chosen.drawing.module.engine.asked == [["a", "b", "c", "d", "e"]]
    assert words(collected) == {"b": "01", "d": "10"}
    assert collected.asked.values["r"].shape == (4, 2)  # what lies behind may not have been sampled
    assert metrics == [4, 2, 0.5, 0.5]


def test_spare_prompts_and_resampling_go_together():
    chosen = choosing({"a": ["11", "11", "10"], "b": ["00", "00", "00"], "c": ["10"]}, groups=2)
    collected, metrics = choose(chosen)
    assert chosen.drawing.module.engine.asked == [["a", "b", "c"], ["a", "b"], ["a", "b"]]
    assert words(collected) == {"a": "10", "c": "10"}
    assert metrics == [7, 2, 1 / 3, 0.5]


def test_at_the_limit_a_step_takes_what_there_is_and_says_so_once():
    chosen = choosing({"a": ["11"] * 9, "b": ["01", "01"]}, max_resamples=2)
    with pytest.warns(UserWarning, match="1 of 2 groups have a spread after 2 resamples"):
        collected, metrics = choose(chosen)
    assert words(collected) == {"b": "01"}
    assert metrics == [4, 1, 0.5, 0.75]
    choose(chosen)  # another warning would be an error
    assert chosen.drawing.module.engine.asked == [["a", "b"], ["a"], ["a"]] * 2


@pytest.mark.filterwarnings(SHORT)
def test_where_nothing_has_a_spread_one_group_holds_the_place():
    collected, metrics = choose(choosing({"a": ["11"] * 2, "b": ["00"] * 2}, max_resamples=1))
    assert words(collected) == {"a": "11"}
    assert metrics == [4, 0, 0, 0.5]


@pytest.mark.filterwarnings(SHORT)
def test_groups_that_are_all_cut_teach_nothing_where_those_are_masked():
    script = {"a": ["67", "61"], "b": ["78", "78"]}  # 5 and more are cut
    collected, _ = choose(choosing(script, mask_truncated=True, max_resamples=1))
    assert words(collected) == {"a": "61"}
    collected, _ = choose(choosing(script, max_resamples=1))
    assert words(collected) == {"a": "67", "b": "78"}


@pytest.mark.filterwarnings(SHORT)
def test_a_reward_that_failed_is_no_reason_to_ask_again():
    guard = Guard(10, retries=0)
    chosen = choosing({"a": ["00"], "b": ["11", "12"], "c": ["12"]}, Fails(), guard)
    collected, _ = choose(chosen)
    assert chosen.drawing.module.engine.asked == [["a", "b", "c"], ["b"]]
    assert collected.asked.failed["r"].tolist() == [[True, True], [False, False], [False, False]]
    assert words(collected) == {"b": "12", "c": "12"}


def test_a_reward_of_the_batch_sees_the_whole_of_it_each_time():
    rank = Rank()
    collected, _ = choose(choosing({"a": ["11", "20"], "b": ["01"]}, rank))
    assert rank.sizes == [4, 4]
    assert collected.drawn.scores.values["r"].tolist() == [[0.75, 0], [0, 0.5]]


@pytest.mark.parametrize(("share", "places"), [(1, [0]), (2, [0, 1, 2]), (3, [0, 1, 2, 3])])
def test_what_is_needed(share, places):
    assert list(needed(torch.tensor([True, False, True, False]), share)) == places


def test_what_is_lacking():
    failed = {"r": torch.tensor([[False, False], [False, False], [True, False]])}
    spread = torch.tensor([False, True, False])
    assert lacking(spread, Scores({}, {}, failed=failed), 3) == [0]
    assert lacking(spread, Scores({}, {}), 2) == [0, 2]
    assert lacking(spread, Scores({}, {}), 1) == []


def test_the_first_groups_are_first_in_the_batch_and_not_in_time():
    has_spread = dict(enumerate([True, False, True, True]))
    first = FirstGroups(2, lambda number, _: has_spread[number])
    assert [first(number, number, None) for number in (3, 2, 0, 1)] == [False, False, False, True]


class Telling(Scripted):
    """Tells of three groups, the last one first, and leaves the others unfinished where three are enough."""

    stopped = False

    def generate(self, policy, prompts, group_size, seed, greedy=False, on_group=None):
        rollout = super().generate(policy, prompts, group_size, seed)
        for number in (2, 0, 1):
            on_group(number, rollout.group(number))
        on_group._call.thread.join(60)  # it ends by itself where there is enough
        self.stopped = enough(on_group)
        return put(rollout, [3, 4], pick(rollout, [0, 0]))


def test_sampling_ends_where_the_first_groups_are_in():
    reward = Digit()
    chosen = choosing({"a": ["11"], "b": ["01"], "c": ["10"], "d": ["23"], "e": ["45"]}, reward, groups=2)
    module = chosen.drawing.module
    module.overlap_scoring, module.engine = True, Telling(module.engine.script)
    collected, metrics = choose(chosen)
    assert module.engine.stopped
    assert reward.sizes == [2, 2, 2]
    assert words(collected) == {"b": "01", "c": "10"}
    assert metrics == [3, 2, 2 / 3, 4 / 6]


@pytest.mark.parametrize("options", [{"groups": 0}, {"max_resamples": -1}])
def test_options_out_of_range(options):
    with pytest.raises(UserError, match="write at least 1 group, or null, and at least 0 resamples"):
        DynamicSampling(**options)


# ---------------------------------------------------------------- in a run


class Coarse(Vowels):
    """A score that many completions share."""

    def score(self, batch):
        return [round(2 * share) / 2 for share in super().score(batch)]


class Counting(LocalEngine):
    """Counts its calls."""

    calls = 0

    def generate(self, *args, **kwargs):
        self.calls += not kwargs.get("greedy", False)
        return super().generate(*args, **kwargs)


def coarse(model, **options):
    return grpo(model, **{"group_size": 2, "rewards": {"vowels": Coarse()}, "engine": Counting(6), **options})


class Alternating(Reward):
    def score(self, batch):
        return [float(number % 2) for number in range(len(batch))]


@pytest.mark.parametrize("options", [{}, {"overlap_scoring": True}, {"one_step_off_policy": True, "inner_epochs": 2}])
def test_where_every_group_has_a_spread_nothing_changes(tiny_model, prompts, tmp_path, options):
    adapters = []
    for dynamic in (None, DynamicSampling(max_resamples=0)):
        module = grpo(tiny_model, dynamic_sampling=dynamic, rewards={"r": Alternating()}, **options)
        run = trainer(tmp_path, max_steps=4, max_epochs=-1)
        run.fit(module, PromptDataModule(str(prompts), batch_size=3))
        adapters.append(adapter_of(module))
    assert run.callback_metrics["dynamic_sampling/kept"] == run.callback_metrics["dynamic_sampling/sampled"] == 3
    assert_same(*adapters)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty", SHORT)
@pytest.mark.parametrize("interrupted_at", [1, 2])
@pytest.mark.parametrize("off_policy", [False, True])
def test_resuming_gives_bitwise_the_same_adapter(tiny_model, prompts, tmp_path, interrupted_at, off_policy):
    def run(folder, ckpt=None, callbacks=()):
        dynamic = DynamicSampling(groups=2, max_resamples=2)
        module = coarse(tiny_model, dynamic_sampling=dynamic, one_step_off_policy=off_policy)
        keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_exception=True, save_top_k=-1)
        t = trainer(folder, max_steps=4, max_epochs=-1, enable_checkpointing=True, callbacks=[keep, *callbacks])
        t.fit(module, PromptDataModule(str(prompts), batch_size=3, seed=5), ckpt_path=ckpt, weights_only=True)
        return module

    whole = run(tmp_path / "whole")
    assert whole.engine.calls > whole.rollout_step  # some prompts were asked again
    with pytest.raises(Interruption):
        run(tmp_path / "broken", callbacks=[InterruptAt(interrupted_at)])
    resumed = run(tmp_path / "broken", ckpt=tmp_path / "broken" / "last.ckpt")
    assert_same(adapter_of(whole), adapter_of(resumed))
    assert resumed.rollout_step == 4 + off_policy  # steps count updates, however often they sample


@pytest.mark.filterwarnings(SHORT)
def test_scoring_beside_sampling_chooses_the_same_groups(tiny_model, prompts, tmp_path):
    adapters = []
    for overlap in (False, True):
        dynamic = DynamicSampling(groups=2, max_resamples=1)
        module = coarse(tiny_model, dynamic_sampling=dynamic, overlap_scoring=overlap)
        trainer(tmp_path, max_steps=3, max_epochs=-1).fit(module, PromptDataModule(str(prompts), batch_size=4))
        assert len(module.experience.rollout.prompts) <= 2
        adapters.append(adapter_of(module))
    assert_same(*adapters)


class CoarseLikely(Reward):
    needs_reference_logprobs = True

    def score(self, batch):
        return [float(int(1e5 * row.exp().mean()) % 2) for row in batch.reference_logprobs]  # as if by a coin


@pytest.mark.filterwarnings(SHORT)
def test_log_probs_under_the_reference_stay_with_their_groups(tiny_model, prompts, tmp_path):
    dynamic = DynamicSampling(groups=3, max_resamples=4)
    loss = DAPOLoss(beta=0.0)  # otherwise the reference is asked again
    module = coarse(tiny_model, rewards={"r": CoarseLikely()}, dynamic_sampling=dynamic, loss=loss)
    trainer(tmp_path, max_steps=2).fit(module, PromptDataModule(str(prompts), batch_size=4))
    assert module.engine.calls > 2
    experience, rollout = module.experience, module.experience.rollout
    assert len(rollout.prompts) > 1
    expected = module.policy.logprobs(rollout, reference=True)
    mask = rollout.completion_mask
    torch.testing.assert_close(rollout.reference_logprobs[mask], expected[mask], rtol=1e-4, atol=1e-4)
    again = CoarseLikely().score(flatten(rollout))
    assert experience.scores.values["r"].flatten().tolist() == again


class Constant(Reward):
    def score(self, batch):
        return [1.0] * len(batch)


class Start(Callback):
    def on_train_start(self, trainer, pl_module):
        self.adapter = adapter_of(pl_module)


def test_a_run_without_any_spread_ends_and_moves_nothing(tiny_model, prompts, tmp_path):
    options = {"rewards": {"r": Constant()}, "optimizer": lambda parameters: SGD(parameters, lr=1.0)}
    module = coarse(tiny_model, dynamic_sampling=DynamicSampling(max_resamples=2), **options)
    start = Start()
    with pytest.warns(UserWarning, match="dynamic_sampling: 0 of 4 groups have a spread") as warned:
        trainer(tmp_path, max_steps=2, callbacks=[start]).fit(module, PromptDataModule(str(prompts), batch_size=4))
    assert len([each for each in warned if "dynamic_sampling" in str(each.message)]) == 1
    assert (module.rollout_step, module.engine.calls) == (2, 6)
    assert not module.experience.loss_mask.any()
    assert_same(start.adapter, adapter_of(module))


@pytest.mark.parametrize(
    "aggregator",
    [
        Lagrangian({"vowels": 1.0}, {"vowels": 0.5}),
        MaxMin(["vowels"]),
        GroupMaxMin(WeightedSum({"vowels": 1.0})),
        Gated(Lagrangian({"vowels": 1.0}, {"vowels": 0.5}), {"vowels": Gate("vowels", 0.1)}),
    ],
)
def test_aggregators_that_learn_from_means_are_refused(tiny_model, aggregator):
    with pytest.raises(UserError, match=f"{type(aggregator).__name__} learns from the means of a rollout"):
        grpo(tiny_model, aggregator=aggregator, dynamic_sampling=DynamicSampling())


def test_more_groups_than_prompts_are_refused_before_a_model_is_loaded(tiny_model, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(QLoRAPolicy, "load", lambda *_: pytest.fail("a model was loaded"))
    module = grpo(tiny_model, dynamic_sampling=DynamicSampling(groups=5))
    with pytest.raises(UserError, match="groups is 5, of 4 prompts in a batch and over 1"):
        trainer(tmp_path).fit(module, PromptDataModule(str(prompts), batch_size=4))
