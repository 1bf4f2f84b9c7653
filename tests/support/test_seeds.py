"""Seeds of steps and ranks: the numbers of runs that are resumed, or repeated."""

from lit_debias.support import distributed
from lit_debias.support.seeds import seed_at, seed_of_rank


def test_steps_of_neighbouring_runs_share_no_seed():
    assert seed_at(0, 7) == 7
    assert seed_at(3, 7) == 3_000_016  # 3 * 1,000,003 + 7
    assert len({seed_at(seed, step) for seed in range(10) for step in range(1000)}) == 10_000


def test_ranks_have_seeds_of_their_own(monkeypatch):
    assert seed_of_rank(5) == 5
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    assert seed_of_rank(5) == 23
