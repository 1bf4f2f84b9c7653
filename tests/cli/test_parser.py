"""Configuration files of versions whose modules lay elsewhere."""

import pytest
import yaml
from command_line import config, run, write  # noqa: F401  (fixtures among them)

from lit_debias.cli.parser import with_present_paths


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("class_path: lit_debias.module.GRPO\n", "class_path: GRPO\n"),
        ('{"class_path": "lit_debias.rewards.aggregators.weighted.WeightedSum"}', '{"class_path": "WeightedSum"}'),
        ("class_path: 'lit_debias.policy.QLoRAPolicy'", "class_path: 'QLoRAPolicy'"),  # a package of that name is there
    ],
)
def test_a_class_whose_module_has_moved_goes_by_its_short_name(written, read):
    assert with_present_paths(written) == read


@pytest.mark.parametrize(
    "text",
    [
        "class_path: lit_debias.training.grpo.GRPO  # where it is",
        "class_path: GRPO",
        "class_path: torch.optim.NoSuch",
        "class_path: lit_debias_nosuch.reward.Nice",
        "prompt: lit_debias.module.GRPO",
    ],
)
def test_everything_else_stays(text):
    assert with_present_paths(text) == text


def test_a_kept_configuration_of_before_the_move_is_read(config, tmp_path, capsys):
    config["model"]["class_path"] = "lit_debias.module.GRPO"
    config["model"]["init_args"]["policy"]["class_path"] = "lit_debias.policy.QLoRAPolicy"
    config["model"]["init_args"]["aggregator"] = {
        "class_path": "lit_debias.rewards.aggregators.weighted.WeightedSum",
        "init_args": {"weights": dict.fromkeys(config["model"]["init_args"]["rewards"], 1.0)},
    }
    config["data"]["class_path"] = "lit_debias.data.base.PromptDataModule"
    config["trainer"]["callbacks"] = [{"class_path": "lit_debias.callbacks.CompletionTable"}]
    assert run("fit", "-c", write(tmp_path, config), "--print_config") == 0
    kept = yaml.safe_load(capsys.readouterr().out)
    arguments = kept["model"]["init_args"]
    found = [kept["model"], arguments["policy"], arguments["aggregator"], kept["data"], *kept["trainer"]["callbacks"]]
    assert [each["class_path"].rpartition(".")[2] for each in found] == [
        *("GRPO", "QLoRAPolicy", "WeightedSum", "PromptDataModule", "CompletionTable")
    ]


def test_a_class_that_never_was_is_named(config, tmp_path, capsys):
    config["model"]["class_path"] = "lit_debias.module.GRPOO"
    assert run("fit", "-c", write(tmp_path, config)) == 2
    assert "there is no class 'GRPOO'; did you mean 'GRPO'" in capsys.readouterr().err
