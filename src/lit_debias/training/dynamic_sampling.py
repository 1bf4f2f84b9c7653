"""Groups without a spread teach nothing; others are sampled in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_debias.aggregators.aggregator import Aggregator, scored
from lit_debias.errors import UserError
from lit_debias.rollout.places import pick, put, put_scores
from lit_debias.support import distributed
from lit_debias.support.seeds import seed_again
from lit_debias.support.text import counted
from lit_debias.training.drawing import Collected, Drawing, Drawn
from lit_debias.types import PromptBatch, Rollout, Scores

HasSpread = Callable[[Rollout, Scores], Tensor]
"""Returns [P] bool, whether there is something to learn from each group; not collective."""


@dataclass(frozen=True)
class DynamicSampling:
    """Trains on groups whose completions differ in advantage, in YAML ``dynamic_sampling: {groups: 8}``.

    A group whose advantages are all 0 adds nothing to the gradient, so that steps get smaller and noisier the more
    prompts are solved, or hopeless. Dynamic sampling of DAPO (arXiv 2503.14476, section 3.2) leaves such groups out: a
    step samples its whole batch, and trains on the first ``groups`` with a spread, in the order of the batch. The first
    that finish would be short ones. What is left over is dropped, because the policy moves on. Where there are too few,
    the prompts without a spread are sampled again; after ``max_resamples`` times the step trains on what there is.

    Raises:
        UserError: a number is out of range.
    """

    groups: int | None = None
    """Groups of an update over all ranks; prompts of a batch beyond them are spare. null is one for each prompt."""
    max_resamples: int = 3
    """How often the prompts without a spread are sampled again, at most; 0 is never."""

    def __post_init__(self) -> None:
        if (self.groups is not None and self.groups < 1) or self.max_resamples < 0:
            raise UserError(
                f"dynamic_sampling: groups={self.groups}, max_resamples={self.max_resamples}; write at least 1 group, "
                "or null, and at least 0 resamples"
            )

    def check(self, aggregator: Aggregator) -> None:
        """Refuse aggregators that would learn from the groups that are left.

        Raises:
            UserError: it does.
        """
        if aggregator.learns:
            raise UserError(
                f"dynamic_sampling: {type(aggregator).__name__} learns from the means of a rollout, and the groups "
                "that are left are no fair sample of it; write an aggregator that does not, such as WeightedSum or "
                "GDPO, or dynamic_sampling: null"
            )

    def share(self, prompts: int) -> int:
        """Return the groups that this rank trains on.

        Args:
            prompts: In this rank's batch.

        Raises:
            UserError: there are fewer prompts than groups, or the ranks could not share them evenly.
        """
        ranks = distributed.world_size()
        groups = prompts * ranks if self.groups is None else self.groups
        if groups % ranks or groups > prompts * ranks:
            raise UserError(
                f"dynamic_sampling: groups is {groups}, of {counted(prompts * ranks, 'prompt')} in a batch and over "
                f"{counted(ranks, 'process', 'processes')}; write a multiple of these, and at most "
                "data.init_args.batch_size"
            )
        return groups // ranks


class Choosing:
    """Dynamic sampling on this rank. Which groups come out depends on policy, prompts and seed alone.

    Ranks sample as often, and as many prompts, as the one that lacks most, so that all of them make the same calls.

    Args:
        options: What the user asked for.
        drawing: Samples and scores.

    Raises:
        UserError: the aggregator learns.
    """

    def __init__(self, options: DynamicSampling, drawing: Drawing) -> None:
        options.check(drawing.module.aggregator)
        self.options, self.drawing, self.suite = options, drawing, drawing.module.rewards
        rewards = self.suite.rewards.items()
        self._together = [name for name, reward in rewards if reward.depends_on_batch]
        self._alone = self.suite.only([name for name, _ in rewards if name not in self._together])
        self._said = False

    @contextmanager
    def collecting(self, prompts: PromptBatch, seed: int) -> Iterator[Callable[[], Collected]]:
        """Do everything at once, as what is sampled again depends on scores; see :meth:`Drawing.collecting`."""
        collected = self(prompts, seed)
        yield lambda: collected

    def __call__(self, prompts: PromptBatch, seed: int) -> Collected:
        """Sample groups for the prompts of a batch, and choose those to train on (collective).

        Where none has a spread, it is one without; all its advantages are 0.

        Args:
            prompts: Of this rank.
            seed: The step's.

        Raises:
            UserError: see :meth:`DynamicSampling.share`.
        """
        share = self.options.share(len(prompts))
        with distributed.fail_together():
            drawn = self.drawing.draw(prompts, seed, self.suite, FirstGroups(share, self.drawing.has_spread))
            spread = self._spread(drawn)
        first = needed(spread, share)
        sampled, of_first = len(first), int(spread[: len(first)].sum())
        rewards = self.drawing.total(pick(drawn.scores, first))
        resamples = 0
        while resamples < self.options.max_resamples:
            again = lacking(spread, drawn.scores, share)
            most = max(distributed.gather_objects(len(again)))
            if most == 0:
                break
            resamples += 1
            with distributed.fail_together():
                drawn = self._redrawn(drawn, again, most, seed_again(seed, resamples))
                spread = self._spread(drawn)
            sampled += len(again)
        kept = spread.nonzero()[:share, 0].tolist()
        metrics = self._measured([sampled, len(first), of_first, len(kept), share], rewards, resamples)
        with distributed.fail_together():
            chosen = self.drawing.for_loss(_picked(drawn, kept or [0]))
        return Collected(chosen, pick(drawn.scores, needed(spread, share)), metrics)

    def _spread(self, drawn: Drawn) -> Tensor:
        return self.drawing.has_spread(drawn.rollout, drawn.scores)

    def _redrawn(self, drawn: Drawn, places: list[int], most: int, seed: int) -> Drawn:
        """Sample the prompts at some places again, among ``most`` prompts; the further ones are drawn and dropped."""
        asked = pick(drawn.rollout.prompts, [*places, *[0] * (most - len(places))])
        new = _picked(self.drawing.draw(asked, seed, self._alone), range(len(places)))
        rollout, scores = put(drawn.rollout, places, new.rollout), put_scores(drawn.scores, places, new.scores)
        if self._together and places:  # such as twins: their scores are of the batch as it is now
            scores = put_scores(scores, range(len(rollout.prompts)), self.suite.score(rollout, self._together))
        return Drawn(rollout, scores, None, drawn.seconds + new.seconds)

    def _measured(self, sizes: Sequence[int], rewards: Tensor, resamples: int) -> dict[str, float]:
        """Return the metrics, which docs/loggers.md explains, and say once where groups are missing."""
        known = rewards[scored(rewards)].double()
        own = torch.tensor([*sizes, len(known), float(known.sum())], dtype=torch.float64, device=rewards.device)
        sampled, first, spread, kept, wanted, number, reward = distributed.all_sum(own).tolist()
        if kept < wanted and not self._said:
            self._said = True
            rank_zero_warn(
                f"dynamic_sampling: {kept:.0f} of {wanted:.0f} groups have a spread after "
                f"{counted(resamples, 'resample')}; this step trains on them alone, and so will later ones without "
                "another word (see the metric dynamic_sampling/kept)"
            )
        found = {"sampled": sampled, "kept": kept, "spread": spread / first, "reward": reward / max(number, 1)}
        return {f"dynamic_sampling/{name}": value for name, value in found.items()}


class FirstGroups:
    """Whether the first groups with a spread are in, in the order of the batch, whichever finished first.

    Args:
        share: Groups that are needed.
        has_spread: Says which count.
    """

    def __init__(self, share: int, has_spread: HasSpread) -> None:
        self.share, self.has_spread = share, has_spread
        self._found: dict[int, bool] = {}

    def __call__(self, number: int, group: Rollout, scores: Scores) -> bool:
        """Take a group with its number in the batch, and return whether no other one is needed."""
        self._found[number] = bool(self.has_spread(group, scores))
        without_gap = takewhile(self._found.__contains__, count())
        return sum(self._found[place] for place in without_gap) >= self.share


def needed(spread: Tensor, share: int) -> range:
    """Return the places up to the ``share``-th group with a spread; all of them where there are fewer.

    What lies behind is left out of everything, because it may have been sampled or not.

    Args:
        spread: [P] bool.
        share: Groups that are needed.
    """
    reached = (spread.cumsum(0) >= share).nonzero()
    return range(int(reached[0]) + 1 if len(reached) else len(spread))


def lacking(spread: Tensor, scores: Scores, share: int) -> list[int]:
    """Return the places to sample again: those without a spread, unless there are enough with one.

    A group whose guarded reward has failed is no proof that there is nothing to learn, and stays as it is.

    Args:
        spread: [P] bool.
        scores: Of the P groups.
        share: Groups that are needed.
    """
    if int(spread.sum()) >= share:
        return []
    failed = [failed.any(1) for failed in scores.failed.values()]
    return (~torch.stack([spread, *failed]).any(0)).nonzero()[:, 0].tolist()


def _picked(drawn: Drawn, places: Sequence[int]) -> Drawn:
    return Drawn(pick(drawn.rollout, places), pick(drawn.scores, places), None, drawn.seconds)
