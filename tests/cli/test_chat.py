"""``lit-debias chat``: both answers to a prompt, with the same random numbers, and what the judges say of them."""

import io
import sys

import pytest
import torch
from command_line import run, said
from rich.console import Console
from support import loaded, perturb

from lit_debias.cli.chat import Answer, as_table, chat, side_by_side
from lit_debias.errors import UserError
from lit_debias.export.folder import write_adapter
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

PROMPT = "people from the north are"
JUDGE = "{length: {class_path: SoftOverlong, init_args: {max_new_tokens: 9, buffer: 4}}}"


class Likelihood(Reward):
    """Sum of log-probabilities under the untouched base; no opinion of what is empty."""

    needs_reference_logprobs = True

    def score(self, batch):
        return [float(row.sum()) if len(row) else None for row in batch.reference_logprobs]


@pytest.fixture(scope="module")
def policy(tiny_model):
    policy = loaded(tiny_model)
    perturb(policy)
    return policy


@pytest.fixture(scope="module")
def adapter(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    write_adapter(policy, folder)
    return folder


def test_each_arm_answers_as_it_would_alone_and_nothing_stays_changed(tiny_model, policy):
    engine, batch = LocalEngine(8), PromptBatch([PROMPT])
    expected = {
        "untouched": engine.generate(loaded(tiny_model), batch, 1, seed=5),
        "trained": engine.generate(policy, batch, 1, seed=5),
    }
    before = [parameter.detach().clone() for parameter in policy.trainable_parameters().values()]
    found = side_by_side(policy, engine, RewardSuite({"likely": Likelihood()}), PROMPT, seed=5, greedy=False)
    assert {arm: answer.text for arm, answer in found.items()} == {arm: r.texts[0][0] for arm, r in expected.items()}
    assert found["untouched"].text != found["trained"].text
    assert all(map(torch.equal, before, policy.trainable_parameters().values()))
    for arm, rollout in expected.items():
        likely = float(policy.logprobs(rollout, reference=True).sum())
        assert found[arm].scores["likely"] == pytest.approx(likely, abs=1e-4)


def test_the_table_fits_80_columns_and_shows_text_as_text():
    answers = {
        "untouched": Answer("[red]x[/] " + "word " * 40, True, {"fair": 0.5, "other": None}),
        "trained": Answer("\x1b[31m" + "y" * 90, False, {"fair": 0.25, "other": -1.0}),
    }
    console = Console(width=80, file=io.StringIO())
    console.print(as_table("Who?", answers, 80))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) == 80
    assert "[red]x[/]" in shown
    assert "[cut off]" in shown
    assert "\x1b" not in shown
    assert "fair 0.50" in shown
    assert "fair 0.25" in shown
    assert "other no opinion" in shown


def test_prompts_come_from_arguments_or_a_pipe(tiny_model, adapter, capsys, monkeypatch):
    options = ("--adapter", adapter, "--model", tiny_model, "--dtype", "float32", "--max_new_tokens", 5)
    assert run("chat", *options, "--judges", JUDGE, PROMPT) == 0
    first = capsys.readouterr().out
    assert "untouched" in first
    assert "trained" in first
    assert first.count("length 0.00") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n\n{PROMPT}\n".encode())))
    assert run("chat", *options, "--judges", JUDGE) == 0
    assert capsys.readouterr().out == first * 2  # the same prompt draws the same numbers


def test_prompts_are_asked_for_at_a_terminal(tiny_model, adapter, capsys, monkeypatch):
    typed = iter([PROMPT, ""])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    options = ("--adapter", adapter, "--model", tiny_model, "--dtype", "float32", "--max_new_tokens", 2)
    assert run("chat", *options) == 0
    shown = capsys.readouterr().out
    assert "an empty line ends" in shown
    assert shown.count("untouched") == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--adapter", "nowhere"), "adapter 'nowhere': no adapter_config.json there"),
        (("--judges", "{bias: {class_path: SoftOverlong}}"), "SoftOverlong needs: "),
        (("--model", "MODEL", "--temperature", "-1"), "finite temperature > 0"),
        ((), "('tiny-llama', a local model); write --model FOLDER"),
    ],
)
def test_a_mistake_is_one_line(tiny_model, adapter, capsys, options, error):
    options = [str(tiny_model) if option == "MODEL" else option for option in options]
    assert run("chat", PROMPT, "--adapter", adapter, *options) == 2
    assert error in said(capsys)


def test_an_empty_pipe_is_a_mistake(adapter, tiny_model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert run("chat", "--adapter", adapter, "--model", tiny_model) == 2
    assert "nothing to ask" in said(capsys)


def test_a_judge_that_needs_a_column_is_refused(tiny_model, adapter):
    class NeedsPlace(Likelihood):
        columns = ("place",)

    with pytest.raises(UserError, match="place"):
        chat(str(adapter), [PROMPT], str(tiny_model), judges={"x": NeedsPlace()})
