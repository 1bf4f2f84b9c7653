"""What a server is asked to sample, and what its answers say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from lit_debias.plugins import ResumableError, counted
from lit_debias_vllm.server import ServerError

# vLLM takes what a request leaves out from the model's generation_config.json, so nothing is left out. The policy's
# ends alone end a completion: the server's own may be fewer or more.
WHOLE_DISTRIBUTION = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": True,
}
LARGEST_SEED = 2**62
NO_PROBABILITY = -9999.0
"""What vLLM writes for minus infinity."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    ids: list[int]
    """At least one, with the token that ended it."""
    logprobs: list[float]
    """As many; NaN where the server gave none."""
    truncated: bool
    """Whether the length limit ended it."""


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled."""

    n: int
    """Completions of each prompt."""
    max_tokens: int
    temperature: float
    """0 takes the most probable token, and ``n`` is then 1."""
    ends: tuple[int, ...]
    """Token ids that end a completion."""

    @classmethod
    def greedy(cls, max_tokens: int, ends: tuple[int, ...]) -> Sampling:
        """Take the most probable token."""
        return cls(1, max_tokens, 0.0, ends)

    def shorter(self, n: int, max_tokens: int) -> Sampling:
        """Return the same distribution with fewer completions of fewer tokens."""
        return replace(self, n=n, max_tokens=min(max_tokens, self.max_tokens))

    def body(self, model: str, salt: str, prompt: Sequence[int], seed: int) -> dict[str, Any]:
        """Return the request for one prompt.

        Args:
            model: Its name at the server.
            salt: Keeps cached prefixes of other versions of the policy away.
            prompt: Token ids.
            seed: The completions' own are this one and those that follow.
        """
        return {
            "model": model,
            "prompt": list(prompt),
            "return_token_ids": True,
            "cache_salt": salt,
            **self.parameters(seed),
        }

    def parameters(self, seed: int) -> dict[str, Any]:
        """Return what ``vllm.SamplingParams`` and a request have in common; see :meth:`body`."""
        return {
            "n": self.n,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop_token_ids": list(self.ends),
            "seed": seed if self.temperature else None,
            "logprobs": 0,
            **WHOLE_DISTRIBUTION,
        }

    def read(self, reply: Any, model: str, url: str) -> list[Completion]:
        """Return the ``n`` completions of an answer.

        Raises:
            ServerError: the answer is not one of the protocol, or another model's.
            ResumableError: the server ends completions elsewhere than it was told, or has no log-probs for them.
        """
        try:
            if reply["model"] != model:
                raise ServerError(f"it answers as '{reply['model']}' where '{model}' was asked")
            choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
            read = [self._completion(choice, url) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"its answer has not the fields of vLLM ({type(error).__name__}: {error})") from None
        if len(read) != self.n:
            raise ServerError(f"it sent {counted(len(read), 'completion')} where {self.n} were asked")
        return read

    def _completion(self, choice: Any, url: str) -> Completion:
        ids = [int(token) for token in choice["token_ids"]]
        logprobs = [_number(value) for value in choice["logprobs"]["token_logprobs"]]
        if not ids or len(logprobs) != len(ids):
            raise ValueError(f"{len(ids)} token_ids, {len(logprobs)} token_logprobs")
        if choice["finish_reason"] not in ("stop", "length"):
            raise ServerError(f"it ended a completion for the reason '{choice['finish_reason']}'")
        truncated = choice["finish_reason"] == "length"
        self._check_end(ids, truncated, url)
        wrong = [value for value in logprobs if value > 1e-3 or value <= NO_PROBABILITY]
        if wrong:
            raise ResumableError(
                f"VLLMEngine: {url} says {wrong[0]:g} for the log-probability of a token that it sampled; its weights "
                "or its version of vLLM are broken"
            )
        return Completion(ids, [min(value, 0.0) if value == value else value for value in logprobs], truncated)

    def _check_end(self, ids: list[int], truncated: bool, url: str) -> None:
        if truncated and len(ids) < self.max_tokens:
            raise ResumableError(
                f"VLLMEngine: {url} cuts completions at {counted(len(ids), 'token')}, and max_new_tokens is "
                f"{self.max_tokens}; start it with --generation-config vllm and a larger --max-model-len"
            )
        if not truncated and ids[-1] not in self.ends:
            raise ResumableError(
                f"VLLMEngine: {url} ends completions at token {ids[-1]}, which ends none of the policy's; start it "
                "with --generation-config vllm"
            )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def seed_of(step: int, place: int) -> int:
    """Return the seed of a prompt's first completion; the others' follow it, and no other prompt's are among them.

    Args:
        step: The seed that the engine was given.
        place: Which of all ranks' prompts.
    """
    return int.from_bytes(sha256(f"{step} {place}".encode()).digest()[:8], "big") % LARGEST_SEED
