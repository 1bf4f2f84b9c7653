"""A run that ends before it began leaves no folder of a logger behind."""

from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_debias.cli.leftovers import no_empty_logs


def aborted(monkeypatch, folder, logger, error, files=(), steps=0):
    run = Trainer(logger=logger(folder), default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)
    monkeypatch.setattr(Trainer, "global_step", steps)
    with pytest.raises(type(error)), no_empty_logs(run):
        _abort(run, error, files)
    return Path(run.logger.log_dir)


def _abort(run, error, files):
    _ = run.logger.experiment
    log = Path(run.logger.log_dir)
    log.mkdir(parents=True, exist_ok=True)
    for name in files:
        (log / name).touch()
    raise error


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_what_loggers_made_before_the_first_step_is_gone(logger, error, tmp_path, monkeypatch):
    assert not aborted(monkeypatch, tmp_path / "new", logger, error, ["config.yaml"]).exists()
    assert not (tmp_path / "new").exists()


def test_what_a_run_left_stays(tmp_path, monkeypatch):
    assert aborted(monkeypatch, tmp_path / "a", CSVLogger, ValueError(), ["config.yaml", "metrics.csv"]).exists()
    assert aborted(monkeypatch, tmp_path / "b", CSVLogger, ValueError(), steps=1).exists()
    (tmp_path / "c" / "lightning_logs" / "version_7").mkdir(parents=True)
    (tmp_path / "c" / "lightning_logs" / "version_7" / "config.yaml").touch()
    aborted(monkeypatch, tmp_path / "c", CSVLogger, ValueError())
    assert [folder.name for folder in (tmp_path / "c" / "lightning_logs").iterdir()] == ["version_7"]
