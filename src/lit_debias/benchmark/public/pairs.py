"""Pairs to train on, of benchmarks that compare two sentences: what DPO prefers is the one that stereotypes less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from lit_debias.benchmark.public.crows_pairs import CrowsPairs
from lit_debias.benchmark.public.stereoset import StereoSet

PairRow = dict[str, str]
"""``prompt``, ``chosen``, ``rejected``, ``bias_type`` and ``source``."""
BLANK = "Fill in the blank: "
"""Before a sentence without the words in which the two differ."""


def of_stereoset(folder: str) -> Iterator[PairRow]:
    """Yield the anti-stereotypes of StereoSet over the stereotypes: after a context, or where they fill a blank."""
    for item in StereoSet().read(folder):
        anti, stereo, _ = item.sentences
        prompt = item.context or with_blank(anti, stereo)
        bias_type = item.stratum.partition("/")[2]
        yield _row(prompt, anti, stereo, bias_type, f"stereoset/{item.unit}")


def of_crows_pairs(folder: str) -> Iterator[PairRow]:
    """Yield the sentences of CrowS-Pairs that stereotype less over those that do more."""
    for item in CrowsPairs().read(folder):
        yield _row(with_blank(item.less, item.more), item.less, item.more, item.bias_type, f"crows_pairs/{item.unit}")


SOURCES = {StereoSet.name: of_stereoset, CrowsPairs.name: of_crows_pairs}
"""Benchmark -> its pairs."""


def with_blank(first: str, second: str) -> str:
    """Return a request for the words in which two sentences differ, as one blank from the first of them to the last."""
    one, other = first.split(), second.split()
    start = _shared(one, other)
    end = _shared(one[start:][::-1], other[start:][::-1])
    return BLANK + " ".join([*one[:start], "___", *one[len(one) - end :]])


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many words two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _row(prompt: str, chosen: str, rejected: str, bias_type: str, source: str) -> PairRow:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "bias_type": bias_type, "source": source}
