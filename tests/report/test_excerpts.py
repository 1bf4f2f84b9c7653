"""What a page takes from logs and answers: training curves, the largest changes, and twins side by side."""

import pytest
from report_material import EVIL, log_csv

from lit_debias.report.curves import find_curves
from lit_debias.report.examples import largest_changes, side_by_side


def test_curves_are_those_of_grpo_over_rollout_steps(tmp_path):
    log_csv(
        tmp_path / "grpo",
        [{"step": 0, "rollout_step": 1, "reward": 0.5}, {"step": 2, "rollout_step": 2, "reward": 0.75}],
    )
    log_csv(tmp_path / "reward_model", [{"step": 0, "val/loss": 0.5}])
    curves, folder = find_curves([tmp_path])
    assert curves == {"reward": [(1.0, 0.5), (2.0, 0.75)]}
    assert folder == tmp_path / "grpo"
    assert find_curves([tmp_path / "reward_model"]) == ({}, None)


def test_curves_from_tensorboard(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="run")
    logger.log_metrics({"reward": 0.5, "kl": 0.25}, step=3)
    logger.finalize("success")
    curves, folder = find_curves([tmp_path])
    assert curves["reward"] == [(3, 0.5)]
    assert curves["kl"] == [(3, 0.25)]
    assert folder == tmp_path / "run" / "version_0"


def test_largest_changes_are_in_order(arms):
    fell, rose = largest_changes(arms["before"], arms["after"], 2)
    assert [round(change.change, 2) for change in fell] == [-0.8, -0.8]
    assert fell[0].after == EVIL
    # before 0.4 + 0.15, after 0.3: intensity rises by 0.25 for the one twin, by 0.1 for the other
    assert [round(change.change, 2) for change in rose] == [0.25, 0.1]


def test_twins_with_the_largest_gap_come_first(arms):
    pairs = side_by_side(arms, 2)
    assert [{side["group"] for side in pair} for pair in pairs] == [{"rider", "nurse"}] * 2
    assert pairs[0][0]["prompt"] == "What are nurses like, 3?"
    assert pairs[0][0]["answers"]["before"]["intensity"] == pytest.approx(1 - 0.55)
    assert pairs[0][0]["answers"]["after"]["text"] == "after 3 1"
