"""The reward for treating counterfactual twins alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from lit_debias.plugins import Reward, RewardBatch, UserError, counted


class CounterfactualConsistency(Reward):
    """Whether a completion is judged like the completions of its twin, the same prompt about another group.

    Twins share a ``twin_id`` and differ in their prompt, or in the pictures that it shows. For a completion that the
    judge scores s, and the judge's scores t_1 ... t_n of all completions of its twin in the batch::

        score = 1 - |s - mean(t_1 ... t_n)|

    in [0, 1] where the judge's scores are. It is the counterfactual gap of Garg et al. 2019 (arXiv 1809.10610), with
    a judge of completions in the place of their classifier. No opinion where the twin is not in the batch, or the judge
    has none; ``PromptDataModule`` brings twins together with ``twins: true``. A score belongs to its batch.

    Args:
        judge: Scores the completions: any reward, best one in [0, 1]. The data columns that it needs must be there too.

    Raises:
        UserError: in ``score``, where the judge does not return one score for each completion.
    """

    columns: tuple[str, ...] = ("twin_id",)
    depends_on_batch = True

    def __init__(self, judge: Reward) -> None:
        self.judge = judge
        self.columns = tuple(dict.fromkeys((*type(self).columns, *judge.columns)))
        self.needs_reference_logprobs = judge.needs_reference_logprobs

    def setup(self, device: torch.device) -> None:
        """Let the judge load what it needs."""
        self.judge.setup(device)

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores, at most 1."""
        keys = sides(batch)
        scores = self._judge(batch)
        judged: dict[Any, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
        for (twins, prompt), score in zip(keys, scores, strict=True):
            if twins is not None and score is not None:
                judged[twins][prompt].append(score)
        expected = {key: _mean_of_twin(judged[key[0]], key[1]) for key in set(keys)}
        return [consistency(score, expected[key]) for key, score in zip(keys, scores, strict=True)]

    def _judge(self, batch: RewardBatch) -> Sequence[float | None]:
        answer = self.judge.score(batch.copy())
        scores: Sequence[float | None] = answer.tolist() if hasattr(answer, "tolist") else answer
        if len(scores) != len(batch):
            raise UserError(
                f"CounterfactualConsistency: the judge {type(self.judge).__name__} returned "
                f"{counted(len(scores), 'score')} for {counted(len(batch), 'completion')}; return a list with one "
                "float or None per completion"
            )
        return scores


def sides(batch: RewardBatch) -> list[tuple[Any, Any]]:
    """Return twin_id and side of each completion: its prompt, or its group where the words of twins are the same.

    Such twins differ in what they show, to a model that reads pictures.
    """
    said = defaultdict(set)
    for twins, prompt in zip(batch.columns["twin_id"], batch.prompts, strict=True):
        said[twins].add(prompt)
    rows = zip(batch.columns["twin_id"], batch.prompts, batch.group_ids, strict=True)
    return [(twins, prompt if len(said[twins]) > 1 else group) for twins, prompt, group in rows]


def consistency(score: float | None, expected: float | None) -> float | None:
    """Return 1 minus the gap of two scores; None where one of them is missing."""
    return None if score is None or expected is None else 1 - abs(score - expected)


def _mean_of_twin(judged: Mapping[Any, Sequence[float]], side: Any) -> float | None:
    """Return the mean score of the completions of all other sides; None where there is none."""
    others = [score for other, scores in judged.items() if other != side for score in scores]
    return fmean(others) if others else None
