"""What the terminal shows of a run: at 80 columns, whole, and nothing that only a library's author can act on."""

import io
import logging
import os
import re
import subprocess
import sys
import warnings

import pytest
import rich
from grpo_runs import grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning import Callback
from rich.console import Console

from lit_debias.data import PromptDataModule
from lit_debias.support.terminal import importing, quiet_libraries
from lit_debias.training.callbacks import AdapterExport, CompletionTable, ProgressLine
from lit_debias.training.callbacks.completions import as_table
from lit_debias.training.callbacks.progress import Fitting, results_table, short

FIGURES = {"reward": 0.48123, "eval_reward": 0.528, "tokens_per_second": 6680.9}


def shown(what, width: int, terminal: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    console.print(what)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (60, "reward 0.481 eval_reward 0.528 tokens_per_second 6681"),
        (40, "reward 0.481 eval_reward 0.528"),
        (15, "reward 0.481"),
        (11, ""),
    ],
)
def test_a_figure_stands_beside_its_name_or_not_at_all(width, line):
    assert shown(Fitting(FIGURES), width) == [line]


@pytest.mark.parametrize(
    ("value", "text"), [(0.52109, "0.521"), (6680.9, "6681"), (123456.7, "123457"), (0, "0"), (5e-05, "5e-05")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text


@pytest.fixture
def narrow(monkeypatch) -> Console:
    """The console of progress bars: a terminal of 80 columns, kept in memory."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    use(console, monkeypatch)
    return console


def use(console: Console, monkeypatch) -> None:
    monkeypatch.setattr(rich, "_console", console)
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress.reconfigure", lambda: None)


def bar_lines(console: Console) -> list[str]:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def run_with_bar(model, prompts, folder, **options) -> None:
    options = {"max_steps": 6, "max_epochs": -1, "limit_val_batches": 1, "val_check_interval": 2, **options}
    t = trainer(folder, enable_progress_bar=True, callbacks=[ProgressLine(), *options.pop("callbacks", [])], **options)
    t.fit(grpo(model), PromptDataModule(str(prompts), batch_size=2, val_splits="train"))


def test_the_bar_is_one_line_of_whole_figures_and_counts_to_the_last_step(
    tiny_model, prompts, tmp_path, narrow, capsys
):
    run_with_bar(tiny_model, prompts, tmp_path)
    lines = bar_lines(narrow)
    last = next(line for line in reversed(lines) if line.startswith("Epoch"))
    assert re.fullmatch(r"Epoch 2 +━+ 2/2 0:\d\d:\d\d • 0:00:00 reward [\d.]+ eval_reward [\d.]+( kl [\d.]+)?", last)
    bars = [line for line in lines if re.match("Epoch [12] |Validation ", line)]
    assert max(map(len, bars)) <= 80
    assert not [line for line in lines if line not in bars]
    assert capsys.readouterr().out.startswith("lit-debias: the adapter is in")  # below the bar


def test_the_bar_of_another_process_than_the_first_says_nothing_of_validation(tiny_model, prompts, tmp_path, narrow):
    class AsLightning(Callback):
        def setup(self, trainer, pl_module, stage):
            trainer.progress_bar_callback.disable()

    run_with_bar(tiny_model, prompts, tmp_path, max_steps=2, callbacks=[AsLightning()])
    assert not [line for line in bar_lines(narrow) if line.startswith("Validation")]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_epoch_counts_to_its_end(tiny_model, prompts, tmp_path, narrow):
    from lightning.pytorch.callbacks import ModelCheckpoint

    keep = ModelCheckpoint(dirpath=tmp_path / "kept", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    run_with_bar(tiny_model, prompts, tmp_path, max_steps=2, enable_checkpointing=True, callbacks=[keep])
    narrow.file.truncate(0)
    t = trainer(
        tmp_path,
        max_steps=4,
        max_epochs=-1,
        enable_checkpointing=True,
        enable_progress_bar=True,
        callbacks=[ProgressLine(), keep],
    )
    data = PromptDataModule(str(prompts), batch_size=2)
    t.fit(grpo(tiny_model), data, ckpt_path=str(tmp_path / "kept/step=2.ckpt"))
    assert " 4/4 " in bar_lines(narrow)[-1]


def test_a_table_stands_above_the_bar(tiny_model, prompts, tmp_path, narrow):
    run_with_bar(tiny_model, prompts, tmp_path, callbacks=[CompletionTable(every_n_steps=2, rows=2)], max_steps=2)
    lines = bar_lines(narrow)
    assert "rollout step 2" in [line.strip() for line in lines]  # on a line of its own
    assert lines[-1].startswith("Epoch 1")


def test_a_file_gets_a_line_now_and_then(tiny_model, prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lit_debias.support.progress.QUIET_SECONDS", 0.0)
    use(Console(file=io.StringIO(), force_terminal=False), monkeypatch)
    run_with_bar(tiny_model, prompts, tmp_path, max_steps=2)
    *lines, told = capsys.readouterr().out.splitlines()
    assert told.startswith("lit-debias: the adapter is in ")
    assert [line.split(" reward")[0] for line in lines] == ["Epoch 1: 1/2", "Epoch 1: 2/2", "Validation: 1/1"]
    assert re.search(r"reward [\d.]+", lines[0])


NAMES = ("fairness", "neutrality", "relevance", "fluency", "variety", "informativeness_of_answers")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_room_for_any_number_of_rewards(width):
    scores = dict.fromkeys(NAMES, 0.25)
    rows = [{"prompt": "What do people " * 9, "completion": "They do " * 20, "scores": scores, "advantage": -1.5}]
    lines = shown(as_table(rows, "rollout step 4"), width)
    assert max(map(len, lines)) <= width
    for name, value in {"advantage": "-1.50", **dict.fromkeys(NAMES, "0.25")}.items():
        assert any(re.search(rf"│ {name} +{value} │$", line) for line in lines)
    assert any("What do people What" in line for line in lines)  # more than a word a line


def test_results_are_one_figure_a_line_in_four_digits():
    table = results_table("test", {"test_rewards/fairness/mean": 0.5210987654321, "test_[red]": 12345.6})
    lines = shown(table, 80)
    assert [line.split() for line in lines[-2:]] == [
        ["test_rewards/fairness/mean", "0.5211"],
        ["test_[red]", "12346"],
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_last_line_of_a_fit_names_the_adapter(terminal, tiny_model, prompts, tmp_path, monkeypatch):
    screen = io.StringIO()
    use(Console(file=screen, width=80, force_terminal=terminal, color_system=None), monkeypatch)
    monkeypatch.setattr("builtins.print", lambda *words, **_: screen.write(" ".join(words) + "\n"))
    run_with_bar(tiny_model, prompts, tmp_path, max_steps=1, callbacks=[AdapterExport(str(tmp_path / "a"))])
    assert "lit-debias: the adapter is in" in screen.getvalue().strip().splitlines()[-1]


def test_bars_of_libraries_show_on_terminals_alone():
    code = (
        "from lit_debias.support.terminal import quiet_libraries; quiet_libraries()\n"
        "from tqdm import tqdm; list(tqdm(range(2), delay=0))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_imports_are_announced_at_once_on_a_terminal_and_elsewhere_when_they_take_long(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with importing("fit", "no_such_module"):
        assert terminal.getvalue().startswith("lit-debias fit: loading PyTorch")
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with importing("fit", "no_such_module", patience=0) as timer:
        timer.join()
    assert log.getvalue().count("loading PyTorch") == 1
    for module, patience in (("no_such_module", 3600), ("sys", 0)):
        with importing("fit", module, patience):
            pass
    assert log.getvalue().count("loading PyTorch") == 1


@pytest.mark.parametrize("package", ["pytorch", "fabric"])
def test_advice_of_lightning_is_not_shown_and_other_lines_are(package, caplog):
    quiet_libraries()
    logger = logging.getLogger(f"lightning.{package}.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.addHandler(caplog.handler)
        for line in ("💡 Tip: buy this", "TPU available: False, using: 0", "`Trainer.fit` stopped: `max_steps=2`"):
            logger.info(line)
        logger.info("Restored all states from the checkpoint")
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"Restored all states from the checkpoint"}


def test_a_resumed_run_is_not_warned_that_its_folder_is_another_one():
    with warnings.catch_warnings():
        quiet_libraries()
        warnings.warn("The dirpath has changed from 'a' to 'b'", stacklevel=1)  # an error where it is not silenced
        with pytest.raises(UserWarning, match="interval"):
            warnings.warn("smaller than the logging interval", stacklevel=1)
