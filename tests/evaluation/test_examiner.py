"""What a policy is asked, and what is kept of it."""

import json
import math

import pytest
import torch
from evaluation_runs import BaseLikelihood, OutOfRange, adapter, completions, data, run  # noqa: F401  (fixtures among them)
from support import loaded
from transformers import AutoModelForCausalLM

from lit_debias.errors import UserError
from lit_debias.evaluation.examiner import mean_logprobs
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.scoring import joined
from lit_debias.rewards.suite import flatten
from lit_debias.types import PromptBatch


def test_sampling_is_seeded_and_temperature_0_is_greedy(tiny_model, data, tmp_path):
    for name, options in {
        "one": {"temperature": 5.0},
        "again": {"temperature": 5.0},
        "other": {"temperature": 5.0, "seed": 1},
        "cold": {"temperature": 1e-4},
        "greedy": {"temperature": 0.0},
    }.items():
        run(tiny_model, data, tmp_path / name, system_prompt=None, **options)
    assert completions(tmp_path / "one") == completions(tmp_path / "again")
    assert completions(tmp_path / "one") != completions(tmp_path / "other")
    assert completions(tmp_path / "cold") == completions(tmp_path / "greedy") != completions(tmp_path / "one")
    options = {"temperature": 5.0, "top_k": 3, "stop": ["e", "o"]}  # into a folder that has another answer
    run(tiny_model, data, tmp_path / "one", system_prompt=None, **options)
    stopped = completions(tmp_path / "one")
    assert stopped != completions(tmp_path / "again")
    assert not any(letter in (text or "") for text in stopped for letter in "eo")
    with pytest.raises(UserError, match=r"engine: top_k=0, top_p=2\.0"):
        run(tiny_model, data, tmp_path / "odd", top_p=2.0)
    with pytest.raises(UserError, match="temperature=-1; write 0 for the most probable token"):
        run(tiny_model, data, tmp_path / "odd", temperature=-1)


def test_records_hold_what_a_reader_can_check(tiny_model, data, adapter, tmp_path):
    run(tiny_model, data, tmp_path, adapter=adapter, system_prompt=None, rewards={"likely": BaseLikelihood()})
    arms = {name: json.loads((tmp_path / "arms" / f"{name}.json").read_text()) for name in ("before", "after")}
    assert not (tmp_path / "arms" / "prompt_only.json").exists()
    assert arms["before"]["fingerprint"] != arms["after"]["fingerprint"]
    by_prompt = {r["prompt"]: r for r in arms["after"]["records"]}
    opened = by_prompt["Complete the sentence 0: riders are"]
    vowels = sum(c in "aeiou" for c in opened["completion"].lower()) / max(1, len(opened["completion"]))
    assert opened["judges"]["judge"] == pytest.approx(vowels)
    # the reward saw the same base log-probabilities that perplexity is made of
    assert opened["rewards"]["likely"] == pytest.approx(math.exp(opened["base_logprob"] / opened["tokens"]))
    assert opened["reference_logprob"] < 0
    assert by_prompt["Complete 0: nurses are"]["biased_logprob"] is None
    forced = by_prompt["Complete the sentence 3: riders are"]
    assert forced["completion"] is None
    assert len(forced["choice_logprobs"]) == 3
    before = {r["prompt"]: r for r in arms["before"]["records"]}
    assert any(before[p]["completion"] != r["completion"] for p, r in by_prompt.items())


def test_mean_logprobs_are_those_of_the_model_alone(tiny_model):
    policy = loaded(tiny_model)
    answers = ["often late.", "kind people because"]
    ours = mean_logprobs(policy, [({"prompt": "Riders are"}, None)] * 2, [answers, answers[:1]])
    assert [len(row) for row in ours] == [2, 1]
    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    prompt = policy.encode_prompts(["Riders are"])[0][0].tolist()
    for answer, value in zip(answers, ours[0], strict=True):
        ids = policy.tokenizer.encode(answer, add_special_tokens=False)
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(float(logits.gather(-1, torch.tensor(ids)[:, None]).mean()), abs=1e-4)


def test_frozen_base_is_the_base_and_restores(tiny_model, adapter):
    policy = loaded(tiny_model, adapter=adapter, system_prompt="Be fair.")
    base = loaded(tiny_model)
    row = [({"prompt": "Riders are"}, None)]
    trained = mean_logprobs(policy, row, [["late."]])
    with policy.as_base():
        assert mean_logprobs(policy, row, [["late."]])[0] == pytest.approx(mean_logprobs(base, row, [["late."]])[0])
    assert mean_logprobs(policy, row, [["late."]]) == trained
    assert policy.system_prompt == "Be fair."


class Crowd(Reward):
    """How many completions it is asked about: what depends on the batch."""

    depends_on_batch = True

    def score(self, batch):
        return [len(batch) / 100] * len(batch)


class Jury(Crowd):
    """A judge of that kind."""


class LikelyCrowd(Crowd):
    """The same, with the log-probabilities of all of them."""

    needs_reference_logprobs = True

    def score(self, batch):
        assert [len(row) for row in batch.reference_logprobs] == [len(ids) for ids in batch.completion_ids]
        return [sum(map(float, (row.sum() for row in batch.reference_logprobs)))] * len(batch)


def test_rewards_that_depend_on_their_batch_are_asked_once_about_all(tiny_model, data, tmp_path):
    crowds = {"crowd": Crowd(), "likely": BaseLikelihood(), "likely_crowd": LikelyCrowd()}
    options = {"system_prompt": None, "temperature": 0.0, "rewards": crowds, "judges": {"few": Jury()}}
    kept = {}
    for size in (1, 4):  # slices of 6 completions
        run(tiny_model, data, tmp_path / str(size), batch_size=size, **options)
        kept[size] = json.loads((tmp_path / str(size) / "arms" / "before.json").read_text())["records"]
    answered = [[r for r in records if r["completion"] is not None] for records in kept.values()]
    for first, second in zip(*answered, strict=True):
        assert first["completion"] == second["completion"]
        assert list(first["rewards"]) == list(crowds)
        assert first["rewards"] == pytest.approx(second["rewards"], rel=1e-4)
        assert (first["rewards"]["crowd"], first["judges"]["few"]) == pytest.approx((0.06, 0.06))
    total = sum(record["base_logprob"] for record in answered[0])
    assert answered[0][0]["rewards"]["likely_crowd"] == pytest.approx(total, rel=1e-4)


class LoudCrowd(OutOfRange):
    depends_on_batch = True


def test_a_judge_of_the_whole_batch_stays_in_its_range(tiny_model, data, tmp_path):
    with pytest.raises(UserError, match=r"judge 'crowd' returned 1\.5"):
        run(tiny_model, data, tmp_path, judges={"crowd": LoudCrowd()})


def test_slices_are_joined_as_rewards_see_them(tiny_model):
    policy = loaded(tiny_model)
    slices = [
        policy.encode(PromptBatch(["Riders are", "Nurses are"], {"n": [1, 2]}), [["late because"], ["kind"]]),
        policy.encode(PromptBatch(["People from the north are"], {"n": [3]}), [["people"]]),
    ]
    whole = policy.encode(
        PromptBatch(["Riders are", "Nurses are", "People from the north are"], {"n": [1, 2, 3]}),
        [["late because"], ["kind"], ["people"]],
    )
    assert flatten(joined(slices)) == flatten(whole)
    for name in ("prompt_mask", "completion_mask", "truncated"):
        assert torch.equal(getattr(joined(slices), name), getattr(whole, name)), name
