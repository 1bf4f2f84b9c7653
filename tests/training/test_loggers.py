"""Metrics and the table of completions arrive in each logger, without a network."""

import csv
import json

import pytest
from grpo_runs import grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lit_debias.data import PromptDataModule
from lit_debias.training.callbacks import CompletionTable

METRICS = {"reward", "loss", "grad_norm", "completions/mean_length", "rewards/vowels/mean"}
MARKUP = "a | b <script>"


@pytest.fixture
def fit(tiny_model, prompts, tmp_path, monkeypatch):
    """Return a function that trains two steps with a logger, whose completions hold what would break a table."""
    monkeypatch.setattr("lit_debias.policy.policy.Policy.decode", lambda self, ids, mask: [[MARKUP] * 4] * len(ids))

    def run(logger) -> None:
        table = CompletionTable(every_n_steps=1, rows=2, show=False)
        t = trainer(tmp_path, max_steps=2, logger=logger, callbacks=[table])
        t.fit(grpo(tiny_model), PromptDataModule(str(prompts), batch_size=2))

    return run


def test_csv(fit, tmp_path):
    logger = CSVLogger(str(tmp_path), name="x")
    fit(logger)
    folder = tmp_path / "x/version_0"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= METRICS
    assert [float(row["reward"]) for row in rows if row["reward"]] == pytest.approx(
        [2 / 14] * 2
    )  # MARKUP has two vowels
    written = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert [row["rollout_step"] for row in written] == [1, 1, 2, 2]


def test_tensorboard(fit, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(TensorBoardLogger(str(tmp_path), name="x"))
    events = EventAccumulator(str(tmp_path / "x/version_0"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= METRICS
    assert [event.step for event in events.Scalars("reward")] == [0, 1]
    texts = events.Tensors("completions/text_summary")
    assert len(texts) == 2
    lines = texts[0].tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| prompt | completion | advantage | vowels |"
    assert lines[2].split(" | ")[1] == "a &#124; b &lt;script&gt;"
    assert {line.count("|") for line in lines} == {5}


@pytest.mark.filterwarnings("default")  # of a library that is none of ours
def test_weights_and_biases(fit, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="x", save_dir=str(tmp_path), offline=True)
    fit(logger)
    wandb.teardown()  # waits until the process that writes has written
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (kept,) = run.glob("*.wandb")
    content = kept.read_bytes()
    assert all(name.encode() in content for name in METRICS)
    tables = sorted((run / "files/media/table").glob("completions*.table.json"))
    assert len(tables) == 2
    table = json.loads(tables[0].read_text())
    assert table["columns"] == ["prompt", "completion", "advantage", "vowels"]
    assert [row[1] for row in table["data"]] == [MARKUP] * 2


@pytest.mark.filterwarnings("default")
def test_mlflow(fit, tmp_path):
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = MLFlowLogger("x", tracking_uri=uri, artifact_location=(tmp_path / "artifacts").as_uri())
    fit(logger)
    client, run_id = logger.experiment, logger.run_id
    assert set(client.get_run(run_id).data.metrics) >= METRICS
    assert [point.step for point in client.get_metric_history(run_id, "reward")] == [0, 1]
    paths = [file.path for file in client.list_artifacts(run_id, "completions")]
    assert paths == ["completions/step_000001.md", "completions/step_000002.md"]
    assert "a &#124; b &lt;script&gt;" in (tmp_path / "artifacts" / run_id / "artifacts" / paths[0]).read_text()
