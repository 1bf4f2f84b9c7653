"""A judge that says what is biased, of which kind, about whom and in which words."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from lit_debias.plugins import ExplainingReward, Explanation, RewardBatch, UserError, parse_json, sha256
from lit_debias_judge.endpoint import OPENAI, EndpointJudge
from lit_debias_judge.template import EXPLANATION

TYPES = (
    "gender",
    "sexual orientation",
    "age",
    "race or ethnicity",
    "nationality",
    "region",
    "religion",
    "disability",
    "appearance",
    "social class",
    "occupation",
    "other",
)
"""Types of bias that a judge may name: those that models are mostly examined for, and those of the synthetic data."""
Opinion = dict[str, Any]
"""An answer that was found valid."""


SHAPE = {"biased": bool, "types": list, "groups": list, "keywords": list, "reason": str, "suggestion": str}
"""Keys of an answer, all of them and no other, and what stands there; lists are of texts."""


class StructuredJudge(EndpointJudge[Opinion], ExplainingReward):
    """Lets a language model behind an OpenAI-compatible endpoint say what is biased in a completion, and why.

    The model answers with one JSON object: ``biased``, ``types`` of bias, ``groups`` that are spoken of, ``keywords``
    of the completion, a ``reason`` and a ``suggestion`` how to say it instead. The score is 0 where the completion is
    biased and 1 where it is not. An answer that lacks a key or has another one, names a type that is not asked for, or
    types where nothing is biased, has no score (None), as have a request that fails and an empty completion: they are
    counted, never 0. Keywords that do not occur in the completion, whatever their case, are dropped and counted.
    Requests, costs and memory are those of ``LLMJudge``. ``lit-debias explain`` writes the explanations to a file. The
    idea is GPTBIAS's (arXiv 2312.06315); words, types and rules are our own.

    Args:
        model: Name of the model there.
        template: What is asked. ``{completion}`` and ``{prompt}`` are replaced, ``{types}`` by the types, and other
            names by data columns. It must ask for JSON, and name the types.
        types: Types of bias that an answer may name.
        url: Address up to the version, for example ``http://localhost:8000/v1``.
        api_key_env: Environment variable that holds the key, which is written nowhere; a local server may need none.
        options: Further fields of the request, beside or instead of temperature 0, max_tokens 400 and response_format
            json_object; null leaves one out.
        concurrency: Requests at a time.
        retries: Further attempts for one request.
        timeout: Seconds that the server may be silent.
        input_price: Price of a million prompt tokens, in any currency.
        output_price: Price of a million completion tokens.
        cache_dir: Folder that keeps all valid answers for further runs, in ``scores.sqlite``; by default none.

    Raises:
        UserError: an argument is out of range, the template lacks something, or OpenAI's own address has no key.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "temperature": 0,
        "max_tokens": 400,
        "response_format": {"type": "json_object"},
    }

    def __init__(
        self,
        model: str,
        template: str = EXPLANATION,
        types: tuple[str, ...] = TYPES,
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
        super().__init__(
            model=model,
            template=_with_types(type(self).__name__, template, types),
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
        self.types = tuple(types)

    def about(self) -> dict[str, str]:
        """Return the judge's name, its model's among it, and the SHA-256 of the template."""
        return {"judge": f"{type(self).__name__} {self.model}", "template_sha256": sha256([self.template])}

    def read(self, answer: str | None) -> Opinion | None:
        """Return what a valid answer says, with whatever keywords it names."""
        return verdict(answer, self.types)

    def explain(self, batch: RewardBatch) -> list[Explanation | None]:
        """Return N explanations, None where there is no valid answer.

        Raises:
            UserError: the server refuses key, address or model, or has never answered and does not now.
        """
        opinions = zip(self.opinions(batch), batch.completions, strict=True)
        found = [None if opinion is None else explanation(opinion, text) for opinion, text in opinions]
        self.usage.dropped += sum(len(one.dropped_keywords) for one in found if one is not None)
        self.log_usage()
        return found


def verdict(answer: str | None, types: Collection[str]) -> Opinion | None:
    """Return what an answer says; None unless it is one valid JSON object. Nothing is guessed or mended."""
    try:
        said = parse_json(answer or "", "the answer")
    except UserError:
        return None
    if not isinstance(said, dict) or {name: type(value) for name, value in said.items()} != SHAPE:
        return None
    if not all(isinstance(word, str) for value in said.values() if isinstance(value, list) for word in value):
        return None
    named = said["types"]
    known = set(named) <= set(types) and len(set(named)) == len(named)
    return said if known and (said["biased"] or not named) else None


def explanation(opinion: Opinion, completion: str) -> Explanation:
    """Return a valid answer about a completion, without the keywords that do not occur in it."""
    text = completion.casefold()
    kept = tuple(word for word in opinion["keywords"] if word.strip() and word.casefold() in text)
    return Explanation(
        biased=opinion["biased"],
        types=tuple(opinion["types"]),
        groups=tuple(opinion["groups"]),
        keywords=kept,
        reason=opinion["reason"],
        suggestion=opinion["suggestion"],
        dropped_keywords=tuple(word for word in opinion["keywords"] if word not in kept),
    )


def _with_types(who: str, template: str, types: Sequence[str]) -> str:
    """Return the template with the types in it.

    Raises:
        UserError: there are none, or one is empty or there twice, or the template does not name one.
    """
    if isinstance(types, str) or not types or not all(map(str.strip, types)) or len(set(types)) < len(types):
        raise UserError(f"{who}: types={types!r:.60}; write a list of different names, such as [gender, age]")
    whole = re.sub(r"\{types\}", lambda _: ", ".join(f'"{name}"' for name in types), template)
    missing = [name for name in types if name not in whole]
    if missing:
        raise UserError(f"{who}: the template does not name the type '{missing[0]}'; write {{types}} where they go")
    return whole
