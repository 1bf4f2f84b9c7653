"""The order of training: the same on any number of ranks, whole prompts, exact resumption."""

from collections import Counter

import pytest

from lit_debias.data.sampler import PromptSampler


def singles(count):
    return [[row] for row in range(count)]


def test_order_is_a_function_of_seed_and_epoch():
    a, b = (PromptSampler(singles(12), 4, seed=7) for _ in range(2))
    assert list(a) == list(b)
    assert list(a) == list(b)  # asking again changes nothing
    first = list(a)
    a.set_epoch(1)
    assert list(a) != first
    a.set_epoch(0)
    assert list(a) == first
    assert list(PromptSampler(singles(12), 4, seed=8)) != first
    assert sorted(row for batch in first for row in batch) == list(range(12))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_what_one_rank_sees_in_rank_major_order(world_size):
    for train, count in ((True, 22), (False, 24)):
        alone = list(PromptSampler(singles(count), 8, seed=3, train=train))
        ranks = [list(PromptSampler(singles(count), 8, 3, rank, world_size, train)) for rank in range(world_size)]
        assert {len(batches) for batches in ranks} == {len(alone)}
        for number, batch in enumerate(alone):
            assert [row for batches in ranks for row in batches[number]] == batch


def test_training_drops_the_ragged_batch_and_validation_keeps_it():
    assert [len(batch) for batch in PromptSampler(singles(10), 4)] == [4, 4]
    assert list(PromptSampler(singles(10), 4, train=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(b) for b in PromptSampler(singles(11), 4, rank=1, world_size=2, train=False)] == [2, 2, 1]


def test_rows_of_one_prompt_stay_together():
    sampler = PromptSampler([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]], 6)
    for batch in sampler:
        assert Counter(row // 3 for row in batch) == {batch[0] // 3: 3, batch[3] // 3: 3}


def test_a_resumed_epoch_ends_like_the_whole_one_and_the_next_starts_at_its_beginning():
    whole, resumed = PromptSampler(singles(20), 4, seed=5), PromptSampler(singles(20), 4, seed=5)
    resumed.set_epoch(2, start=3)
    whole.set_epoch(2)
    assert len(resumed) == 5
    assert list(resumed) == list(whole)[3:]
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert list(resumed) == list(whole)


def test_batch_size_and_ranks_must_fit():
    with pytest.raises(ValueError, match="batch_size 4 is no multiple of world_size 3"):
        PromptSampler(singles(12), 4, world_size=3)
