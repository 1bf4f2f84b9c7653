"""A benchmark of one's own in an evaluation: names, progress, and faults in one line."""

from __future__ import annotations

import pytest
from numbers_benchmark import Number, Numbers, Undescribed

from lit_debias.benchmark import Benchmark, CannotAskError, ClusterBootstrap, answered
from lit_debias.benchmark.measuring import Progress, about, check, measure, samples
from lit_debias.errors import UserError
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.progress import ignore


def measured(benchmark, advance=ignore):
    [sample] = samples([benchmark], "", None, 0)
    return measure(None, sample, 0, 5, RewardSuite({}), advance)


def test_figures_that_rest_on_nothing_are_left_out():
    found = measured(Numbers())
    assert list(found) == ["numbers/mean"]
    assert (found["numbers/mean"].value, found["numbers/mean"].n) == (1.5, 4)


def test_a_name_may_depend_on_the_options():
    class Named(Numbers):
        def __init__(self, count: int = 4) -> None:
            super().__init__(count)
            self.name = f"numbers_{count}"

    assert list(measured(Named(3))) == ["numbers_3/mean"]
    check([Named(3), Named(4)], "")
    with pytest.raises(UserError, match="'numbers_3' is there twice; leave one out"):
        check([Named(3), Named(3)], "")
    with pytest.raises(UserError, match="name='numbers_a/b'; write letters"):
        check([Named("a/b")], "")


def test_what_a_class_lacks_is_named():
    class Nameless(Benchmark):
        read = ask = score = None

    with pytest.raises(UserError, match="benchmark Nameless has no 'name'; write it into the class"):
        check([Nameless()], "")


def test_who_needs_data_says_where():
    class Needy(Numbers):
        needs_data = True

    with pytest.raises(UserError, match=r"where are the files of numbers\? write benchmark_data: FOLDER, or hub"):
        check([Needy()], "")


def test_a_part_stands_in_front_of_the_figure_or_behind_it():
    labels = [about(Numbers(), name).label for name in ("mean", "north_side/mean", "mean/old")]
    assert labels == ["Numbers: mean", "Numbers (north side): mean", "Numbers (old): mean"]


def failing(**methods):
    return type("Failing", (Numbers,), methods)()


def fails(*_):
    raise ValueError("no\nluck")


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        (failing(ask=fails), r"benchmark 'numbers': ask\(\) failed in .*test_measuring.py, line \d+: .*no luck"),
        (failing(score=fails), r"benchmark 'numbers': score\(\) failed in .*benchmarks check Failing says more"),
        (failing(read=fails), "benchmarks: numbers has another layout"),
        (failing(read=lambda self, folder: []), "benchmarks: numbers has no items"),
        (failing(ask=lambda self, model, items: [1.0]), r"ask\(\) returned 1 answers to 4 items"),
        (Undescribed(), r"score\(\) returns 'none', of which 'about' says nothing; write mean, or describe it there"),
    ],
)
def test_a_fault_of_a_benchmark_is_one_line(benchmark, message):
    with pytest.raises(UserError, match=message) as caught:
        measured(benchmark)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_asked_is_told_from_a_fault():
    def refuses(*_):
        raise CannotAskError("the model has no chat template")

    with pytest.raises(CannotAskError):
        measured(failing(ask=refuses))


def test_progress_counts_items_however_often_they_are_asked():
    told = []
    progress = Progress(2, 5, told.append)
    for asked in (3, 3, 3, 9):
        progress.tell(asked)
    assert told == [1, 2, 1, 1]
    progress.finish()
    assert sum(told) == 5
    silent = []
    measured(failing(ask=lambda self, model, items: [0.0] * len(items)), silent.append)
    assert silent == [4]


def test_who_did_not_answer_is_left_out_and_draws_stay():
    clusters = ClusterBootstrap(list("abcd"), 20, 0)
    items = [Number(*"aaa", float(i)) for i in range(4)]
    kept, answers, some = answered(items, [0.0, None, 4.0, None], clusters)
    assert ([item.value for item in kept], answers) == ([0.0, 2.0], [0.0, 4.0])
    expected = clusters.mean([0.0, None, 4.0, None])
    assert some.mean(answers).samples.tolist() == pytest.approx(expected.samples.tolist(), nan_ok=True)
    assert answered([], [], ClusterBootstrap([], 20, 0))[2].mean([]).n == 0
