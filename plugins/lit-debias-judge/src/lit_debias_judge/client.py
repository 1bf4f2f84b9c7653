"""Asks many questions at a time, and again where that may help."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import anyio
import stamina
from anyio.from_thread import start_blocking_portal

from lit_debias.plugins import api_key, is_busy, refusal

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LONGEST_PAUSE = 60.0
"""Seconds that a server may ask to wait before the next attempt; a longer wish is cut."""
REFUSALS = (401, 403, 404, 405)
"""Statuses that every request will get: wrong key, address or model."""


class RequestError(Exception):
    """No answer. It names the cause in our words: the server's may repeat the key, and what is raised gets logged."""

    def __init__(self, cause: str, status: int = 0, again: bool = False, pause: float | None = None) -> None:
        super().__init__(cause)
        self.status, self.again, self.pause = status, again, pause


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    content: str | None
    """None where there is no text."""
    prompt_tokens: int | None
    """None where the server did not say."""
    completion_tokens: int | None


@dataclass(frozen=True, slots=True)
class Client:
    """How to reach a model; the key is in the environment only."""

    who: str
    """Whose it is, for messages."""
    model: str
    url: str
    api_key_env: str
    options: Mapping[str, Any]
    """Further fields of each request."""
    concurrency: int
    """Requests at a time."""
    retries: int
    """Further attempts for one request."""
    timeout: float
    """Seconds that a server may be silent."""

    def ask(self, texts: Sequence[str], receive: Callable[[str, Answer | RequestError, int], None]) -> None:
        """Send each text as a user's message, and hand over each text, its answer and the attempts as they come.

        It has an event loop of its own, so it also works where one runs already, as in a notebook.

        Raises:
            UserError: the server refuses key, address or model; what was received until then was handed over.
        """
        with start_blocking_portal() as portal:
            portal.call(self._ask, texts, receive)

    async def _ask(self, texts: Sequence[str], receive: Callable[[str, Answer | RequestError, int], None]) -> None:
        from openai import AsyncOpenAI

        free = anyio.CapacityLimiter(self.concurrency)
        refused: list[int] = []

        async def one(text: str) -> None:
            async with free:
                outcome, attempts = await self._persist(client, text)
                if isinstance(outcome, RequestError) and outcome.status in REFUSALS:
                    refused.append(outcome.status)
                    group.cancel_scope.cancel()
                else:
                    receive(text, outcome, attempts)

        key = api_key(self.api_key_env)
        async with (
            AsyncOpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=self.timeout) as client,
            anyio.create_task_group() as group,
        ):
            for text in texts:
                group.start_soon(one, text)
        if refused:
            raise refusal(self.who, self.url, self.model, self.api_key_env, refused[0])

    async def _persist(self, client: AsyncOpenAI, text: str) -> tuple[Answer | RequestError, int]:
        attempts = 0
        try:
            async for attempt in stamina.retry_context(
                again, attempts=self.retries + 1, timeout=None, wait_initial=0.5, wait_max=30.0
            ):
                with attempt:
                    attempts = attempt.num
                    return await self._request(client, text), attempts
        except RequestError as failure:
            return failure, attempts
        raise AssertionError("stamina returns or raises")

    async def _request(self, client: AsyncOpenAI, text: str) -> Answer:
        import openai

        try:
            reply = await client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": text}], extra_body=dict(self.options)
            )
        except openai.APIStatusError as error:
            status, headers = error.status_code, error.response.headers
            raise RequestError(f"status {status}", status, is_busy(status), wished_pause(headers)) from None
        except openai.APIConnectionError as error:  # a time-out is one
            raise RequestError(type(error).__name__, again=True) from None
        except (openai.APIError, ValueError) as error:
            raise RequestError(f"no answer of the protocol ({type(error).__name__})") from None
        return read(reply)


def read(reply: Any) -> Answer:
    """Return what a reply holds; servers leave things out, and the client does not check."""
    try:
        content = reply.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        content = None
    usage = getattr(reply, "usage", None)
    tokens = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(content if isinstance(content, str) else None, *tokens)


def again(error: Exception) -> bool | float:
    """Return whether to ask again, or after how many seconds."""
    if not isinstance(error, RequestError) or not error.again:
        return False
    return True if error.pause is None else error.pause


def wished_pause(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a ``Retry-After`` (RFC 9110, 10.2.3), in [0, LONGEST_PAUSE]; None where there is none."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_PAUSE) if math.isfinite(seconds) else None
