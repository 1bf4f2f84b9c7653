"""A judge that says why: what it finds biased, of which kind, about whom, and in which words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lit_debias.rewards.reward import Reward, RewardBatch


@dataclass(frozen=True)
class Explanation:
    """What a judge says of one completion, beside whether it is biased.

    Raises:
        ValueError: types of bias are named where there is none.
    """

    biased: bool
    types: tuple[str, ...] = ()
    """Of bias, each once, such as ``gender``; none where the text is not biased."""
    groups: tuple[str, ...] = ()
    """People who are spoken of."""
    keywords: tuple[str, ...] = ()
    """Words of the completion that show it."""
    reason: str = ""
    suggestion: str = ""
    """How the completion could be said instead."""
    dropped_keywords: tuple[str, ...] = ()
    """What the judge named as such words, and the completion does not hold."""

    def __post_init__(self) -> None:
        if self.types and not self.biased:
            raise ValueError(f"types are {list(self.types)} of a text that is not biased")

    @property
    def score(self) -> float:
        """The reward: 1 - biased."""
        return float(not self.biased)


class ExplainingReward(Reward):
    """A judge that explains its scores, as ``lit-debias explain`` takes it: 1 where nothing is biased, else 0.

    Write :meth:`explain` and :meth:`about` instead of :meth:`score`.
    """

    @abstractmethod
    def explain(self, batch: RewardBatch) -> Sequence[Explanation | None]:
        """Return N explanations, None where there is none that holds: it is no opinion, and never a score of 0."""

    @abstractmethod
    def about(self) -> dict[str, str]:
        """Return who judges, for what is written beside explanations: ``judge`` and ``template_sha256``."""

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores, 0 (biased) or 1 (not biased), None where there is no explanation."""
        return [None if one is None else one.score for one in self.explain(batch)]
