"""The suite: what a reward gets to see, and what it may return."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_debias.errors import UserError
from lit_debias.rewards.asking import RewardError, check_scores, read_scores
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.rewards.suite import RewardSuite, flatten
from lit_debias.types import PromptBatch, Rollout


def make_rollout(reference: bool = False) -> Rollout:
    """Return 2 prompts x 3 completions of lengths 1 2 3 and 2 0 3; token ids count up from 10."""
    lengths = torch.tensor([[1, 2, 3], [2, 0, 3]])
    mask = torch.arange(3) < lengths[..., None]
    ids = (torch.arange(18) + 10).view(2, 3, 3)
    return Rollout(
        prompts=PromptBatch(["p0", "p1"], {"group": ["g0", "g1"]}),
        prompt_ids=torch.ones(2, 4, dtype=torch.long),
        prompt_mask=torch.ones(2, 4, dtype=torch.bool),
        completion_ids=ids,
        completion_mask=mask,
        logprobs=torch.zeros(2, 3, 3),
        truncated=torch.zeros(2, 3, dtype=torch.bool),
        texts=[["a", "b", "c"], ["d", "", "f"]],
        reference_logprobs=-ids.float() * mask if reference else None,
    )


class Returns(Reward):
    """Returns what it was given, and keeps what it saw."""

    def __init__(self, answer=None, columns=(), needs_reference_logprobs=False):
        self.answer = answer
        self.columns = columns
        self.needs_reference_logprobs = needs_reference_logprobs
        self.devices = []

    def setup(self, device):
        self.devices.append(device)

    def score(self, batch):
        self.seen = batch
        return [float(row) for row in range(len(batch))] if self.answer is None else self.answer


BATCH = RewardBatch(["p0", "p0", "p1"], ["a", "b", "c"], [0, 0, 1])


# ---------------------------------------------------------------- what rewards see


def test_scores_carry_the_columns_of_the_prompts():
    assert RewardSuite({"a": Returns()}).score(make_rollout()).columns == {"group": ["g0", "g1"]}


def test_flatten_lays_groups_out_one_after_the_other():
    flat = flatten(make_rollout())
    assert len(flat) == 6
    assert flat.prompts == ["p0"] * 3 + ["p1"] * 3
    assert flat.completions == ["a", "b", "c", "d", "", "f"]
    assert flat.group_ids == [0, 0, 0, 1, 1, 1]
    assert flat.columns == {"group": ["g0"] * 3 + ["g1"] * 3}
    assert flat.completion_ids == [[10], [13, 14], [16, 17, 18], [19, 20], [], [25, 26, 27]]
    assert flat.reference_logprobs is None


def test_flatten_cuts_reference_logprobs_to_each_length():
    flat = flatten(make_rollout(reference=True))
    rows = [row.tolist() for row in flat.reference_logprobs]
    assert rows == [[-10], [-13, -14], [-16, -17, -18], [-19, -20], [], [-25, -26, -27]]


# ---------------------------------------------------------------- scores of a rollout


def test_scores_come_back_in_the_order_of_the_completions():
    scores = RewardSuite({"b": Returns(), "a": Returns([None, 1, 2, 3, None, 5])}).score(make_rollout())
    assert list(scores.values) == ["b", "a"]  # the user's order
    assert scores.values["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert scores.values["b"].dtype == torch.float32
    assert scores.valid["b"].all()
    assert scores.values["a"].tolist() == [[0, 1, 2], [3, 0, 5]]
    assert scores.valid["a"].tolist() == [[False, True, True], [True, False, True]]
    assert all(seconds >= 0 for seconds in scores.seconds.values())
    assert set(scores.seconds) == {"a", "b"}


def test_all_rewards_see_one_batch_and_none_the_copy_of_another():
    rewards = {"a": Returns(), "b": Returns()}
    RewardSuite(rewards).score(make_rollout())
    first, second = rewards["a"].seen, rewards["b"].seen
    assert first == second
    assert first is not second


def test_setup_reaches_every_reward_once():
    rewards = {"a": Returns(), "b": Returns()}
    RewardSuite(rewards).setup(torch.device("cpu"))
    assert rewards["a"].devices == rewards["b"].devices == [torch.device("cpu")]


def test_reference_logprobs_are_asked_for_only_if_somebody_needs_them():
    assert not RewardSuite({"a": Returns()}).needs_reference_logprobs
    assert RewardSuite({"a": Returns(), "b": Returns(needs_reference_logprobs=True)}).needs_reference_logprobs


def test_a_missing_column_is_named_with_what_there_is():
    suite = RewardSuite({"a": Returns(), "similar": Returns(columns=("reference", "group"))})
    suite.check_columns(["group", "reference"])
    with pytest.raises(UserError, match=r"'similar'.*'reference'.*group, theme"):
        suite.check_columns(["group", "theme"])
    with pytest.raises(UserError, match="none"):
        suite.check_columns([])


# ---------------------------------------------------------------- what a reward may return


@pytest.mark.parametrize(
    "answer",
    [
        [0, 0.5, 1],
        (0.0, 0.5, 1.0),
        [False, 0.5, True],
        torch.tensor([0.0, 0.5, 1.0]),
        torch.tensor([0.0, 0.5, 1.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(0.0), torch.tensor([0.5]), 1.0],
        np.array([0.0, 0.5, 1.0]),
        [np.float32(0.0), np.float64(0.5), np.int64(1)],
    ],
    ids=["list", "tuple", "bool", "tensor", "tensor-bf16-grad", "list-of-tensors", "array", "list-of-numpy"],
)
def test_numbers_of_every_kind_are_taken(answer):
    assert check_scores("r", answer, BATCH) == [0.0, 0.5, 1.0]


def test_none_is_no_opinion_and_not_zero():
    assert check_scores("r", [None, 0.0, None], BATCH) == [None, 0.0, None]
    read = read_scores("r", [None, 0.0, None], BATCH)
    assert read.valid.tolist() == [False, True, False]
    assert read.values.tolist() == [0.0, 0.0, 0.0]


def test_scores_are_those_of_float32():
    assert check_scores("r", [0.1, None, 0.5], BATCH) == [float(np.float32(0.1)), None, 0.5]
    assert read_scores("r", torch.ones(3, requires_grad=True), BATCH).values.dtype == torch.float32
    assert not read_scores("r", torch.ones(3, requires_grad=True), BATCH).values.requires_grad


@pytest.mark.parametrize(
    "answer",
    [[0.5], [], [0.5] * 4, torch.tensor([0.5]), torch.zeros(3, 2)[:2], np.zeros((1, 3))],
    ids=["one", "none", "four", "tensor-of-one", "two-rows", "array-with-one-row"],
)
def test_nothing_broadcasts(answer):
    with pytest.raises(RewardError, match=r"'r' returned \d scores? for 3 completions"):
        check_scores("r", answer, BATCH)


@pytest.mark.parametrize(
    "answer",
    [None, 0.5, "abc", b"abc", {0: 1.0, 1: 1.0, 2: 1.0}, {0.1, 0.2, 0.3}, iter([0.1, 0.2, 0.3]), torch.tensor(0.5)],
    ids=["none", "float", "str", "bytes", "dict", "set", "iterator", "tensor-without-rows"],
)
def test_only_sequences_are_taken(answer):
    with pytest.raises(RewardError, match=r"'r' returned \w+; return a list"):
        check_scores("r", answer, BATCH)


BAD = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "float32-overflow": 1e39,
    "float-overflow": 10**400,
    "str": "0.5",
    "bytes": b"1",
    "list": [0.5],
    "tuple": (0.5,),
    "complex": 1j,
    "two": torch.tensor([0.5, 0.5]),
    "object": object(),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_an_entry_that_is_no_finite_number_is_shown_with_its_place(bad):
    with pytest.raises(RewardError, match=r"(?s)'r' returned .*'p0'.*'b'.*None for no opinion"):
        check_scores("r", [0.5, bad, 0.5], BATCH)


def test_a_column_of_scores_is_no_row_of_scores():
    with pytest.raises(RewardError, match="finite float"):
        check_scores("r", torch.zeros(3, 1), BATCH)


def test_an_error_in_a_suite_names_the_users_name_of_the_reward():
    with pytest.raises(RewardError, match="'my fairness'"):
        RewardSuite({"fine": Returns(), "my fairness": Returns([0.5])}).score(make_rollout())


class Raises(Reward):
    def score(self, batch):
        return [{}["no such key"] for _ in batch.completions]


def test_an_exception_in_a_reward_names_the_reward_the_place_and_the_cause():
    with pytest.raises(RewardError, match=r"'mine' failed in .*test_suite.py, line \d+: KeyError: 'no such key'") as e:
        RewardSuite({"fine": Returns(), "mine": Raises()}).score(make_rollout())
    assert isinstance(e.value.__cause__, KeyError)
