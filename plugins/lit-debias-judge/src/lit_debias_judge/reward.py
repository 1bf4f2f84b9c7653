"""The reward: a score in [0, 1] out of a model's JSON answer."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lit_debias.plugins import NO_KEY, Reward, RewardBatch, ScoreFile, UserError, api_key, check_endpoint, sha256
from lit_debias_judge.client import Answer, Client, RequestError
from lit_debias_judge.template import FAIRNESS, fill, parse, placeholders
from lit_debias_judge.usage import Usage

OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "response_format": {"type": "json_object"}}
OPENAI = "https://api.openai.com/v1"
OWN = {"model", "messages", "stream", "n"}
_log = logging.getLogger(__name__)


@dataclass
class Memory:
    """Scores that are known, in memory and perhaps on disk."""

    folder: str | None
    known: dict[str, float] = field(default_factory=dict)
    file: ScoreFile | None = None

    def open(self, fingerprint: str) -> None:
        """Open the file, if there is to be one."""
        if self.folder is not None:
            self.file = ScoreFile(Path(self.folder).expanduser(), fingerprint)

    def recall(self, keys: Iterable[str]) -> None:
        """Read what the file knows of the keys."""
        if self.file is not None:
            found = self.file.get((key,) for key in keys if key not in self.known)
            self.known.update({key: score for (key,), (score,) in found.items()})

    def keep(self, scores: dict[str, float]) -> None:
        """Remember scores."""
        self.known.update(scores)
        if self.file is not None:
            self.file.put({(key,): (score,) for key, score in scores.items()})


class LLMJudge(Reward):
    """What a language model behind an OpenAI-compatible endpoint (vLLM, llama.cpp, Ollama) thinks of a completion.

    The model answers with a JSON object whose number ``score`` is mapped from ``scale`` to [0, 1]. An answer that is
    anything else, a request that fails and an empty completion have no score (None) and are counted, never 0. A busy
    or failing server (429, 408, 409, 5xx, no connection, silence) is asked again after growing pauses, or when its
    ``Retry-After`` says. Equal texts are asked once. ``usage`` holds the totals, which are also logged at level INFO.

    Args:
        model: Name of the model there.
        template: What is asked. ``{completion}`` and ``{prompt}`` are replaced, other names by data columns. It must
            ask for JSON, and say the ends of the scale. By default a question about fairness.
        scale: The worst and the best number that the template asks for.
        url: Address up to the version, for example ``http://localhost:8000/v1``.
        api_key_env: Environment variable that holds the key, which is written nowhere; a local server may need none.
        options: Further fields of the request, beside or instead of temperature 0, max_tokens 200 and response_format
            json_object; null leaves one out.
        concurrency: Requests at a time.
        retries: Further attempts for one request.
        timeout: Seconds that the server may be silent.
        input_price: Price of a million prompt tokens, in any currency.
        output_price: Price of a million completion tokens.
        cache_dir: Folder that keeps all scores for further runs, in ``scores.sqlite``; by default none.

    Raises:
        UserError: an argument is out of range, the template lacks something, or OpenAI's own address has no key.
    """

    speed_options = (
        "api_key_env",
        "concurrency",
        "retries",
        "timeout",
        "input_price",
        "output_price",
        "cache_dir",
    )

    def __init__(
        self,
        model: str,
        template: str = FAIRNESS,
        scale: tuple[float, float] = (0, 10),
        url: str = OPENAI,
        api_key_env: str = "OPENAI_API_KEY",
        options: dict[str, Any] | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 60.0,
        input_price: float = 0.0,
        output_price: float = 0.0,
        cache_dir: str | None = None,
    ) -> None:
        who = type(self).__name__
        check_endpoint(who, url, api_key_env, options)
        if url == OPENAI and api_key(api_key_env) == NO_KEY:
            raise UserError(f"{who}: the variable that api_key_env names is empty; export the key in it")
        if not model:
            raise UserError(f"{who}: model is empty; write its name at the endpoint")
        if concurrency < 1 or retries < 0 or not 0 < timeout < math.inf:
            numbers = f"concurrency={concurrency}, retries={retries}, timeout={timeout}"
            raise UserError(f"{who}: {numbers}; write concurrency >= 1, retries >= 0 and timeout > 0")
        if not all(0 <= price < math.inf for price in (input_price, output_price)):
            raise UserError(f"{who}: input_price={input_price}, output_price={output_price}; write numbers from 0 up")
        if cache_dir is not None and (not cache_dir or Path(cache_dir).expanduser().is_file()):
            raise UserError(f"{who}: cache_dir '{cache_dir}' is no folder; write one, or null to keep none")
        _check_template(who, template, scale)
        self.model, self.url, self.template, self.scale = model, url, template, scale
        self.options = _options(who, options or {})
        self.columns = tuple(sorted(placeholders(template) - {"prompt", "completion"}))
        self.usage = Usage(input_price, output_price)
        self._client = Client(who, model, url, api_key_env, self.options, concurrency, retries, timeout)
        self._memory = Memory(cache_dir)

    def setup(self, device: torch.device) -> None:
        """Open the scores on disk, if there are to be some.

        Raises:
            UserError: ``cache_dir`` cannot be made.
        """
        asked = {name: value for name, value in self.identity().items() if name not in ("version", "source")}
        self._memory.open(_digest(asked))  # another version does not ask again for what was paid for

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [0, 1], None where there is no readable answer.

        Raises:
            UserError: the server refuses key, address or model, or has never answered and does not now.
        """
        questions = self._questions(batch)
        texts = {key: text for key, text in questions if text}
        self._memory.recall(texts)
        new = {text: key for key, text in texts.items() if key not in self._memory.known}
        self.usage.cached += len(texts) - len(new)
        if new:
            self._ask(new)
        scores = [self._memory.known.get(key) for key, _ in questions]
        self.usage.scored += len(scores) - scores.count(None)
        _log.info("%s: %s", type(self).__name__, self.usage)
        return scores

    def _questions(self, batch: RewardBatch) -> list[tuple[str, str]]:
        """Return key and text of each question; an empty text where there is nothing to ask."""
        texts = []
        for row, (prompt, completion) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
            columns = {name: batch.columns[name][row] for name in self.columns}
            values = {**columns, "prompt": prompt, "completion": completion}
            texts.append(fill(self.template, values) if completion.strip() else "")
        return [(_digest(text), text) for text in texts]

    def _ask(self, new: dict[str, str]) -> None:
        usage, fresh, failures = self.usage, dict[str, float](), list[RequestError]()
        unreadable = usage.unreadable

        def receive(text: str, outcome: Answer | RequestError, attempts: int) -> None:
            usage.retries += attempts - 1
            if isinstance(outcome, RequestError):
                usage.failed += 1
                failures.append(outcome)
                return
            usage.answers += 1
            if outcome.prompt_tokens is None or outcome.completion_tokens is None:
                usage.uncounted += 1
            else:
                usage.prompt_tokens += outcome.prompt_tokens
                usage.completion_tokens += outcome.completion_tokens
            score = parse(outcome.content, *self.scale)
            if score is None:
                usage.unreadable += 1
            else:
                fresh[new[text]] = score

        try:
            self._client.ask(list(new), receive)
        finally:  # what was paid for is kept
            self._memory.keep(fresh)
        if not usage.answers:
            raise UserError(
                f"{self._client.who}: no answer of model '{self.model}' at {self.url} ({failures[0]}); "
                "check that it runs, url, model and options"
            )
        if len(fresh) < len(new):
            _log.warning(
                "%s: %d of %d texts have no score: %d answers unreadable, %d requests failed%s",
                *(self._client.who, len(new) - len(fresh), len(new), usage.unreadable - unreadable, len(failures)),
                f" ({failures[0]})" if failures else "",
            )


def _check_template(who: str, template: str, scale: tuple[float, float]) -> None:
    lowest, highest = scale
    if not -math.inf < lowest < highest < math.inf:
        raise UserError(f"{who}: scale={list(scale)}; write two finite numbers, the lower one first")
    if "completion" not in placeholders(template):
        raise UserError(f"{who}: the template has no {{completion}}; write it where the completion goes")
    if "json" not in template.lower():  # OpenAI refuses response_format json_object then, and prose has no score
        raise UserError(f'{who}: the template asks for no JSON; ask for an object such as {{"score": ...}}')
    for end in scale:
        if f"{end:g}" not in template:
            raise UserError(f"{who}: scale={list(scale)}, but the template does not say {end:g}; let both agree")


def _options(who: str, options: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(OWN & set(options)):
        raise UserError(f"{who}: options has '{taken[0]}', which the judge sets itself; leave it out")
    return {name: value for name, value in {**OPTIONS, **options}.items() if value is not None}


def _digest(*content: object) -> str:
    return sha256([json.dumps(content, sort_keys=True, default=str)])
