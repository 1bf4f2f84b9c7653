"""Scoring beside sampling: the same scores, really at the same time, and failures that are told."""

import threading

import pytest
import torch
from grpo_runs import Vowels, adapter_of, assert_same, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from support import loaded, perturb

from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.rewards.asking import RewardError
from lit_debias.rewards.guard import Guard
from lit_debias.rewards.overlap import OverlappedScoring
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

ASKED = PromptBatch(["people from the north are", "the rider", "each person"], {"place": ["north", "lift", "work"]})
TOKENS = 12


class Batches(Vowels):
    """Remembers what it was asked."""

    columns = ("place",)

    def __init__(self):
        self.asked = []

    def score(self, batch):
        self.asked.append((batch.prompts[0], len(batch), batch.columns["place"][0]))
        return super().score(batch)


class Rank(Batches):
    """A score that compares the completions of a batch."""

    depends_on_batch = True

    def score(self, batch):
        scores = super().score(batch)
        return [sum(other < score for other in scores) / len(scores) for score in scores]


class Likely(Batches):
    needs_reference_logprobs = True

    def score(self, batch):
        super().score(batch)
        return [float(row.exp().mean()) for row in batch.reference_logprobs]


class Fails(Vowels):
    """Fails where it is asked about one of the prompts."""

    def score(self, batch):
        if "the rider" in batch.prompts:
            raise KeyError("rider")
        return super().score(batch)


@pytest.fixture(scope="module")
def policy(tiny_model):
    torch.manual_seed(1)
    policy = loaded(tiny_model)
    perturb(policy)
    policy.eos_token_ids = tuple(range(3, 60))  # ends come early and at different steps
    return policy


def sampled(policy, on_group=None, prompts=ASKED, engine=None):
    return (engine or LocalEngine(TOKENS)).generate(policy, prompts, 4, seed=3, on_group=on_group)


def test_every_group_is_told_once_with_what_the_rollout_says_of_it(policy):
    told = {}
    rollout = sampled(policy, lambda number, group: told.setdefault(number, []).append(group))
    assert len({int(lengths.max()) for lengths in rollout.lengths}) > 1  # some finish before others
    assert sorted(told) == [0, 1, 2]
    for number, (group,) in told.items():
        whole = rollout.group(number)
        assert (group.prompts, group.texts) == (whole.prompts, whole.texts)
        for name in ("prompt_ids", "completion_ids", "completion_mask", "logprobs", "truncated"):
            assert torch.equal(getattr(group, name), getattr(whole, name)), name


def test_telling_changes_nothing_of_the_rollout(policy):
    plain, told = sampled(policy), sampled(policy, lambda number, group: None)
    assert torch.equal(plain.completion_ids, told.completion_ids)
    assert torch.equal(plain.logprobs, told.logprobs)


@pytest.mark.parametrize("engine_tells", [True, False])
def test_scores_are_those_of_the_whole_rollout(policy, engine_tells):
    rewards = {"likely": Likely(), "vowels": Batches(), "rank": Rank()}
    suite = RewardSuite(rewards, Guard(10))
    with OverlappedScoring(suite) as overlapped:
        rollout = sampled(policy, overlapped if engine_tells else None)
        rollout.__dict__["reference_logprobs"] = policy.logprobs(rollout, reference=True)
        found = overlapped.score(rollout)
    assert sorted(rewards["vowels"].asked) == [(text, 4, place) for text, place in sorted(zip(*columns(), strict=True))]
    assert [size for _, size, _ in rewards["rank"].asked + rewards["likely"].asked] == [12, 12]
    expected = suite.score(rollout)
    for field in ("values", "valid", "failed"):
        for name in rewards:
            assert torch.equal(getattr(found, field)[name], getattr(expected, field)[name]), (field, name)
    assert found.seconds.keys() == expected.seconds.keys() == set(rewards)
    assert min(found.seconds.values()) > 0
    assert found.columns == ASKED.columns


def columns():
    return ASKED.texts, ASKED.columns["place"]


class Watched(Vowels):
    def __init__(self):
        self.called = threading.Event()

    def score(self, batch):
        self.called.set()
        return super().score(batch)


class Waiting(LocalEngine):
    """Once a group is finished, goes on with the others only when the reward has been asked about it."""

    def __init__(self, reward):
        super().__init__(TOKENS)
        self.reward, self.waited = reward, []

    def generate(self, policy, prompts, group_size, seed, greedy=False, on_group=None):
        def told(number, group):
            on_group(number, group)
            self.waited.append(self.reward.called.wait(60))

        return super().generate(policy, prompts, group_size, seed, greedy, told)


def test_a_reward_is_asked_while_others_are_sampled(policy):
    reward = Watched()
    engine = Waiting(reward)
    with OverlappedScoring(RewardSuite({"r": reward})) as overlapped:
        rollout = sampled(policy, overlapped, engine=engine)
        scores = overlapped.score(rollout)
    assert engine.waited == [True, True, True]
    assert scores.values["r"].shape == (3, 4)


def test_a_reward_that_fails_stops_the_step_with_its_message(policy):
    with (
        pytest.raises(RewardError, match=r"reward 'r' failed in .*KeyError: 'rider'"),
        OverlappedScoring(RewardSuite({"r": Fails()})) as overlapped,
    ):
        overlapped.score(sampled(policy, overlapped))


def test_a_guarded_reward_loses_the_group_that_failed(policy):
    suite = RewardSuite({"r": Fails()}, Guard(10, retries=0, open_after=1, open_for=2, max_error_rate=1))
    for failed in (4, 12, 12, 4):  # the breaker opens after the first rollout, for two
        with OverlappedScoring(suite) as overlapped:
            scores = overlapped.score(sampled(policy, overlapped))
        assert int(scores.failed["r"].sum()) == failed
        assert bool(scores.failed["r"][1].all())
        assert torch.equal(scores.valid["r"], ~scores.failed["r"])
        suite.settle(scores)


def test_nothing_more_is_scored_once_sampling_has_failed(policy):
    entered, go_on = threading.Event(), threading.Event()

    class Held(Batches):
        def score(self, batch):
            entered.set()
            go_on.wait(60)
            return super().score(batch)

    held = Held()
    overlapped = OverlappedScoring(RewardSuite({"r": held}))
    rollout = sampled(policy)

    def sampling_that_fails():
        for number in range(3):
            overlapped(number, rollout.group(number))
        assert entered.wait(60)
        raise OSError("out of memory")

    with pytest.raises(OSError, match="out of memory"), overlapped:
        sampling_that_fails()
    go_on.set()
    overlapped._call.thread.join(60)
    assert [text for text, _, _ in held.asked] == ASKED.texts[:1]


def test_nothing_more_is_scored_once_there_is_enough(policy):
    vowels, rollout = Batches(), sampled(policy)
    suite = RewardSuite({"r": vowels}, Guard(10))
    with OverlappedScoring(suite, lambda number, group, scores: number == 1) as overlapped:
        scores = overlapped.score(rollout)
    assert overlapped.enough
    assert [text for text, _, _ in vowels.asked] == ASKED.texts[:2]
    assert scores.valid["r"].all(1).tolist() == [True, True, False]
    assert not scores.valid["r"][2].any()
    assert not scores.failed["r"].any()
    assert torch.equal(scores.values["r"][:2], suite.score(rollout).values["r"][:2])


def test_what_is_enough_is_not_known_before_every_reward_was_asked(policy):
    suite = RewardSuite({"r": Batches(), "rank": Rank()})
    with OverlappedScoring(suite, lambda *_: pytest.fail("asked")) as overlapped:
        scores = overlapped.score(sampled(policy))
    assert scores.valid["r"].all()


class Stop:
    """Takes groups, of which one is enough."""

    def __init__(self):
        self.told = []

    def __call__(self, number, group):
        self.told.append(number)

    @property
    def enough(self):
        return bool(self.told)


def test_the_engine_ends_the_groups_that_nobody_needs(policy):
    stop = Stop()
    plain, cut = sampled(policy), sampled(policy, stop)
    assert 0 < len(stop.told) < 3
    for number in range(3):
        whole, part = plain.group(number), cut.group(number)
        if number in stop.told:
            assert (part.texts, part.lengths.tolist()) == (whole.texts, whole.lengths.tolist())
        else:
            assert part.lengths.max() < whole.lengths.max()
            assert part.truncated.any()


class Telling(LocalEngine):
    """Counts the groups that it told of."""

    told = 0

    def generate(self, policy, prompts, group_size, seed, greedy=False, on_group=None):
        def count(number, group):
            self.told += 1
            on_group(number, group)

        return super().generate(policy, prompts, group_size, seed, greedy, on_group and count)


def test_a_run_learns_the_same(tiny_model, prompts, tmp_path):
    adapters = []
    for overlap in (False, True):
        rewards = {"vowels": Vowels(), "rank": Rank()}
        engine = Telling(TOKENS)
        module = grpo(tiny_model, rewards=rewards, engine=engine, overlap_scoring=overlap, reward_device="cpu")
        trainer(tmp_path, max_steps=3).fit(module, PromptDataModule(str(prompts), batch_size=2))
        sizes = {size for _, size, _ in rewards["rank"].asked}
        assert sizes == {8}
        assert engine.told == (6 if overlap else 0)
        adapters.append(adapter_of(module))
    assert_same(*adapters)


class Device(Reward):
    def setup(self, device):
        self.device = device

    def score(self, batch):
        return torch.arange(float(len(batch)), device=self.device).tolist()


def test_rewards_and_judges_compute_on_their_own_device(tiny_model, prompts, tmp_path):
    reward, judge = Device(), Device()
    module = grpo(tiny_model, rewards={"r": reward}, judges={"j": judge}, reward_device="cpu:0")
    trainer(tmp_path, max_steps=1).fit(module, PromptDataModule(str(prompts), batch_size=2))
    assert reward.device == judge.device == torch.device("cpu", 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("abacus", "reward_device 'abacus': there is no such device; write cpu, cuda or cuda:1"),
        ("cuda:77", r"reward_device 'cuda:77': PyTorch sees \d CUDA devices here; write cpu or one of them"),
    ],
)
def test_a_device_that_is_not_there_is_named(tiny_model, name, message):
    with pytest.raises(UserError, match=message):
        grpo(tiny_model, reward_device=name)


def test_an_engine_that_cannot_tell_is_not_asked_to(tiny_model, prompts, tmp_path):
    class Plain(RolloutEngine):
        def generate(self, policy, prompts, group_size, seed, greedy=False):
            return policy.encode(prompts, [[f"{text} {n}" for n in range(group_size)] for text in prompts.texts])

    module = grpo(tiny_model, engine=Plain(TOKENS))
    trainer(tmp_path, max_steps=1).fit(module, PromptDataModule(str(prompts), batch_size=2))
    assert module.rollout_step == 1
