"""Who writes free text on request: a server that speaks OpenAI's protocol, or a model in this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from lit_debias.errors import UserError
from lit_debias.policy.policy import Policy
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine
from lit_debias.support.devices import best_device
from lit_debias.support.endpoint import api_key, check_endpoint, is_busy, refusal
from lit_debias.support.hashing import stable_hash
from lit_debias.support.precision import Precision
from lit_debias.types import PromptBatch

if TYPE_CHECKING:
    from openai import OpenAI


class Author(ABC):
    """Answers instructions. Check arguments in ``__init__``, load in :meth:`write`."""

    @abstractmethod
    def write(self, instructions: Sequence[str]) -> Iterator[str | None]:
        """Yield one answer per instruction, in their order; None where there is none that can be used.

        Raises:
            UserError: the author cannot answer at all, whatever it is asked.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the answers depend on, for the data card; no secrets."""


class Endpoint(Author):
    """A model behind an OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, Ollama and others.

    A busy or failing server (429, 5xx, no connection) is asked again after growing pauses, or when its headers say.

    Args:
        model: Name of the model there.
        url: Address up to the version, for example ``http://localhost:8000/v1``.
        api_key_env: Environment variable that holds the key, which is written to no file; a local server may need none.
        max_tokens: Longest answer, in tokens.
        temperature: Of sampling, from 0 to 2.
        concurrency: Requests at a time.
        retries: Further attempts for one request.
        timeout: Seconds to wait for one answer.

    Raises:
        UserError: a value is out of range, or the extra ``llm`` is not installed.
    """

    def __init__(
        self,
        model: str,
        url: str = "https://api.openai.com/v1",
        api_key_env: str = "OPENAI_API_KEY",
        max_tokens: int = 120,
        temperature: float = 1.0,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 60.0,
    ) -> None:
        check_endpoint("author", url, api_key_env)
        if max_tokens < 1 or concurrency < 1 or retries < 0 or timeout <= 0 or not 0 <= temperature <= 2:
            raise UserError(
                f"author: max_tokens={max_tokens}, concurrency={concurrency}, retries={retries}, timeout={timeout}, "
                f"temperature={temperature}; write positive numbers, retries >= 0 and 0 <= temperature <= 2"
            )
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise UserError("author: Endpoint needs the extra 'llm'; pip install 'lit-debias[llm]'") from error
        self.model, self.url, self.api_key_env = model, url, api_key_env
        self.max_tokens, self.temperature = max_tokens, temperature
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout

    def describe(self) -> dict[str, Any]:
        """Return model, address and sampling."""
        return {"model": self.model, "url": self.url, "max_tokens": self.max_tokens, "temperature": self.temperature}

    def write(self, instructions: Sequence[str]) -> Iterator[str | None]:
        """Ask several at a time; see :meth:`Author.write`."""
        from openai import OpenAI

        key = api_key(self.api_key_env)
        client = OpenAI(base_url=self.url, api_key=key, max_retries=self.retries, timeout=self.timeout)
        executor, refused = ThreadPoolExecutor(self.concurrency), Event()
        try:
            yield from executor.map(partial(self._ask, client, refused), instructions)
        finally:
            executor.shutdown(cancel_futures=True)
            client.close()

    def _ask(self, client: OpenAI, refused: Event, instruction: str) -> str | None:
        import openai

        if refused.is_set():  # what waited in the queue would be refused as well
            return None
        try:
            answer = client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": instruction}],
                max_tokens=self.max_tokens,
                temperature=self.temperature,
            )
            return answer.choices[0].message.content
        except openai.APIStatusError as error:
            if is_busy(error.status_code):
                return None
            refused.set()
            raise refusal("author", self.url, self.model, self.api_key_env, error.status_code) from None
        except (openai.APIError, ValueError, TypeError, AttributeError, IndexError):
            return None  # no connection, or an answer that is none


class LocalModel(Author):
    """A model in this process.

    Args:
        model: A local folder, ``pkg://PACKAGE/FILE.gguf``, or a hub id.
        quantization: How it is loaded: nf4 (4-bit) or none.
        dtype: Type of the computation; ``auto`` is bfloat16 where the device has instructions for it, else float32.
        max_new_tokens: Longest answer, in tokens.
        temperature: Of sampling.
        batch_size: Instructions in one forward pass.
        chat_template_kwargs: Variables of the chat template, such as ``{enable_thinking: false}`` for Qwen3.

    Raises:
        UserError: there is no such model, or a number is out of range.
    """

    def __init__(
        self,
        model: str,
        quantization: Literal["nf4", "none"] = "nf4",
        dtype: Precision = "auto",
        max_new_tokens: int = 120,
        temperature: float = 1.0,
        batch_size: int = 8,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"author: batch_size={batch_size}; write 1 or more")
        self.recipe = QLoRAPolicy(model, quantization, dtype, chat_template_kwargs=chat_template_kwargs)
        self.engine = LocalEngine(max_new_tokens, temperature)
        self.batch_size = batch_size

    def describe(self) -> dict[str, Any]:
        """Return model, quantization and sampling."""
        return {
            "model": self.recipe.source,
            "quantization": self.recipe.quantization,
            "max_new_tokens": self.engine.max_new_tokens,
            "temperature": self.engine.temperature,
            **({"chat_template_kwargs": dict(options)} if (options := self.recipe.chat_template_kwargs) else {}),
        }

    @cached_property
    def policy(self) -> Policy:
        """The model, loaded."""
        return self.recipe.load(best_device())

    def write(self, instructions: Sequence[str]) -> Iterator[str | None]:
        """Sample batch by batch, seeded by the instructions; see :meth:`Author.write`."""
        for start in range(0, len(instructions), self.batch_size):
            batch = PromptBatch(list(instructions[start : start + self.batch_size]))
            seed = stable_hash(batch.texts[0]) % 2**31
            yield from (texts[0] for texts in self.engine.generate(self.policy, batch, 1, seed).texts)
