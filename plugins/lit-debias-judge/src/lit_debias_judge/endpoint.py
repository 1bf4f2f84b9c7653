"""What judges behind an endpoint share: questions, answers that are asked for once, their costs and their memory."""

from __future__ import annotations

import json
import logging
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from lit_debias.plugins import NO_KEY, Reward, RewardBatch, ScoreFile, UserError, api_key, check_endpoint, sha256
from lit_debias_judge.client import Answer, Client, RequestError
from lit_debias_judge.template import fill, placeholders
from lit_debias_judge.usage import Usage

OPENAI = "https://api.openai.com/v1"
OWN = {"model", "messages", "stream", "n"}
SPEED_OPTIONS = (
    "api_key_env",
    "concurrency",
    "retries",
    "timeout",
    "input_price",
    "output_price",
    "cache_dir",
)
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass
class Memory(Generic[T]):
    """Opinions that are known, in memory and perhaps on disk; each is JSON."""

    folder: str | None
    known: dict[str, T] = field(default_factory=dict)
    file: ScoreFile | None = None

    def open(self, fingerprint: str) -> None:
        """Open the file, if there is to be one."""
        if self.folder is not None:
            self.file = ScoreFile(Path(self.folder).expanduser(), fingerprint)

    def recall(self, keys: Iterable[str]) -> None:
        """Read what the file knows of the keys."""
        if self.file is not None:
            found = self.file.get((key,) for key in keys if key not in self.known)
            self.known.update({key: opinion for (key,), (opinion,) in found.items()})

    def keep(self, opinions: dict[str, T]) -> None:
        """Remember opinions."""
        self.known.update(opinions)
        if self.file is not None:
            self.file.put({(key,): (opinion,) for key, opinion in opinions.items()})


class EndpointJudge(Reward, Generic[T]):
    """Asks a model behind an endpoint about each completion; a subclass says how an answer is read.

    T is an opinion: what of an answer is kept, as JSON. Arguments as in the classes below.

    Raises:
        UserError: an argument is out of range, the template lacks something, or OpenAI's own address has no key.
    """

    speed_options = SPEED_OPTIONS
    defaults: ClassVar[dict[str, Any]]
    """Fields of each request that ``options`` may replace."""

    def __init__(
        self,
        model: str,
        template: str,
        url: str,
        api_key_env: str,
        options: dict[str, Any] | None,
        concurrency: int,
        retries: int,
        timeout: float,
        input_price: float,
        output_price: float,
        cache_dir: str | None,
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
        _check_template(who, template)
        self.model, self.url, self.template = model, url, template
        self.options = _options(who, {**self.defaults, **(options or {})})
        self.columns = tuple(sorted(placeholders(template) - {"prompt", "completion"}))
        self.usage = Usage(input_price, output_price)
        self._client = Client(who, model, url, api_key_env, self.options, concurrency, retries, timeout)
        self._memory: Memory[T] = Memory(cache_dir)

    @abstractmethod
    def read(self, answer: str | None) -> T | None:
        """Return the opinion in an answer; None where it holds none."""

    def setup(self, device: torch.device) -> None:
        """Open the opinions on disk, if there are to be some.

        Raises:
            UserError: ``cache_dir`` cannot be made.
        """
        asked = {name: value for name, value in self.identity().items() if name not in ("version", "source")}
        self._memory.open(_digest(asked))  # another version does not ask again for what was paid for

    def opinions(self, batch: RewardBatch) -> list[T | None]:
        """Return N opinions, None where there is no readable answer.

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
        opinions = [self._memory.known.get(key) for key, _ in questions]
        self.usage.scored += len(opinions) - opinions.count(None)
        return opinions

    def log_usage(self) -> None:
        """Log the totals so far."""
        _log.info("%s: %s", type(self).__name__, self.usage)

    def _questions(self, batch: RewardBatch) -> list[tuple[str, str]]:
        """Return key and text of each question; an empty text where there is nothing to ask."""
        texts = []
        for row, (prompt, completion) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
            columns = {name: batch.columns[name][row] for name in self.columns}
            values = {**columns, "prompt": prompt, "completion": completion}
            texts.append(fill(self.template, values) if completion.strip() else "")
        return [(_digest(text), text) for text in texts]

    def _ask(self, new: dict[str, str]) -> None:
        usage, fresh, failures = self.usage, dict[str, T](), list[RequestError]()
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
            opinion = self.read(outcome.content)
            if opinion is None:
                usage.unreadable += 1
            else:
                fresh[new[text]] = opinion

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


def _check_template(who: str, template: str) -> None:
    if "completion" not in placeholders(template):
        raise UserError(f"{who}: the template has no {{completion}}; write it where the completion goes")
    if "json" not in template.lower():  # OpenAI refuses response_format json_object then, and prose has no opinion
        raise UserError(f'{who}: the template asks for no JSON; ask for an object such as {{"score": ...}}')


def _options(who: str, options: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(OWN & set(options)):
        raise UserError(f"{who}: options has '{taken[0]}', which the judge sets itself; leave it out")
    return {name: value for name, value in options.items() if value is not None}


def _digest(*content: object) -> str:
    return sha256([json.dumps(content, sort_keys=True, default=str)])
