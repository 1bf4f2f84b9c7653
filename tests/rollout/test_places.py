"""Groups that are picked out of what was sampled, and put into the places of others."""

from __future__ import annotations

import torch
from support import loaded

from lit_debias.rollout.local import LocalEngine
from lit_debias.rollout.places import pick, put, put_scores
from lit_debias.types import PromptBatch, Rollout, Scores

PROMPTS = PromptBatch(["people", "the rider was", "each person"], {"place": ["north", "lift", "work"]})


def kept_of(rollout: Rollout, place: int) -> list[list[int]]:
    """Return what could be sampled in each place of a group's completions."""
    support = rollout.support[place : place + 1]
    places, ids = support.entries()
    found: dict[int, list[int]] = {}
    for where, token in zip(places.tolist(), ids.tolist(), strict=True):
        found.setdefault(where, []).append(token)
    return list(found.values())


def test_groups_of_two_rollouts_become_one(tiny_model):
    policy, engine = loaded(tiny_model), LocalEngine(5, top_k=3)
    first, second = engine.generate(policy, PROMPTS, 2, seed=1), engine.generate(policy, PROMPTS, 2, seed=2)
    assert first.texts != second.texts
    other = pick(second, [2, 0])
    assert other.prompts == PromptBatch(["each person", "people"], {"place": ["work", "north"]})
    both = put(first, [2, 0], other)
    for place, of in enumerate((second, first, second)):
        found, expected = both.group(place), of.group(place)
        assert (found.prompts, found.texts) == (expected.prompts, expected.texts)
        for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "logprobs", "truncated"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert kept_of(both, place) == kept_of(of, place)
    assert torch.equal(policy.logprobs(both).isfinite(), torch.ones_like(both.completion_mask))


def rollout_of(ids: list[list[list[int]]], messages=None) -> Rollout:
    completions = torch.tensor(ids)
    texts = [[str(row) for row in group] for group in ids]
    prompts = PromptBatch([f"p{n}" for n in range(len(ids))], messages=messages)
    places = torch.ones(len(ids), 2, dtype=torch.long)
    shape = completions.shape[:2]
    return Rollout(
        *(prompts, places, places.bool(), completions, completions > 0),
        *(completions * -0.5, torch.zeros(shape, dtype=torch.bool), texts),
    )


def test_longer_completions_widen_the_others():
    rollout = rollout_of([[[1, 2]], [[3, 0]]])
    both = put(rollout, [1], rollout_of([[[4, 5, 6]]]))
    assert both.completion_ids.tolist() == [[[1, 2, 0]], [[4, 5, 6]]]
    assert both.completion_mask.tolist() == [[[True, True, False]], [[True, True, True]]]
    shorter = put(both, [0], rollout_of([[[7]]]))
    assert shorter.completion_ids.tolist() == [[[7, 0, 0]], [[4, 5, 6]]]
    assert rollout.completion_ids.tolist() == [[[1, 2]], [[3, 0]]]  # as it was
    assert put(both, [], pick(both, [])).texts == both.texts


def test_conversations_stay_with_their_groups():
    said = [[{"role": "user", "content": text}] for text in "ab"]
    assert pick(rollout_of([[[1]], [[2]]], said), [1]).prompts.messages == said[1:]


def test_scores_that_are_replaced():
    def scores(values, seconds, names="ab"):
        known = {name: torch.tensor(values) for name in names}
        return Scores(
            known, {name: v > 0 for name, v in known.items()}, dict.fromkeys(names, seconds), columns={"c": [1, 2]}
        )

    found = put_scores(scores([[1.0, 2.0], [3.0, 0.0]], 1.0), [1], scores([[5.0, 6.0]], 0.5, "a"))
    assert found.values["a"].tolist() == [[1, 2], [5, 6]]
    assert found.valid["a"].tolist() == [[True, True], [True, True]]
    assert found.values["b"].tolist() == [[1, 2], [3, 0]]
    assert found.seconds == {"a": 1.5, "b": 1.0}
    assert pick(found, [1]).columns == {"c": [2]}
