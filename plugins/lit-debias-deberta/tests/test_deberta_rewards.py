"""Rewards on a tiny DeBERTa-v2: one forward for all, whatever the order and the padding, and clear errors."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import DebertaV2Model

from lit_debias import RewardBatch
from lit_debias.errors import UserError
from lit_debias.evaluation.fingerprint import check_judges
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.rewards.asking import check_scores
from lit_debias.support import precision
from lit_debias_deberta import (
    DebertaFairness,
    DebertaNeutrality,
    DebertaQuality,
    DebertaRelevance,
    DebertaReward,
    RewardScorer,
)
from lit_debias_deberta.checkpoint import MANIFEST, Manifest, build_network, load_network, read_manifest, save_network
from lit_debias_deberta.network import buckets

CPU = torch.device("cpu")
PROMPTS = ["Describe the neighbour.", "Describe the neighbour.", "Hire them?", "Hire them?", "Hire them?"]
RESPONSES = ["They are lazy.", "", "Judge each person by what he does.", "No", "They are all lazy and " * 4]


def batch(prompts=PROMPTS, responses=RESPONSES) -> RewardBatch:
    return RewardBatch(prompts=list(prompts), completions=list(responses), group_ids=[0] * len(prompts))


def ready(reward: DebertaReward) -> DebertaReward:
    reward.setup(CPU)
    return reward


@pytest.fixture
def forwards(monkeypatch):
    """Sizes [pairs, tokens] of all forward passes."""
    shapes = []
    forward = DebertaV2Model.forward
    monkeypatch.setattr(
        DebertaV2Model,
        "forward",
        lambda self, **kw: (shapes.append(tuple(kw["input_ids"].shape)), forward(self, **kw))[1],
    )
    return shapes


def test_rewards_of_one_checkpoint_share_encoder_and_forward(checkpoint, forwards):
    fairness, neutrality = (ready(cls(str(checkpoint))) for cls in (DebertaFairness, DebertaNeutrality))
    assert fairness.scorer is neutrality.scorer
    first, second = fairness.score(batch()), neutrality.score(batch())
    assert len(forwards) == 1
    assert first != second
    fairness.score(batch(RESPONSES, PROMPTS))
    assert len(forwards) == 2


def test_a_folder_trained_again_is_read_again(checkpoint, encoder):
    old = ready(DebertaFairness(str(checkpoint)))
    torch.manual_seed(2)
    manifest = read_manifest(checkpoint)
    save_network(build_network(encoder, manifest.dimensions), manifest, checkpoint)
    new = ready(DebertaFairness(str(checkpoint)))
    assert old.score(batch()) != new.score(batch())


def test_scores_are_one_finite_float_in_the_unit_interval(checkpoint):
    scores = ready(DebertaQuality(str(checkpoint))).score(batch())
    check_scores("quality", scores, batch())
    assert all(0 <= score <= 1 for score in scores)
    assert len(set(scores)) == 5
    assert ready(DebertaQuality(str(checkpoint))).score(batch([], [])) == []


def test_equal_pairs_are_read_once(checkpoint, forwards):
    scores = ready(DebertaFairness(str(checkpoint))).score(batch(PROMPTS * 3, RESPONSES * 3))
    assert [shape[0] for shape in forwards] == [5]
    assert scores == scores[:5] * 3


def test_pairs_are_remembered_up_to_a_bound(checkpoint, forwards):
    scorer = RewardScorer.load(checkpoint, cache_size=3)

    def rows(*numbers: int) -> int:
        """Return how many pairs were read to score these."""
        before = sum(shape[0] for shape in forwards)
        scores = scorer.score([PROMPTS[i] for i in numbers], [RESPONSES[i] for i in numbers])
        assert torch.equal(scores, first[list(numbers)])
        return sum(shape[0] for shape in forwards) - before

    first = scorer.score(PROMPTS, RESPONSES)
    assert rows(0, 1, 2, 3, 4) == 0  # all of the last call, though they are more than the bound
    assert rows(4) == 0  # now three are left: 4 was used last, before it 3 and 2
    assert rows(2) == 0
    assert len(scorer._known) == 3
    scorer.score(["Hire them?"], ["Never"])  # 3 was used longest ago
    assert rows(2, 4) == 0
    forwards.clear()
    scorer.score([PROMPTS[3]], [RESPONSES[3]])
    assert len(forwards) == 1


def test_a_cache_of_zero_keeps_the_last_call_for_the_other_heads(checkpoint, forwards):
    fairness, neutrality = (ready(cls(str(checkpoint), cache_size=0)) for cls in (DebertaFairness, DebertaNeutrality))
    assert fairness.score(batch()) != neutrality.score(batch())
    assert len(forwards) == 1
    fairness.score(batch(PROMPTS[:1], RESPONSES[:1]))
    fairness.score(batch())
    assert sum(shape[0] for shape in forwards) == 5 + 4  # the pair of the call before was still there
    assert ready(DebertaQuality(str(checkpoint), cache_size=7)).scorer.cache_size == 7


def test_the_order_of_a_batch_changes_nothing(checkpoint):
    order = [3, 0, 4, 2, 1]
    straight, shuffled = (RewardScorer.load(checkpoint) for _ in range(2))  # neither knows what the other scored
    scores = shuffled.score([PROMPTS[i] for i in order], [RESPONSES[i] for i in order], batch_size=2)
    assert torch.equal(scores, straight.score(PROMPTS, RESPONSES, batch_size=2)[order])


def test_padding_changes_nothing(checkpoint, forwards):
    together = RewardScorer.load(checkpoint).score(PROMPTS, RESPONSES)
    alone = RewardScorer.load(checkpoint).score(PROMPTS, RESPONSES, batch_size=1)
    assert {shape[0] for shape in forwards[1:]} == {1}
    assert len({shape[1] for shape in forwards}) > 3  # really padded by different amounts
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_budget_of_tokens_bounds_the_forward_passes_and_changes_nothing(checkpoint, forwards):
    together = RewardScorer.load(checkpoint).score(PROMPTS, RESPONSES)
    [(_, longest)] = forwards
    forwards.clear()
    bounded = RewardScorer.load(checkpoint).score(PROMPTS, RESPONSES, batch_tokens=40)
    assert all(rows == 1 or rows * length <= 40 for rows, length in forwards)
    assert 2 <= len(forwards) < 5
    assert [length for _, length in forwards] == sorted(length for _, length in forwards)
    assert sum(rows * length for rows, length in forwards) < 5 * longest
    torch.testing.assert_close(bounded, together, atol=1e-5, rtol=0)


def test_buckets_by_hand():
    lengths = [3, 3, 4, 9, 2]
    assert list(buckets([4, 0, 1, 2, 3], lengths, 9, 8)) == [[4, 0], [1, 2], [3]]  # 2 x 3, 2 x 4; 9 is too long, alone
    assert list(buckets([4, 0, 1, 2, 3], lengths, 2, 99)) == [[4, 0], [1, 2], [3]]
    assert list(buckets([4, 0, 1, 2, 3], lengths, 9, 99)) == [[4, 0, 1, 2, 3]]


def test_what_makes_it_fast_does_not_make_another_judge(checkpoint):
    reward = DebertaFairness(str(checkpoint))
    judge = DebertaFairness(str(checkpoint), batch_size=3, cache_size=1, cache_dir=str(checkpoint.parent))
    with pytest.raises(UserError, match="same class and settings"):
        check_judges({"judge": judge}, {"reward": reward})


def test_max_length_bounds_the_tokens(checkpoint, forwards):
    reward = ready(DebertaFairness(str(checkpoint), max_length=12))
    short = reward.score(batch())
    assert max(shape[1] for shape in forwards) == 12
    assert short != ready(DebertaFairness(str(checkpoint))).score(batch())  # not remembered as the same batch
    assert max(shape[1] for shape in forwards) == 32


def test_save_and_load_give_bitwise_equal_scores(checkpoint, tmp_path):
    network = load_network(checkpoint)
    save_network(network, read_manifest(checkpoint), tmp_path / "copy")
    ours, theirs = RewardScorer(network), RewardScorer.load(tmp_path / "copy")
    assert torch.equal(ours.score(PROMPTS, RESPONSES), theirs.score(PROMPTS, RESPONSES))
    assert not [file.name for file in (tmp_path / "copy").iterdir() if file.suffix in (".bin", ".pt", ".pkl")]


def test_the_manager_finds_the_rewards():
    names = {c.name for c in components(get_plugin_manager()) if c.distribution == "lit-debias-deberta"}
    assert names == {"DebertaFairness", "DebertaNeutrality", "DebertaPreference", "DebertaRelevance", "DebertaQuality"}


def test_a_subclass_names_another_head(encoder, tmp_path):
    class Warmth(DebertaReward):
        dimension = "warmth"

    network = build_network(encoder, ["warmth"], max_length=16)
    save_network(network, Manifest(["warmth"], max_length=16), tmp_path / "warm")
    assert all(math.isfinite(score) for score in ready(Warmth(str(tmp_path / "warm"))).score(batch()))


# ---------------------------------------------------------------- a user's mistakes


def test_missing_folder_says_how_to_train_one(tmp_path):
    with pytest.raises(UserError, match=r"no such folder.*lit-debias fit"):
        DebertaFairness(str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", ["reward_model.json", "heads.safetensors"])
def test_incomplete_folder(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(UserError, match=f"no {name} there"):
        DebertaFairness(str(checkpoint))


@pytest.mark.parametrize("content", ["{", json.dumps({"colour": 1})])
def test_unreadable_manifest(checkpoint, content):
    (checkpoint / MANIFEST).write_text(content)
    with pytest.raises(UserError, match="not readable"):
        DebertaFairness(str(checkpoint))


def test_missing_head_names_those_that_are_there(checkpoint):
    with pytest.raises(UserError, match=r"no head 'relevance'.*(fairness|neutrality|quality)"):
        DebertaRelevance(str(checkpoint))


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"max_length": 0}, {"batch_tokens": 0}])
def test_numbers_below_one(checkpoint, arguments):
    with pytest.raises(UserError, match="at least 1"):
        DebertaFairness(str(checkpoint), **arguments)
    with pytest.raises(UserError, match="cache_size=-1; write at least 0"):
        DebertaFairness(str(checkpoint), cache_size=-1)


def test_save_never_removes_something_else(checkpoint, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        save_network(load_network(checkpoint), read_manifest(checkpoint), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_computes_in_bf16_where_the_device_multiplies_it(checkpoint, multiplies, monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: multiplies)
    reward = DebertaFairness(str(checkpoint))
    reward.setup(torch.device("cpu"))
    assert reward.scorer.bf16 is multiplies


def test_bf16_moves_scores_by_rounding_alone_and_has_an_encoder_of_its_own(checkpoint):
    exact, rounded = (DebertaFairness(str(checkpoint), dtype=dtype) for dtype in ("float32", "bfloat16"))
    batch = RewardBatch(PROMPTS, RESPONSES, group_ids=list(range(len(PROMPTS))))
    scores = []
    for reward in (exact, rounded):
        reward.setup(torch.device("cpu"))
        scores.append(reward.score(batch))
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert exact.scorer is not rounded.scorer
