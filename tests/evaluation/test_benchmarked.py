import numpy as np
import pytest

from lit_debias.benchmark import Figure
from lit_debias.benchmark.statistics import Estimate
from lit_debias.evaluation.benchmarked import change, from_kept, to_kept

TOWARD = Figure("share", "toward", 0.5)


def around(value, reach=0.01, n=9):
    return Estimate(value + np.append(0, np.linspace(-reach, reach, 100)), n)


@pytest.mark.parametrize(
    ("before", "after", "clear", "nearer"),
    [
        (0.7, 0.6, True, True),
        (0.6, 0.7, True, False),
        (0.4, 0.48, True, True),  # rises to the ideal
        (0.7, 0.4, True, True),  # across it, and ends nearer
        (0.6, 0.4, True, None),  # across it, as far away as before
        (0.6, 0.6, False, None),
    ],
)
def test_a_figure_with_an_ideal_improves_when_it_comes_nearer(before, after, clear, nearer):
    found = change(around(after), around(before), TOWARD)
    assert found["difference"] == pytest.approx(after - before)
    assert (found["clear"], found["nearer"]) == (clear, nearer)


def test_only_figures_with_an_ideal_come_nearer():
    found = change(around(0.6), around(0.7), Figure("score", "lower", 0.0))
    assert found["clear"]
    assert "nearer" not in found


def test_a_change_between_figures_without_width_is_unknown():
    found = change(around(0.0, reach=0, n=1), around(1.0, reach=0, n=1), TOWARD)
    assert (found["difference"], found["low"], found["high"]) == (-1, None, None)
    assert (found["clear"], found["nearer"]) == (False, None)
    assert change(around(0.0, reach=0), around(1.0), TOWARD)["clear"]  # all right now, only most before


def test_kept_samples_are_short_and_close():
    generator = np.random.default_rng(0)
    estimate = Estimate(np.array([1 / 3, np.nan, *generator.normal(60, 1, 999)]), 7)
    kept = to_kept(estimate)
    assert len(kept["samples"]) <= 6 * 1000
    found = from_kept(kept)
    assert (found.value, found.n) == (1 / 3, 7)
    np.testing.assert_allclose(found.samples, estimate.samples, rtol=5e-4)
