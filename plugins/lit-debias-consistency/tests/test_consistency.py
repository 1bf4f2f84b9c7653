"""Counterfactual consistency: by hand, what is missing, and a judge nested in YAML."""

from __future__ import annotations

import random

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from lit_debias import Reward, RewardBatch
from lit_debias.errors import UserError
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.rewards.contract import examine
from lit_debias.rewards.overlap import OverlappedScoring
from lit_debias.rewards.suite import RewardSuite
from lit_debias.types import PromptBatch, Rollout
from lit_debias_consistency import CounterfactualConsistency


class Given(Reward):
    """Scores that are written in the completions; '-' is no opinion."""

    columns = ("reference",)
    needs_reference_logprobs = True

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.device: torch.device | None = None

    def setup(self, device):
        self.device = device

    def score(self, batch):
        return [None if text == "-" else self.scale * float(text) for text in batch.completions]


class Written(Given):
    """The same, of the completions alone."""

    columns = ()
    needs_reference_logprobs = False


class Lengths(Reward):
    def score(self, batch):
        return [1 / (1 + len(text)) for text in batch.completions]


def batch(*rows: tuple[str | None, str, str]) -> RewardBatch:
    """Return rows of (twin_id, prompt, completion)."""
    twins, prompts, completions = map(list, zip(*rows, strict=True))
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return RewardBatch(prompts, completions, [numbers[prompt] for prompt in prompts], {"twin_id": twins})


def test_twins_with_the_same_words_differ_in_what_they_show():
    rows = [("x", "a", "0.2"), ("x", "a", "0.4"), ("x", "a", "0.9"), ("y", "b", "0.5"), (None, "c", "1")]
    twins, prompts, completions = map(list, zip(*rows, strict=True))
    seen = RewardBatch(prompts, completions, [0, 0, 1, 2, 3], {"twin_id": twins})
    found = CounterfactualConsistency(Written()).score(seen)
    assert found == [pytest.approx(0.3), pytest.approx(0.5), pytest.approx(0.4), None, None]  # against 0.9, and 0.3


def test_by_hand():
    # mean of a: 0.5, of b: 0.8; of c 0.1 and of d 1
    rows = batch(
        ("x", "a", "0.2"), ("x", "a", "0.8"), ("x", "b", "0.6"), ("x", "b", "1.0"), ("y", "c", "0.1"), ("y", "d", "1")
    )
    expected = [1 - 0.6, 1 - 0.0, 1 - 0.1, 1 - 0.5, 1 - 0.9, 1 - 0.9]
    assert CounterfactualConsistency(Given()).score(rows) == pytest.approx(expected)


def test_no_twin_or_no_score_is_no_opinion():
    rows = batch(
        ("x", "a", "0.5"),  # its twin was given no score
        ("x", "b", "-"),
        ("y", "c", "0.5"),  # its twin is elsewhere
        (None, "d", "0.5"),  # two prompts without twins are no twins
        (None, "e", "0.5"),
        ("z", "f", "-"),  # no score of its own
        ("z", "f", "0.25"),  # and one that has
        ("z", "g", "-"),  # what the twin's judge has no opinion about does not count
        ("z", "g", "0.75"),
    )
    scores = CounterfactualConsistency(Given()).score(rows)
    assert scores == [None, None, None, None, None, None, 0.5, None, 0.5]


def test_one_prompt_twice_is_not_its_own_twin():
    assert CounterfactualConsistency(Given()).score(batch(("x", "a", "0"), ("x", "a", "1"))) == [None, None]


def test_more_than_two_groups_are_compared_with_all_others():
    scores = CounterfactualConsistency(Given()).score(batch(("x", "a", "0"), ("x", "b", "0.5"), ("x", "c", "1")))
    assert scores == pytest.approx([0.25, 1.0, 0.25])


def test_order_does_not_matter():
    rng = random.Random(0)
    rows = [(rng.choice("xyz"), prompt, str(rng.random())) for prompt in "abcdefgh" for _ in range(3)]
    order = rng.sample(range(len(rows)), len(rows))
    reward = CounterfactualConsistency(Given())
    scores = reward.score(batch(*rows))
    assert reward.score(batch(*[rows[i] for i in order])) == [scores[i] for i in order]


def test_the_judge_decides_what_is_needed():
    reward = CounterfactualConsistency(Given())
    assert reward.columns == ("twin_id", "reference")
    assert reward.needs_reference_logprobs
    assert CounterfactualConsistency.columns == ("twin_id",)  # the class has not changed
    reward.setup(torch.device("cpu"))
    assert reward.judge.device == torch.device("cpu")


def test_a_judge_may_answer_with_a_tensor_but_not_with_too_little(monkeypatch):
    reward = CounterfactualConsistency(Given())
    rows = batch(("x", "a", ""), ("x", "b", ""))
    monkeypatch.setattr(reward.judge, "score", lambda batch: torch.tensor([0.25, 0.5]))
    assert reward.score(rows) == [0.75, 0.75]
    monkeypatch.setattr(reward.judge, "score", lambda batch: [1.0])
    with pytest.raises(UserError, match="the judge Given returned 1 score for 2 completions"):
        reward.score(rows)


def test_overlapped_scoring_asks_about_all_prompts_at_once():
    mask = torch.ones(2, 2, 1, dtype=torch.bool)
    prompts = PromptBatch(["a", "b"], {"twin_id": ["x", "x"]})
    texts = [["0.25", "0.5"], ["0.75", "1"]]
    rollout = Rollout(prompts, mask[:, 0].long(), mask[:, 0], mask.long(), mask, mask.float(), ~mask[..., 0], texts)
    with OverlappedScoring(RewardSuite({"alike": CounterfactualConsistency(Written())})) as overlapped:
        for number in range(2):
            overlapped(number, rollout.group(number))
        scores = overlapped.score(rollout)
    assert scores.valid["alike"].all()
    assert scores.values["alike"].tolist() == [[0.375, 0.625], [0.625, 0.375]]  # against means of 0.875 and 0.375


def test_the_judge_gets_a_batch_of_its_own():
    class Clears(Written):
        def score(self, batch):
            scores = super().score(batch)
            batch.completions.clear()
            batch.prompts.clear()
            return scores

    assert CounterfactualConsistency(Clears()).score(batch(("x", "a", "0.25"), ("x", "b", "0.5"))) == [0.75, 0.75]


def test_it_keeps_the_contract_with_the_twins_of_the_check():
    findings = {finding.check: finding for finding in examine(CounterfactualConsistency(Lengths()))}
    assert [finding for finding in findings.values() if finding.passed is False] == []
    assert findings["length and finiteness"].detail == "16 completions, 0 without opinion"


def test_a_judge_is_nested_in_yaml_by_its_short_name():
    get_plugin_manager()  # short names are those of imported classes
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=dict[str, Reward])

    def build(**options):
        judge = {"class_path": "SoftOverlong", "init_args": options}
        config = {"alike": {"class_path": "CounterfactualConsistency", "init_args": {"judge": judge}}}
        return parser.instantiate(parser.parse_object({"rewards": config})).rewards["alike"]

    reward = build(max_new_tokens=16, buffer=4)
    assert isinstance(reward, CounterfactualConsistency)
    assert (type(reward.judge).__name__, reward.judge.buffer) == ("SoftOverlong", 4)
    with pytest.raises(ArgumentError, match="bufer"):
        build(max_new_tokens=16, bufer=4)


def test_is_found_through_its_entry_point():
    found = {c.name: c.distribution for c in components(get_plugin_manager())}
    assert found["CounterfactualConsistency"] == "lit-debias-consistency"
