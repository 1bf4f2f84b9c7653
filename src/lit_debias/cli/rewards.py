"""``lit-debias rewards check`` and ``lit-debias rewards score``: one reward, outside training."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_debias.cli.contracts import build_object, show_findings
from lit_debias.errors import UserError, did_you_mean
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.plugins.official import missing_plugin
from lit_debias.rewards.asking import RewardError, ask, check_scores, prepare
from lit_debias.rewards.contract import Example, batch_of, examine, needed_columns
from lit_debias.rewards.reward import Reward
from lit_debias.support.devices import known_device
from lit_debias.support.files import JsonObject, decode, read_jsonl, read_text
from lit_debias.support.text import printable


def check(
    reward: str,
    init_args: dict[str, Any] | None = None,
    pairs: Path | None = None,
    columns: dict[str, Any] | None = None,
    max_latency: float | None = None,
    tolerance: float = 1e-4,
    device: str = "cpu",
    json: bool = False,
) -> int:
    """Test whether a reward keeps its contract; the exit code is 0 if it does, 1 if not, 2 for a wrong call.

    Args:
        reward: Class of the reward: its short name, or MODULE.CLASS.
        init_args: The reward's options, as in YAML: ``'{words: 30}'``.
        pairs: JSONL file of pairs that you have judged, ``{"better": ..., "worse": ...}`` a line, with ``"prompt"``
            and the columns that the reward needs, if it needs any.
        columns: Column of the data -> the value that every completion gets: ``'{reference: A text.}'``.
        max_latency: Most milliseconds that a completion may take; by default latency is measured and not judged.
        tolerance: Largest difference of scores that counts as rounding.
        device: Where models are loaded.
        json: Print JSON instead of a table.

    Raises:
        UserError: there is no such reward, its options or the pairs are wrong, or it needs a column.
    """
    built = build(reward, init_args)
    read = list(read_pairs(pairs, columns or {}, built)) if pairs else []
    findings = examine(built, read, columns, max_latency, tolerance, str(known_device("--device", device)))
    return show_findings(findings, type(built).__name__, json)


def score(
    reward: str,
    texts: list[str] | None = None,
    file: Path | None = None,
    init_args: dict[str, Any] | None = None,
    prompt: str = "",
    columns: dict[str, Any] | None = None,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Score texts, one line each: the score, or `none` for no opinion, a tab, and the text. All are one batch.

    Args:
        reward: Class of the reward: its short name, or MODULE.CLASS.
        texts: The completions; without them, and without a file, they come from a pipe, one a line.
        file: One completion a line; or, if its name ends with .jsonl, ``{"completion": ...}`` a line, with
            ``"prompt"`` and columns of its own where there are some.
        init_args: The reward's options, as in YAML: ``'{words: 30}'``.
        prompt: What the completions answer.
        columns: Column of the data -> the value that every completion gets.
        device: Where models are loaded.
        json: Print one JSON object a line.

    Raises:
        UserError: there is no such reward, its options or the texts are wrong, or it needs a column.
    """
    built = build(reward, init_args)
    rows = list(read_rows(texts or [], file, prompt, columns or {}, built))
    prepare(reward, built, known_device("--device", device))
    for row, score in zip(rows, scores_of(reward, built, rows), strict=True):
        if json:
            found = {"score": score, "prompt": row.prompt, "completion": row.completion}
            print(json_module.dumps(found, ensure_ascii=False))
        else:
            print("none" if score is None else f"{score:.4f}", printable(" ".join(row.completion.split())), sep="\t")


def scores_of(name: str, reward: Reward, rows: Sequence[Example]) -> list[float | None]:
    """Return the N scores of rows that are one batch, None where there is no opinion.

    Raises:
        RewardError: the reward failed; the message names the row, where it is one row's fault.
    """

    def ask_about(some: Sequence[Example]) -> list[float | None]:
        batch = batch_of(some)
        return check_scores(name, ask(name, reward, batch), batch)

    try:
        return ask_about(rows)
    except RewardError:
        failures: list[tuple[Example, RewardError]] = []
        for row in rows:
            try:
                ask_about([row])
            except RewardError as error:
                failures.append((row, error))
        if failures and len(failures) < len(rows):
            culprit, cause = failures[0]
            raise RewardError(f"{culprit.origin}: {cause}") from cause
        raise


def build(reward: str, init_args: Mapping[str, Any] | None) -> Reward:
    """Return the reward with its options, which are checked as they are in a configuration file.

    Raises:
        UserError: there is no such class, or an option is wrong.
    """
    rewards = {c.name for c in components(get_plugin_manager()) if c.kind == "reward"}
    if "." not in reward and reward not in rewards:
        raise UserError(missing_plugin(reward) or f"there is no reward '{reward}'{did_you_mean(reward, rewards)}")
    built: Reward = build_object("reward", reward, Reward, reward, init_args)
    return built


def read_pairs(file: Path, columns: Mapping[str, Any], reward: Reward) -> Iterator[tuple[Example, Example]]:
    """Yield the better and the worse row of each line.

    Raises:
        UserError: the file is missing or empty, or a line lacks something.
    """
    for line in read_texts(file, ("better", "worse")):
        texts = [line.pop("better"), line.pop("worse")]
        better, worse = (make_row(text, dict(line), "", columns, reward, "") for text in texts)
        yield better, worse


def read_rows(
    texts: list[str], file: Path | None, prompt: str, columns: Mapping[str, Any], reward: Reward
) -> Iterator[Example]:
    """Yield what is to be scored: arguments, else the lines of a file, else those of a pipe.

    Raises:
        UserError: there is nothing, or both texts and a file, or the file is missing, or a line lacks something.
    """
    if texts and file:
        raise UserError("texts and --file at once; write one of them")
    if file and file.suffix == ".jsonl":
        for number, line in enumerate(read_texts(file, ("completion",)), 1):
            yield make_row(line.pop("completion"), line, prompt, columns, reward, f"'{file}', row {number}")
        return
    if texts:
        lines = texts
    elif file:
        lines = read_text(file, "").splitlines()
    elif sys.stdin.isatty():
        raise UserError("nothing to score; write texts, or --file FILE, or use a pipe")
    else:
        lines = decode(_piped(), "the text of the pipe").splitlines()
    if not lines:
        raise UserError("nothing to score; the input is empty")
    for number, text in enumerate(lines, 1):
        yield make_row(text, {}, prompt, columns, reward, f"'{file}', line {number}" if file else f"text {number}")


def _piped() -> bytes:
    """Return the bytes of standard input, which Python would decode as the locale says."""
    raw = getattr(sys.stdin, "buffer", None)
    return raw.read() if raw is not None else sys.stdin.read().encode()


def make_row(
    text: str, line: dict[str, Any], prompt: str, columns: Mapping[str, Any], reward: Reward, origin: str
) -> Example:
    """Return a row of its own prompt and columns, before those that are given for all.

    Raises:
        UserError: a column is missing.
    """
    own_prompt = str(line.pop("prompt", prompt))
    return Example(own_prompt, text, needed_columns(reward, {**columns, **line}), origin)


def read_texts(file: Path, keys: tuple[str, ...]) -> Iterator[JsonObject]:
    """Yield the objects of a JSONL file, which hold texts under the given keys, and under ``prompt`` if it is there.

    Raises:
        UserError: the file cannot be read or is empty, or a line is something else.
    """
    for number, record in read_jsonl(file, ""):
        texts = {"prompt": "", **record}
        for key in (*keys, "prompt"):
            if not isinstance(texts.get(key), str):
                example = json_module.dumps(dict.fromkeys(keys, "..."))
                odd = f"'{file}', row {number}: '{key}' is {texts.get(key)!r:.40}"
                raise UserError(f"{odd}; write texts under these keys: {example}")
        yield record
