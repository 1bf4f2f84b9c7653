"""Scores of completions that come slice by slice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_debias.rewards.suite import RewardSuite
from lit_debias.types import PromptBatch, Rollout, Scores

NamedScores = dict[str, float | None]
"""Name -> score, None where there is no opinion."""


class Scoring:
    """Asks rewards about each slice as it comes, and those that depend on their batch once about all of them.

    How prompts are cut into slices then changes no score.

    Args:
        suite: The rewards.
    """

    def __init__(self, suite: RewardSuite) -> None:
        self.suite = suite
        self._late = [name for name, reward in suite.rewards.items() if reward.depends_on_batch]
        self._early = [name for name in suite.rewards if name not in self._late]
        self._slices: list[Rollout] = []
        self._rows: list[NamedScores] = []

    def add(self, rollout: Rollout) -> list[NamedScores]:
        """Return what is known at once of a slice's prompts [P], each with one completion."""
        rows = rows_of(self.suite.score(rollout, self._early))
        rows = rows or [{} for _ in range(len(rollout.prompts))]
        self._rows += rows
        if self._late:
            self._slices.append(rollout)
        return rows

    def finish(self) -> list[NamedScores]:
        """Return all scores of all prompts, in the order in which they came."""
        if self._slices:
            late = rows_of(self.suite.score(joined(self._slices), self._late))
            self._rows = [row | other for row, other in zip(self._rows, late, strict=True)]
        return [{name: row[name] for name in self.suite.rewards} for row in self._rows]


def rows_of(scores: Scores) -> list[NamedScores]:
    """Return the scores of each prompt's first completion; nothing where there are no rewards."""
    columns = {
        name: [float(v) if there else None for v, there in zip(values[:, 0], scores.valid[name][:, 0], strict=True)]
        for name, values in scores.values.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def joined(slices: Sequence[Rollout]) -> Rollout:
    """Return the rollout of all prompts of several slices as rewards see it, without conversations."""
    prompts = [part.prompts for part in slices]
    columns = {name: [value for part in prompts for value in part.columns[name]] for name in prompts[0].columns}
    reference = [part.reference_logprobs for part in slices if part.reference_logprobs is not None]
    return Rollout(
        prompts=PromptBatch([text for part in prompts for text in part.texts], columns),
        prompt_ids=_stacked([part.prompt_ids for part in slices], left=True),
        prompt_mask=_stacked([part.prompt_mask for part in slices], left=True),
        completion_ids=_stacked([part.completion_ids for part in slices]),
        completion_mask=_stacked([part.completion_mask for part in slices]),
        logprobs=_stacked([part.logprobs for part in slices]),
        truncated=torch.cat([part.truncated for part in slices]),
        texts=[group for part in slices for group in part.texts],
        reference_logprobs=_stacked(reference) if reference else None,
    )


def _stacked(parts: Sequence[Tensor], left: bool = False) -> Tensor:
    """Return tensors [P_i, ..., T_i] as one, with zeros up to the longest."""
    longest = max(part.shape[-1] for part in parts)
    missing = [longest - part.shape[-1] for part in parts]
    return torch.cat([pad(part, (rest, 0) if left else (0, rest)) for part, rest in zip(parts, missing, strict=True)])
