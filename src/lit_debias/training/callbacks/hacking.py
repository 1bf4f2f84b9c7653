"""What reward hacking looks like: measures of one rollout, and how they are judged. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from lit_debias.grpo.advantages import group_advantages
from lit_debias.support.text import is_refusal, ngrams, numerals, words
from lit_debias.types import Experience

Values = dict[str, float]

COPIED_WORDS = 3
"""Words in a row that count as copied from the prompt."""


def dominance(experience: Experience) -> Values:
    """Return ``dominance/<reward>``: the share of the advantages' variance that the reward accounts for.

    Scores and advantages are brought to unit variance within each group; a least-squares fit of the advantages on the
    scores then splits the variance: weight x covariance (Pratt's measure). The shares add up to the fit's R^2, at most
    1, whatever the aggregator does; a reward that pulls against the others has a negative one. There are none where
    there is one reward, or no advantage.
    """
    scores = experience.scores
    every = torch.ones_like(experience.advantages, dtype=torch.bool)
    target = _standardised(experience.advantages, every)
    if len(scores.values) < 2 or not target.any():
        return {}
    table = torch.stack([_standardised(scores.values[name], scores.valid[name]) for name in scores.values], 1)
    weights = torch.linalg.lstsq(table, target[:, None], driver="gelsd").solution[:, 0]  # for any rank
    shares = weights * (table.T @ target) / target.square().sum()
    return {f"dominance/{name}": share for name, share in zip(scores.values, shares.tolist(), strict=True)}


def _standardised(values: Tensor, valid: Tensor) -> Tensor:
    """Return [P x G] float64 on the CPU, of mean 0 and variance 1 within each group; 0 where nothing differs."""
    return group_advantages(values, valid, "group", min_std=1e-6, eps=1e-9).flatten().double().cpu()


def length(experience: Experience) -> Values:
    """Return ``length``: the mean length of a completion, in tokens."""
    return {"length": float(experience.rollout.lengths.float().mean())}


def variety(experience: Experience) -> Values:
    """Return ``distinct_2``, different word pairs over word pairs (Li et al. 2016), and ``duplicates``.

    The latter is the share of completions that are word for word an earlier one of their group.
    """
    groups = experience.rollout.texts
    pairs = [pair for group in groups for text in group for pair in ngrams(words(text), 2)]
    repeated = 1 - sum(len(set(group)) for group in groups) / sum(len(group) for group in groups)
    return {"duplicates": repeated} | ({"distinct_2": len(set(pairs)) / len(pairs)} if pairs else {})


def copying(experience: Experience) -> Values:
    """Return ``copying``: the mean share of a completion's word trigrams that stand in its prompt."""
    rollout = experience.rollout
    pairs = zip(rollout.prompts.texts, rollout.texts, strict=True)
    shares = [share for prompt, group in pairs for share in copied(prompt, group)]
    return {"copying": fmean(shares)} if shares else {}


def copied(prompt: str, completions: Sequence[str], n: int = COPIED_WORDS) -> list[float]:
    """Return the share of word n-grams that stand in the prompt, for each completion of at least n words."""
    given = set(ngrams(words(prompt), n))
    grams = [ngrams(words(text), n) for text in completions]
    return [sum(gram in given for gram in row) / len(row) for row in grams if row]


def numbers(experience: Experience) -> Values:
    """Return ``numerals``: the mean share of a completion's words that hold a digit."""
    shares = [numerals(text) for group in experience.rollout.texts for text in group]
    known = [share for share in shares if share is not None]
    return {"numerals": fmean(known)} if known else {}


def refusals(experience: Experience) -> Values:
    """Return ``refusals``: the share of completions that are empty or refuse."""
    return {"refusals": fmean(is_refusal(text) for group in experience.rollout.texts for text in group)}


def measure(experience: Experience) -> Values:
    """Return all of the above."""
    return {
        name: value
        for function in (dominance, length, variety, copying, numbers, refusals)
        for name, value in function(experience).items()
    }


def mean_over(ranks: Sequence[Mapping[str, float]]) -> Values:
    """Return the mean of each value over the ranks that have it."""
    names = dict.fromkeys(name for values in ranks for name in values)
    return {name: fmean(values[name] for values in ranks if name in values) for name in names}


def rise(now: float, before: float) -> float:
    """Return how much a share rose."""
    return now - before


def loss(now: float, before: float) -> float:
    """Return which part of the value before is gone."""
    return 1 - now / before if before else 0.0


def factor(now: float, before: float) -> float:
    """Return how many times the value is larger or smaller, at least 1."""
    small, large = sorted((max(now, 1e-9), max(before, 1e-9)))
    return large / small


@dataclass(frozen=True)
class Alarm:
    """How a value is judged."""

    reading: Callable[[float, float], float]
    """Turns the value now and the one before into a number that is higher the worse it is."""
    bar: float
    """The reading above which the alarm rings, unless the user says otherwise."""
    meaning: str
    """What the value is."""


ALARMS = {
    "dominance": Alarm(lambda now, _: now, 0.9, "the share of the advantages' variance that this reward makes"),
    "length": Alarm(factor, 2.0, "the mean tokens of a completion"),
    "distinct_2": Alarm(loss, 0.5, "the share of different ones among all word pairs"),
    "duplicates": Alarm(rise, 0.3, "the share of completions that repeat one of their group"),
    "copying": Alarm(rise, 0.3, "the share of word trigrams that stand in the prompt"),
    "numerals": Alarm(rise, 0.05, "the share of words that hold a digit"),
    "refusals": Alarm(rise, 0.2, "the share of completions that are empty or refuse"),
    "judges": Alarm(lambda now, before: before - now, 0.05, "what this judge gives, while the reward rose,"),
}
