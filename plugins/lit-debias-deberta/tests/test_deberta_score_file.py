"""Scores on disk: the same floats again, for the same checkpoint only, whatever happens to the file."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DebertaV2Model

from lit_debias.errors import UserError
from lit_debias.rewards.score_file import NAME, ScoreFile
from lit_debias_deberta import DebertaFairness, DebertaNeutrality, RewardScorer
from lit_debias_deberta.checkpoint import MANIFEST, TEST

KEYS = [("Hire them?", "They work.", 32), ("Hire them?", "They work.", 16), ("Hire them? They", " work.", 32)]
ROWS = {key: (1 / 3 + number, 0.1) for number, key in enumerate(KEYS)}
PROMPTS, RESPONSES = ["Hire them?"] * 3, ["They work.", "They are lazy.", "No"]


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Rows of all forward passes."""
    rows = []
    forward = DebertaV2Model.forward
    monkeypatch.setattr(
        DebertaV2Model, "forward", lambda self, **kw: (rows.append(len(kw["input_ids"])), forward(self, **kw))[1]
    )
    return rows


def test_it_returns_the_same_floats_and_only_to_whom_they_belong(tmp_path):
    ScoreFile(tmp_path / "new" / "folder", "a").put(ROWS)
    assert ScoreFile(tmp_path / "new" / "folder", "a").get([*KEYS, ("x", "y", 32)]) == ROWS
    assert ScoreFile(tmp_path / "new" / "folder", "b").get(KEYS) == {}


def test_a_second_run_reads_nothing(checkpoint, tmp_path, read):
    first = RewardScorer.load(checkpoint, cache_dir=tmp_path / "cache").score(PROMPTS, RESPONSES)
    assert sum(read) == 3
    (checkpoint / TEST).write_text("{}")  # a test of the model in between changes nothing
    second = RewardScorer.load(checkpoint, cache_dir=tmp_path / "cache").score(PROMPTS, RESPONSES)
    assert sum(read) == 3
    assert torch.equal(first, second)


def test_another_checkpoint_and_another_length_do_not_hit(checkpoint, tmp_path, read):
    RewardScorer.load(checkpoint, cache_dir=tmp_path / "cache").score(PROMPTS, RESPONSES)
    RewardScorer.load(checkpoint, cache_dir=tmp_path / "cache").score(PROMPTS, RESPONSES, max_length=9)
    manifest = (checkpoint / MANIFEST).read_text()
    (checkpoint / MANIFEST).write_text(manifest.replace('"bias": 0.0', '"bias": 1.0'))  # the file keeps its size
    RewardScorer.load(checkpoint, cache_dir=tmp_path / "cache").score(PROMPTS, RESPONSES)
    assert sum(read) == 9


@pytest.mark.parametrize("damage", ["text", "inside"])
def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, caplog, damage):
    file = ScoreFile(tmp_path, "a")
    file.put(ROWS)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(b"no database" * 99 if damage == "text" else content[:100] + b"\xff" * 5000)
    assert file.get(KEYS) == {}
    [record] = caplog.records
    assert "is replaced by an empty one" in record.getMessage()
    file.put(ROWS)
    assert file.get(KEYS) == ROWS
    assert len(caplog.records) == 1


def test_a_file_that_is_busy_costs_time_and_no_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("lit_debias.rewards.score_file.BUSY", 0.01)
    file = ScoreFile(tmp_path, "a")
    file.put(ROWS)
    other = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    file.put({KEYS[0]: (0.0,)})
    assert file.get(KEYS) == {}
    other.close()
    assert ["not kept" in record.getMessage() for record in caplog.records] == [True, True]
    assert file.get(KEYS) == ROWS


def test_several_writers_lose_nothing(tmp_path):
    def write(number: int) -> None:
        for part in range(5):
            ScoreFile(tmp_path, "a").put({(str(number), str(part), 8): (number / 7, part / 7)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    keys = [(str(number), str(part), 8) for number in range(4) for part in range(5)]
    assert len(ScoreFile(tmp_path, "a").get(keys)) == 20


def test_a_reward_names_the_folder_and_others_of_the_checkpoint_use_it(checkpoint, tmp_path):
    neutrality = DebertaNeutrality(str(checkpoint))
    neutrality.setup(torch.device("cpu"))
    fairness = DebertaFairness(str(checkpoint), cache_dir=str(tmp_path / "cache"))
    fairness.setup(torch.device("cpu"))
    neutrality.scorer.score(PROMPTS, RESPONSES)
    assert len(fairness.scorer.file.get([(p, r, 32) for p, r in zip(PROMPTS, RESPONSES, strict=True)])) == 3


def test_mistakes_are_found_before_a_model_is_loaded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_debias_deberta.scorer.load_network", lambda folder: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"DebertaFairness: cache_dir '.*file' is no folder; write one"):
        DebertaFairness(str(checkpoint), cache_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match="is within the checkpoint; write a folder elsewhere"):
        DebertaFairness(str(checkpoint), cache_dir=str(checkpoint / "cache"))
    below = DebertaFairness(str(checkpoint), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="write a folder that can be made"):
        below.setup(torch.device("cpu"))
