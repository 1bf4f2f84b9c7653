"""``lit-debias chat``: what the untouched and the trained model answer to the same prompt, side by side."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_debias.errors import UserError
from lit_debias.export.record import base_of, read_record
from lit_debias.policy.policy import Policy
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.support.devices import best_device
from lit_debias.support.files import decode
from lit_debias.support.precision import Precision
from lit_debias.support.text import printable
from lit_debias.types import PromptBatch, Rollout

ARMS = ("untouched", "trained")
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Answer:
    """What one of the two says, and what the judges say of it."""

    text: str
    truncated: bool
    scores: Scores


def chat(
    adapter: str,
    prompts: list[str] | None = None,
    model: str | None = None,
    judges: dict[str, Reward] | None = None,
    quantization: Literal["nf4", "none"] | None = None,
    dtype: Precision = "auto",
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    max_new_tokens: int = 96,
    temperature: float = 0.7,
    seed: int = 0,
) -> None:
    """Answer prompts by the model without the adapter and with it, with the same random numbers, side by side.

    Args:
        adapter: Folder of the trained adapter.
        prompts: What is asked; without them, a prompt a line from a pipe, or from the terminal until an empty line.
        model: Base that the adapter was trained on; by default what the adapter's folder says.
        judges: Rewards that score each answer, best in a file given with -c.
        quantization: How the base is loaded, nf4 (4-bit) or none; by default as in training.
        dtype: Type of the computation; auto is bfloat16 where the device has instructions for it, float32 elsewhere.
        system_prompt: System message before every prompt; by default that of the training.
        chat_template_kwargs: Variables of the chat template; by default those of the training.
        max_new_tokens: Longest answer, in tokens.
        temperature: Of sampling; 0 takes the most probable token.
        seed: Of sampling; each prompt draws the same numbers whenever it is asked.

    Raises:
        UserError: a path, name or number is wrong, or a judge needs more than prompt and answer.
    """
    record, source = read_record(Path(adapter)), base_of(Path(adapter), model)
    engine = LocalEngine(max_new_tokens, temperature or 1.0)
    suite = RewardSuite(judges or {})
    suite.check_columns([])
    recipe = QLoRAPolicy(
        source,
        quantization or record.get("quantization") or "nf4",
        dtype,
        adapter=adapter,
        reference="base",
        system_prompt=system_prompt or record.get("system_prompt"),
        chat_template_kwargs=chat_template_kwargs or record.get("chat_template_kwargs"),
    )
    asked = _asked(prompts or [])
    device = best_device()
    policy = recipe.load(device)
    suite.setup(device)
    console = Console()
    for prompt in asked:
        answers = side_by_side(policy, engine, suite, prompt, seed, greedy=temperature == 0)
        console.print(as_table(prompt, answers, width=console.width))


def _asked(prompts: list[str]) -> Iterator[str]:
    """Return the prompts, read as they come: those of the arguments, else lines of a pipe or of the terminal.

    Raises:
        UserError: the pipe is empty, or an argument is.
    """
    if prompts or not sys.stdin.isatty():
        given = prompts or decode(sys.stdin.buffer.read(), "the text of the pipe").splitlines()
        lines = [line for line in given if line.strip()]
        if not lines:
            raise UserError("nothing to ask; write prompts as arguments, one a line into a pipe, or at the terminal")
        return iter(lines)
    return _typed()


def _typed() -> Iterator[str]:
    print("a prompt, then Enter; an empty line ends")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while line := input("> ").strip():
            yield line


def side_by_side(
    policy: Policy, engine: LocalEngine, judges: RewardSuite, prompt: str, seed: int, greedy: bool
) -> dict[str, Answer]:
    """Return the answer of the untouched base and that of the policy to a prompt, drawn with the same numbers.

    Args:
        policy: Loaded, with the adapter.
        engine: Samples.
        judges: Score the answers.
        prompt: What is asked.
        seed: Of sampling.
        greedy: Take the most probable token instead of sampling.
    """
    found = {}
    for arm in ARMS:
        with _without_adapter(policy) if arm == "untouched" else contextlib.nullcontext():
            rollout = engine.generate(policy, PromptBatch([prompt]), 1, seed, greedy)
        found[arm] = Answer(rollout.texts[0][0], bool(rollout.truncated[0, 0]), _scores(policy, judges, rollout))
    return found


@contextlib.contextmanager
def _without_adapter(policy: Policy) -> Iterator[None]:
    """Within the context the adapter adds nothing: what samples merges it anew when its weights change."""
    kept = {name: parameter.detach().clone() for name, parameter in policy.trainable_parameters().items()}
    try:
        with torch.no_grad():
            for parameter in policy.trainable_parameters().values():
                parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for name, parameter in policy.trainable_parameters().items():
                parameter.copy_(kept[name])


def _scores(policy: Policy, judges: RewardSuite, rollout: Rollout) -> Scores:
    if judges.needs_reference_logprobs:
        rollout = replace(rollout, reference_logprobs=policy.logprobs(rollout, reference=True))
    scores = judges.score(rollout)
    return {name: float(values[0, 0]) if scores.valid[name][0, 0] else None for name, values in scores.values.items()}


def as_table(prompt: str, answers: Mapping[str, Answer], width: int) -> Table:
    """Return the answers in columns of equal width, and the judges' scores below them."""
    table = Table(title=Text(printable(prompt)), title_justify="left", width=width, show_lines=True)
    for arm in answers:
        table.add_column(arm, ratio=1, overflow="fold")
    # Text, because model output may hold what rich would take for markup.
    table.add_row(*(Text(_shown(answer)) for answer in answers.values()))
    names = next(iter(answers.values())).scores
    if names:
        table.add_row(*(Text("\n".join(_said(answer.scores, name) for name in names)) for answer in answers.values()))
    return table


def _said(scores: Scores, name: str) -> str:
    score = scores[name]
    return f"{printable(name)} {'no opinion' if score is None else f'{score:.2f}'}"


def _shown(answer: Answer) -> str:
    return printable(answer.text) + (" [cut off]" if answer.truncated else "")
