"""The reward: a score in [0, 1] out of a model's JSON answer."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from lit_debias.plugins import RewardBatch, UserError
from lit_debias_judge.endpoint import OPENAI, EndpointJudge
from lit_debias_judge.template import FAIRNESS, parse


class LLMJudge(EndpointJudge[float]):
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

    defaults: ClassVar[dict[str, Any]] = {
        "temperature": 0,
        "max_tokens": 200,
        "response_format": {"type": "json_object"},
    }

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
        _check_scale(type(self).__name__, template, scale)
        super().__init__(
            model=model,
            template=template,
            url=url,
            api_key_env=api_key_env,
            options=options,
            concurrency=concurrency,
            retries=retries,
            timeout=timeout,
            input_price=input_price,
            output_price=output_price,
            cache_dir=cache_dir,
        )
        self.scale = scale

    def read(self, answer: str | None) -> float | None:
        """Return the score in [0, 1] of an answer."""
        return parse(answer, *self.scale)

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [0, 1], None where there is no readable answer.

        Raises:
            UserError: the server refuses key, address or model, or has never answered and does not now.
        """
        scores = self.opinions(batch)
        self.log_usage()
        return scores


def _check_scale(who: str, template: str, scale: tuple[float, float]) -> None:
    lowest, highest = scale
    if not -math.inf < lowest < highest < math.inf:
        raise UserError(f"{who}: scale={list(scale)}; write two finite numbers, the lower one first")
    for end in scale:
        if f"{end:g}" not in template:
            raise UserError(f"{who}: scale={list(scale)}, but the template does not say {end:g}; let both agree")
