"""One vLLM server: its HTTP interface, what its failures mean, and what is known of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import stamina

from lit_debias.plugins import ResumableError
from lit_debias_vllm.on_ray import address_of

BUSY = (408, 429)
"""Statuses after which the same request may succeed on the same server."""
REFUSED = (401, 403)
HEALTH_SECONDS = 10.0
"""A server that does not say within this time that it is well is not."""


EXTENSION = "lit_debias_vllm_server"
"""The package whose class receives files there."""
Way = Literal["adapter", "merged"]
Carrier = Literal["folder", "http"]


class ServerError(Exception):
    """A server gave no answer that can be used; says in one line what came instead."""

    def __init__(self, cause: str, status: int = 0) -> None:
        super().__init__(cause)
        self.status = status


@dataclass(frozen=True)
class Abilities:
    """What a server can do; None where it does not say."""

    runtime_adapters: bool
    """It loads adapters by HTTP."""
    developer_mode: bool
    """It reloads weights by HTTP."""
    device: str | None = None
    adapters: bool | None = None
    """It was started with ``--enable-lora``."""
    largest_rank: int | None = None
    logprobs_mode: str | None = None
    chunked_prefill: bool | None = None
    receives: bool = False
    """Files can be sent to it; see :mod:`lit_debias_vllm_server`."""

    @property
    def logprobs_before_temperature(self) -> bool:
        """Whether it says that its log-probs are not those of the temperature that it samples at."""
        return self.logprobs_mode is not None and not self.logprobs_mode.startswith("processed")


@dataclass
class Server:
    """A server, and what this process knows of it.

    ``session`` belongs to the event loop of one call; all else lasts.
    """

    url: str
    """Without a path: ``http://localhost:8000``, or the name of one that Ray runs."""
    asked_model: str | None = None
    """What the user calls the base there; None takes the only one."""
    address: str = ""
    """Where it is; asked anew whenever it has failed."""
    session: aiohttp.ClientSession | None = None
    model: str = ""
    """The base's name there; empty until it was asked."""
    longest: int | None = None
    """Tokens of prompt and completion that it takes."""
    abilities: Abilities | None = None
    way: Way = "adapter"
    """How weights come to it."""
    carrier: Carrier = "folder"
    """How their files come to it."""
    measured: str = ""
    """What was measured to choose the way; empty where it was not."""
    version: str = ""
    """Which version of the policy it was last brought to; empty where that is not sure."""
    checked: int = -1
    """The rollout before which its log-probs were last compared; -1 where they must be."""
    trouble: str = ""
    """What is wrong with it."""
    loaded: list[str] = field(default_factory=list)
    """Adapters that this process has loaded there."""

    def fail(self, error: ServerError) -> None:
        """Take note that it failed: nothing that was known of it is sure any more."""
        self.trouble, self.model, self.version, self.checked, self.abilities = str(error), "", "", -1, None

    # ---------------------------------------------------------------- requests

    async def get(self, path: str, seconds: float | None = None) -> Any:
        """Return what is at a path; see :meth:`request`."""
        return await self.request("GET", path, None, seconds)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a JSON object to a path; see :meth:`request`."""
        return await self.request("POST", path, body)

    async def request(self, method: str, path: str, body: Any = None, seconds: float | None = None) -> Any:
        """Return the JSON of an answer, or its text where it is none.

        Args:
            method: GET or POST.
            path: From the root of the server.
            body: JSON that is sent.
            seconds: Longest time until the whole answer is here; None is the session's.

        Raises:
            ServerError: there is no answer, or it says that something failed.
        """
        assert self.session is not None, "requests are sent within Pool.call"
        options: dict[str, Any] = {} if seconds is None else {"timeout": aiohttp.ClientTimeout(total=seconds)}
        try:
            async with self.session.request(method, self.address + path, json=body, **options) as reply:
                if reply.status != 200:
                    raise ServerError(f"status {reply.status}{_said(await reply.text())}", reply.status)
                return await (reply.json() if "json" in reply.content_type else reply.text())
        except asyncio.TimeoutError:
            raise ServerError("it does not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ServerError(f"no connection, or no answer of the protocol ({type(error).__name__})") from None

    async def complete(self, body: dict[str, Any]) -> Any:
        """Return the answer to a request for completions; asks again after a pause where the server is busy.

        Raises:
            ServerError: the server fails.
            ResumableError: it refuses the request, as any other server would.
        """
        try:
            async for attempt in stamina.retry_context(_busy, attempts=6, timeout=None, wait_max=10.0):
                with attempt:
                    return await self.post("/v1/completions", body)
        except ServerError as error:
            if error.status not in (400, *REFUSED):
                raise
            raise ResumableError(f"VLLMEngine: {self.url} refuses a request: {error}") from None
        raise AssertionError("stamina returns or raises")

    # ---------------------------------------------------------------- what it is

    async def greet(self) -> None:
        """Ask how it is, which model it has, and what it can do.

        Raises:
            ServerError: it is not well, or has not the model.
        """
        try:
            self.address = await address_of(self.url)
        except LookupError as error:
            raise ServerError(str(error)) from None
        await self.get("/health", HEALTH_SECONDS)
        listed = await self.get("/v1/models")
        try:
            bases = {card["id"]: card for card in listed["data"] if card.get("parent") is None}
        except (KeyError, TypeError):
            raise ServerError("its list of models is none of vLLM's") from None
        name = self.asked_model or next(iter(bases), "")
        if name not in bases or (self.asked_model is None and len(bases) > 1):
            raise ServerError(f"it serves {', '.join(sorted(bases)) or 'no model'}, and model says '{name}'")
        self.longest = bases[name].get("max_model_len")
        self.abilities = await self._find_abilities()
        self.model = name

    async def _find_abilities(self) -> Abilities:
        runtime = await self._loads_adapters()
        try:
            info = await self.get("/server_info?config_format=json")
            config = info["vllm_config"]
            lora, model, scheduler = config["lora_config"], config["model_config"], config["scheduler_config"]
            return Abilities(
                runtime,
                developer_mode=True,
                device=config["device_config"]["device"],
                adapters=lora is not None,
                largest_rank=lora and lora["max_lora_rank"],
                logprobs_mode=model["logprobs_mode"],
                chunked_prefill=scheduler["enable_chunked_prefill"],
                receives=EXTENSION in str(config["parallel_config"]["worker_extension_cls"]),
            )
        except ServerError as error:
            if error.status != 404:
                raise
            return Abilities(runtime, developer_mode=False)
        except (KeyError, TypeError):  # of another version, which tells it elsewhere
            return Abilities(runtime, developer_mode=True)

    async def _loads_adapters(self) -> bool:
        """Return whether there is a path to load adapters, by a request that names none."""
        try:
            await self.post("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""})
        except ServerError as error:
            if not 400 <= error.status < 500:
                raise
            return error.status not in (404, 405)
        return True


def _busy(error: Exception) -> bool:
    return isinstance(error, ServerError) and error.status in BUSY


def _said(text: str) -> str:
    """Return what an error's body says, in one short line."""
    message = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', text)
    line = " ".join((message[1] if message else text).split())
    return f" ({line:.160})" if line else ""


def addresses(servers: list[Server]) -> Iterator[str]:
    """Yield each server with what is wrong with it."""
    for server in servers:
        yield f"{server.url}: {server.trouble or 'not asked'}"
