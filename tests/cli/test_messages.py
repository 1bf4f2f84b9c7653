"""What a mistake in a value, a class or a trainer's option says: cause, place, and what to write; in one line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import tomllib
from command_line import config, run, said, write  # noqa: F401  (config is a fixture)

from lit_debias.cli.classes import fitting_classes
from lit_debias.cli.errors import one_line
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.plugins.official import CLASSES, missing_plugin

PLUGINS = Path(__file__).parents[2] / "plugins"


# -------------------------------------------------------------------- the trainer's options


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("strategy", "nosuch", "trainer.strategy: there is no 'nosuch'; known: auto, ddp, ddp_find_unused"),
        ("strategy", "dpp", "trainer.strategy: there is no 'dpp'; did you mean 'ddp'?"),
        ("accelerator", "cpuu", "trainer.accelerator: there is no 'cpuu'; did you mean 'cpu'?"),
        ("profiler", "nosuch", "trainer.profiler: there is no 'nosuch'; known: advanced, pytorch, simple, xla"),
        ("gradient_clip_algorithm", "x", "trainer.gradient_clip_algorithm: there is no 'x'; known: norm, value"),
        ("precision", "bf17", "trainer.precision: 'bf17' is none of its values; did you mean 'bf16'?"),
        ("precision", "half", "none of its values; known: 16, 16-mixed, 16-true, 32, 32-true, 64, 64-true, bf16"),
        ("max_steps", "ten", "trainer.max_steps: 'ten' is not a whole number"),
        ("benchmark", "maybe", "trainer.benchmark: 'maybe' is not true or false or null"),
        ("limit_val_batches", "all", "trainer.limit_val_batches: 'all' is not a whole number or a number or null"),
        ("logger", "wandb", "trainer.logger: there is no class 'wandb'; known: CSVLogger, CometLogger, MLFlowLogger"),
        ("callbacks", "EarlyStop", "trainer.callbacks: there is no class 'EarlyStop'; did you mean 'EarlyStopping'?"),
        ("plugins", "TorchCheckpoint", "there is no class 'TorchCheckpoint'; did you mean 'TorchCheckpointIO'?"),
        ("devices", "many", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        ("max_time", "soon", "trainer: `Timer(duration='soon')` is not a valid duration. Expected"),
        ("val_check_interval", "often", "trainer: Invalid time format for `val_check_interval`: 'often'"),
    ],
)
def test_the_trainers_options(option, value, message, config, tmp_path, capsys):
    config["trainer"].pop(option, None)
    assert run("fit", "-c", write(tmp_path, config), f"--trainer.{option}", value) == 2
    assert message in said(capsys)


def test_a_gpu_where_there_is_none(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert run("fit", "-c", write(tmp_path, config), "--trainer.accelerator", "gpu") == 2
    assert said(capsys) == "trainer.accelerator: there is no GPU here that PyTorch can use; write auto or cpu"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "demo.yaml"], "'demo.yaml' stands alone; write -c demo.yaml"),
        (["evaluate", "configs/x.yml"], "'configs/x.yml' stands alone; write -c configs/x.yml"),
        (["doctor", "gpu"], "'gpu' belongs to no option; write --OPTION gpu, or take it out"),
    ],
)
def test_words_that_stand_alone(args, message, capsys):
    assert run(*args) == 2
    assert said(capsys) == message


# -------------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("owner", "key", "some", "not_there"),
    [
        ("lit_debias.GRPO", "rewards", {"SoftOverlong", "Fluency"}, {"GDPO", "Reward"}),
        ("lit_debias.GRPO", "judges", {"SoftOverlong"}, {"GDPO"}),
        ("lit_debias.GRPO", "loss", {"DAPOLoss", "GRPOLoss"}, {"PolicyLoss", "ClippedLoss", "GRPO"}),
        ("lit_debias.GRPO", "engine", {"LocalEngine"}, {"RolloutEngine"}),
        ("lit_debias.GRPO", "aggregator", {"GDPO", "WeightedSum"}, {"Aggregator", "Weighing", "Scheduled"}),
        ("lit_debias.GRPO", "optimizer", {"AdamW", "SGD"}, {"Optimizer"}),
        ("lit_debias.GRPO", "lr_scheduler", {"OneCycleLR", "ReduceLROnPlateau"}, {"LRScheduler", "_LRScheduler"}),
        ("lit_debias_consistency.CounterfactualConsistency", "judge", {"SoftOverlong"}, {"GDPO"}),
        ("", "trainer.callbacks", {"ModelCheckpoint", "CompletionTable"}, {"Callback", "_LRCallback", "GRPO"}),
        ("", "trainer.logger", {"CSVLogger", "WandbLogger"}, {"Logger", "DummyLogger"}),
        ("", "model", {"GRPO", "SFT", "DPO"}, {"AdapterModule", "LightningModule", "Baseline"}),
        ("", "data", {"PromptDataModule"}, {"TableDataModule"}),
        ("", "no_such_option", set(), {"GRPO"}),
    ],
)  # fmt: skip
def test_classes_that_fit(owner, key, some, not_there):
    importlib.import_module("lit_debias.cli.training")
    get_plugin_manager()
    found = fitting_classes(owner, key)
    assert some <= found
    assert not not_there & found


def official() -> dict[str, set[str]]:
    """Return distribution -> what its plugin offers, for those that are in this repository."""
    found: dict[str, set[str]] = {}
    for component in components(get_plugin_manager()):
        found.setdefault(component.distribution, set()).add(component.name)
    return {name: found[name] for name in CLASSES}


def test_the_list_of_official_classes_is_that_of_the_plugins():
    folders = {tomllib.loads(file.read_text())["project"]["name"] for file in PLUGINS.glob("*/pyproject.toml")}
    assert folders - {"lit-debias-example"} == set(CLASSES)
    for distribution, offered in official().items():
        assert offered == set(CLASSES[distribution]) - {"RewardModel", "PreferenceMixture"}


@pytest.fixture
def without_fluency(monkeypatch):
    """Let the plugin of Fluency be one that is not installed."""
    from lit_debias.plugins import official as module

    monkeypatch.delitem(sys.modules, "lit_debias_fluency", raising=False)
    monkeypatch.setattr(module, "find_spec", lambda name: None)


ADVICE = "comes with lit-debias-fluency, which is not installed: pip install lit-debias-fluency"


@pytest.mark.usefixtures("without_fluency")
@pytest.mark.parametrize("name", ["Fluency", "Variety", "lit_debias_fluency.Fluency", "lit_debias_fluency.reward.X"])
def test_a_class_of_a_plugin_that_is_not_installed(name):
    assert missing_plugin(name) == f"'{name}' {ADVICE}"
    wrong = f"Problem with given class_path '{name}':\n    No module named 'lit_debias_fluency'"
    report = f'Parser key "rewards":\n  {wrong if "." in name else f"Expected a dot import path string: {name}"}'
    assert one_line(report) == f"rewards: '{name}' {ADVICE}"


@pytest.mark.parametrize(
    "command", ["plugins Fluency", "rewards score Fluency a", "fit --model.rewards.a.help Fluency"]
)
def test_every_command_says_what_to_install(command, capsys, monkeypatch, request):
    kept = [one for one in components(get_plugin_manager()) if one.distribution != "lit-debias-fluency"]
    for place in ("cli.inspect", "cli.rewards", "cli.training"):
        monkeypatch.setattr(importlib.import_module(f"lit_debias.{place}"), "components", lambda manager: kept)
    monkeypatch.setattr("lit_debias.cli.main.get_plugin_manager", lambda: None)
    for place in ("cli.inspect", "cli.rewards", "cli.training"):
        monkeypatch.setattr(f"lit_debias.{place}.get_plugin_manager", lambda: None)
    request.getfixturevalue("without_fluency")
    assert run(*command.split()) == 2
    assert ADVICE in said(capsys)


def test_a_plugin_that_is_kept_out_is_not_to_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "lit_debias_fluency", None)
    assert "which LIT_DEBIAS_ALLOWED_PLUGINS or LIT_DEBIAS_DISABLED_PLUGINS keeps out" in missing_plugin("Fluency")


@pytest.mark.parametrize("name", ["SoftOverlong", "Nonsense", "torch.nn.Linear"])
def test_other_classes_come_with_no_plugin(name):
    assert missing_plugin(name) is None


def test_a_module_that_is_not_there(config, tmp_path, capsys):
    config["model"]["init_args"]["rewards"]["mine"] = {"class_path": "no_such.module.Mine"}
    assert run("fit", "-c", write(tmp_path, config)) == 2
    line = said(capsys)
    assert "'no_such.module.Mine': there is no module 'no_such'; install it, or put its folder on PYTHONPATH" in line


# -------------------------------------------------------------------- classes that fail while they are built


RAISING = """
from lit_debias import Reward

class OddError(Exception):
    pass

class Raising(Reward):
    def __init__(self, what: str) -> None:
        build(what)

    def score(self, batch):
        return [1.0 for _ in batch.completions]

def build(what):
    if what == "empty":
        raise StopIteration
    raise {"key": KeyError, "odd": OddError, "value": ValueError}[what]("oops")
"""


@pytest.mark.parametrize(
    ("what", "cause"),
    [("key", "KeyError: 'oops'"), ("odd", "OddError: oops"), ("value", "ValueError: oops"), ("empty", "StopIteration")],
)
def test_a_reward_that_fails_while_it_is_built(what, cause, config, tmp_path, capsys, monkeypatch):
    (tmp_path / "raising_reward.py").write_text(RAISING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "raising_reward", raising=False)
    config["model"]["init_args"]["rewards"]["mine"] = {
        "class_path": "raising_reward.Raising",
        "init_args": {"what": what},
    }
    assert run("fit", "-c", write(tmp_path, config)) == 2
    line = (
        RAISING.splitlines().index("        raise StopIteration" if what == "empty" else RAISING.splitlines()[-1]) + 1
    )
    assert said(capsys) == f"Raising cannot be built: {cause} (raising_reward.py, line {line})"


def test_a_fault_of_our_own_keeps_its_traceback(config, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise KeyError("ours")

    monkeypatch.setattr("lit_debias.cli.training.TrainingCLI.instantiate_classes", fail)
    with pytest.raises(KeyError):
        run("fit", "-c", write(tmp_path, config))
