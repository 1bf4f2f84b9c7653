"""The comparison of aggregators: the page agrees with the kept figures, and they with what a run gives now."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks import aggregators


def kept() -> dict:
    return json.loads(aggregators.RESULT.read_text())["results"]


def test_the_page_shows_the_committed_figures():
    shown = aggregators.PAGE.read_text().split(aggregators.START)[1].split(aggregators.END)[0]
    assert shown.splitlines() == list(aggregators.table(kept()))


def test_every_arm_has_every_seed_and_column():
    assert list(kept()) == list(aggregators.ARMS)
    for runs in kept().values():
        assert [list(run) for run in runs] == [list(aggregators.COLUMNS)] * len(aggregators.SEEDS)


@pytest.mark.parametrize("arm", ["untrained", "Lagrangian"])
def test_a_run_gives_the_committed_figures(arm):
    build = aggregators.ARMS[arm]
    assert aggregators.train(build and build(), seed=1) == pytest.approx(kept()[arm][1], abs=0.005)


def test_outcome_by_hand():
    # two responses, chances 1/4 and 3/4; the minority has a quarter of the prompts
    measured = {name: torch.tensor([[0.0, 0.4], [0.0, 0.4]]) for name in aggregators.REWARDS}
    measured["fairness"] = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    task = aggregators.Task(torch.zeros(2, 5), measured, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    found = task.outcome(torch.tensor([0.25, 0.75]).log())
    fairness = 0.75 * 0.75 + 0.25 * 0.25
    expected = (fairness, 0.3, 0.3, 0.3, 0.3, 0.25, 0.4, 1 - fairness)
    assert found == pytest.approx(dict(zip(aggregators.COLUMNS, expected, strict=True)))


def test_table_by_hand():
    runs = [dict.fromkeys(aggregators.COLUMNS, value) for value in (0.1, 0.3)]
    [*_, row] = aggregators.table({"mine": runs})
    assert row == "| mine |" + " 0.20 ± 0.14 |" * len(aggregators.COLUMNS)
