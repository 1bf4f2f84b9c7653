import numpy as np
import pytest

from lit_debias.benchmark.statistics import ClusterBootstrap, Estimate, compare, pool, pool_measures


def test_mean_leaves_none_out_and_counts_what_is_there():
    estimate = ClusterBootstrap(["a", "b", "c"], 50, 0).mean([0.0, None, 1.0])
    assert estimate.value == 0.5
    assert estimate.n == 2


def test_every_sample_draws_as_many_clusters_as_there_are():
    bootstrap = ClusterBootstrap(["a", "a", "b", "c"], 200, 0)
    assert bootstrap.weights.shape == (201, 3)
    assert (bootstrap.weights[0] == 1).all()
    assert (bootstrap.weights.sum(axis=1) == 3).all()


def test_every_sample_draws_as_many_clusters_of_each_stratum():
    strata = ["prompts", "prose", "prompts", "prose", "prompts"]
    apart = ClusterBootstrap(["a", "x", "b", "y", "a"], 200, 0, strata).weights
    assert (apart[0] == 1).all()
    assert (apart[:, [0, 2]].sum(axis=1) == 2).all()  # a and b
    assert (apart[:, [1, 3]].sum(axis=1) == 2).all()  # x and y
    assert apart[:, 1].std() > 0
    # what is added to the data leaves the draws of the first stratum as they were
    assert (apart[:, [0, 2]] == ClusterBootstrap(["a", "b", "a"], 200, 0).weights).all()


def test_twins_are_resampled_together():
    # Each twin pair sums to 1, so no sample can have another mean; rows drawn alone would.
    estimate = ClusterBootstrap(["a", "a", "b", "b"], 200, 0).mean([0.0, 1.0, 0.25, 0.75])
    np.testing.assert_allclose(estimate.samples, 0.5)
    apart = ClusterBootstrap(["a", "b", "c", "d"], 200, 0).mean([0.0, 1.0, 0.25, 0.75])
    assert apart.samples.std() > 0.05


def test_interval_matches_the_normal_approximation():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    estimate = ClusterBootstrap([str(i) for i in range(400)], 2000, 0).mean(list(values))
    half = 1.96 * values.std() / 20
    low, high = estimate.interval
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_ratio_weighs_by_denominator():
    # 2 + 9 over 1 + 3, not the mean of 2 and 3
    assert ClusterBootstrap(["a", "b"], 10, 0).ratio([2.0, 9.0], [1.0, 3.0]).value == 2.75


def test_equal_seeds_give_equal_draws():
    first, second, other = (ClusterBootstrap(["a", "b", "c"], 100, seed).weights for seed in (3, 3, 4))
    assert (first == second).all()
    assert (first != other).any()


def test_worst_group_needs_enough_values():
    bootstrap = ClusterBootstrap(list("abcde"), 50, 0)
    values, groups = [0.9, 0.2, 0.4, 0.1, None], ["rare", "x", "x", "y", "y"]
    assert bootstrap.worst(values, groups, 1).value == 0.9
    assert bootstrap.worst(values, groups, 2).value == pytest.approx(0.3)
    assert bootstrap.worst(values, groups, 3).n == 0


def test_wasserstein_of_one_stratum_is_the_mean_gap_of_sorted_scores():
    # sorted: 0.1, 0.5 against 0.2, 0.9 -> (0.1 + 0.4) / 2
    pairs = [(0, 0.5, 0.2), (1, 0.1, 0.9)]
    bootstrap = ClusterBootstrap(["a", "b"], 20, 0)
    assert bootstrap.wasserstein(pairs, ["s", "s"]).value == pytest.approx(0.25)
    # in strata of one pair each, it is the mean of |0.5 - 0.2| and |0.1 - 0.9|
    assert bootstrap.wasserstein(pairs, ["s", "t"]).value == pytest.approx(0.55)


def test_wasserstein_replicates_are_those_of_the_resampled_pairs():
    pairs = [(0, 0.5, 0.2), (1, 0.1, 0.9), (2, 0.4, 0.4)]
    bootstrap = ClusterBootstrap(["a", "b", "c"], 20, 0)
    samples = bootstrap.wasserstein(pairs, ["s"] * 3).samples
    for weights, sample in zip(bootstrap.weights, samples, strict=True):
        drawn = np.repeat(np.array(pairs)[:, 1:], weights.astype(int), axis=0)
        assert sample == pytest.approx(np.abs(np.sort(drawn[:, 0]) - np.sort(drawn[:, 1])).mean())


def test_nothing_to_measure_is_null():
    estimate = ClusterBootstrap(["a"], 5, 0).mean([None])
    assert estimate.as_dict() == {"value": None, "low": None, "high": None, "n": 0}


def test_compare_is_paired():
    # every sample of the one is half that of the other: the relative change has no spread, whatever the draws
    baseline = Estimate(np.array([4.0, 2.0, 6.0, 4.0]), 3)
    change = compare(Estimate(baseline.samples / 2, 3), baseline)
    assert change["difference"] == -2.0
    assert (change["relative"], change["relative_low"], change["relative_high"]) == (-0.5, -0.5, -0.5)
    assert change["clear"]


def test_compare_is_not_clear_when_the_interval_holds_0():
    baseline = Estimate(np.zeros(101), 1)
    change = compare(Estimate(np.linspace(-1, 1, 101), 1), baseline)
    assert not change["clear"]
    assert change["relative"] is None


def constant(value, draws=4000):
    return Estimate(np.full(1 + draws, float(value)), 5)


def noisy(value, seed=0):
    return Estimate(value + np.append(0, np.random.default_rng(seed).normal(0, 0.5, 4000)), 5)


def test_a_pool_of_one_is_the_one():
    alone = noisy(1)
    assert pool([alone], "0/sft") is alone
    assert "by_replica" not in alone.as_dict()


def test_a_pool_of_equals_is_like_each():
    pooled = pool([noisy(1)] * 3, "0/sft")
    np.testing.assert_allclose(pooled.samples, noisy(1).samples)
    assert pooled.as_dict()["by_replica"] == [1, 1, 1]
    assert pooled.n == 5  # three seeds, not three times the prompts


def test_a_pool_spreads_by_the_replicas_that_are_drawn():
    pooled = pool([constant(0), constant(1), constant(2)], "0/sft")
    assert pooled.value == 1
    # means of three draws from 0, 1, 2: variance (2/3) / 3; all three the lowest in 1 of 27 samples
    assert pooled.samples[1:].std() == pytest.approx(np.sqrt(2 / 9), abs=0.02)
    assert (pooled.samples[1:] == 0).mean() == pytest.approx(1 / 27, abs=0.01)
    assert pooled.interval == (0, 2)


def test_a_pool_is_wider_than_with_its_seeds_held_fixed():
    replicas = [noisy(0), noisy(0.5), noisy(1)]
    fixed = Estimate(np.mean([replica.samples for replica in replicas], axis=0), 5)
    low, high = pool(replicas, "0/sft").interval
    assert low < fixed.interval[0] - 0.05
    assert high > fixed.interval[1] + 0.05
    np.testing.assert_allclose(pool([noisy(1), noisy(1)], "").samples, noisy(1).samples)  # prompts are drawn together


def test_arms_draw_their_replicas_apart_and_measures_of_one_arm_together():
    replicas = [constant(0), constant(1)]
    assert compare(pool(replicas, "0/sft"), pool(replicas, "0/sft"))["high"] == 0
    assert compare(pool(replicas, "0/sft"), pool(replicas, "0/after"))["high"] > 0


def test_what_one_replica_lacks_the_pool_lacks():
    found = pool_measures([{"a": constant(0), "b": constant(1)}, {"b": constant(2)}], "0/sft")
    assert {name: estimate.value for name, estimate in found.items()} == {"b": 1.5}
    gaps = Estimate(np.array([1.0, np.nan, np.nan]), 1)
    assert np.isnan(pool([gaps, gaps], "0/sft").samples).tolist() == [False, True, True]
