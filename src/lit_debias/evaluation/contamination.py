"""Whether an adapter was trained on what it is measured on: its record against the items of benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lit_debias.benchmark.benchmark import Item
from lit_debias.benchmark.measuring import Sample
from lit_debias.errors import UserError
from lit_debias.evaluation.arms import Arm
from lit_debias.export.record import Record, read_record
from lit_debias.support.sketch import overlap, strings_in

MADE_OF = {"biasfreebench": "stereoset", "stereoset": "stereoset", "crowspairs": "crows_pairs"}
"""What the name of a data set holds, in small letters without marks -> the benchmark that it is made of. The pairs of
BiasFreeBench (arXiv 2510.00232) come from StereoSet."""
LEAST = 2
"""Sentences that must be found: one may be there by chance."""
LEAST_SHARE = 0.01
LEAST_SHARE_OF_PROMPTS = 0.1
"""The same of prompts, which may share a sentence with others of their template."""
_ABOUT_ITEMS = {field.name for field in fields(Item)}


def trained_on(replicas: Sequence[Arm]) -> list[str]:
    """Return the names of the data sets that an arm's adapters were trained on, as far as their folders say."""
    return list(dict.fromkeys(str(data["name"]) for data in _data_of(replicas) if data.get("name")))


def contaminated(replicas: Sequence[Arm], samples: Iterable[Sample]) -> dict[str, str]:
    """Return benchmark -> why an arm's figures of it are no measurement, in words: it was trained on the items."""
    data = list(_data_of(replicas))
    reasons = ((sample.name, _reason(sample, data)) for sample in samples)
    return {name: reason for name, reason in reasons if reason}


def learned_prompts(replicas: Sequence[Arm], prompts: Sequence[str]) -> str | None:
    """Return in words that an arm was trained on the prompts that it is asked; None where it was not."""
    return _prompts_among(prompts, _data_of(replicas))


def refuse_learned(prompts: Sequence[str], samples: Iterable[Sample], data: Record, adapter: str | None) -> None:
    """Check that a run does not measure on what it learns from.

    Args:
        prompts: What it is asked.
        samples: The benchmarks that it is asked.
        data: What it learns from, as its training record says.
        adapter: The folder of the adapter that it continues.

    Raises:
        UserError: prompts or items of a benchmark are among that.
    """
    learned = [data, *_data_of([Arm("", adapter)])]
    if reason := _prompts_among(prompts, learned):
        raise UserError(f"data: it would be measured on prompts that it learns from, {reason}; name others")
    for sample in samples:
        if reason := _reason(sample, learned):
            raise UserError(
                f"'{sample.name}' would measure nothing, as the policy learns from it: {reason}; leave it out"
            )


def notes_of(found: Mapping[str, Mapping[str, str]], prompts: Mapping[str, str | None]) -> list[str]:
    """Return what a reader should know of arm -> benchmark -> reason, and of arm -> reason of its prompts."""
    learned = [f"{arm} was trained on prompts that it is asked here: {why}" for arm, why in prompts.items() if why]
    return learned + [
        f"{arm} was trained on {benchmark}, so its figures there measure nothing: {reason}"
        for arm, reasons in found.items()
        for benchmark, reason in reasons.items()
    ]


def _data_of(replicas: Sequence[Arm]) -> Iterator[Record]:
    for arm in replicas:
        stages = read_record(Path(arm.adapter).expanduser()).get("training", []) if arm.adapter else []
        yield from (stage["data"] for stage in stages if isinstance(stage.get("data"), dict))


def _reason(sample: Sample, data: Sequence[Record]) -> str | None:
    texts = [text for item in sample.items for text in _texts_of(item)]
    for one in data:
        name = str(one.get("name"))
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        if any(part in plain and benchmark == sample.name for part, benchmark in MADE_OF.items()):
            return f"the data set '{name}' is made of it"
        if found := _among(texts, one, LEAST_SHARE):
            return found
    return None


def _prompts_among(prompts: Sequence[str], data: Iterable[Record]) -> str | None:
    return next(filter(None, (_among(prompts, one, LEAST_SHARE_OF_PROMPTS) for one in data)), None)


def _among(texts: Sequence[str], data: Record, share: float) -> str | None:
    """Return in words how many sentences of texts are in a data set, where they are not a few by chance."""
    found, tested = overlap(texts, data.get("texts", []))
    if found < LEAST or found < share * tested:
        return None
    return f"{found} of {tested} sentences that were looked up are in '{data.get('name')}'"


def _texts_of(item: Item) -> Iterator[str]:
    own: dict[str, Any] = {name: value for name, value in vars(item).items() if name not in _ABOUT_ITEMS}
    return strings_in(own)
