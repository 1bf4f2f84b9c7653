"""Groups of completions, sampled and scored: what a step of GRPO begins with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from lit_debias.rewards.overlap import IsEnough, scoring
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.engine import at_once
from lit_debias.support import distributed
from lit_debias.types import PromptBatch, Rollout, Scores, own_copy

if TYPE_CHECKING:
    from lit_debias.training.grpo import GRPO


@dataclass(frozen=True)
class Drawn:
    """P groups of completions with their scores."""

    rollout: Rollout
    scores: Scores
    reference: Tensor | None
    """[P, G, T] float32, log-probs under the reference at the sampling temperature, where the loss needs them."""
    seconds: float
    """Wall-clock time of sampling."""
    waited: float = 0.0
    """Of it, what was waited for at the end, once there was nothing else to do."""


@dataclass(frozen=True)
class Collected:
    """What a step trains on, and what came before."""

    drawn: Drawn
    asked: Scores
    """Of all groups that counted, those that are not trained on included: for the guards."""
    metrics: dict[str, float]
    """For the log; the same names on every rank."""


class Drawing:
    """Samples and scores as a module says, and asks the reference.

    Args:
        module: Whose policy, engine, rewards and aggregator these are.
    """

    def __init__(self, module: GRPO) -> None:
        self.module = module

    @contextmanager
    def collecting(self, prompts: PromptBatch, seed: int) -> Iterator[Callable[[], Collected]]:
        """Begin to sample a group for each prompt, and yield what waits for them and scores them (both collective)."""
        ahead, for_loss = self.module.one_step_off_policy, self.module.loss.beta > 0
        with ExitStack() as ends:
            with distributed.fail_together():
                begun = self._begun(prompts, seed, self.module.rewards, for_loss=for_loss, ahead=ahead)
                drawn = ends.enter_context(begun)

            def collected() -> Collected:
                with distributed.fail_together():
                    found = drawn()
                return Collected(found, found.scores, {"rollout_wait": found.waited} if ahead else {})

            yield collected

    def draw(self, prompts: PromptBatch, seed: int, suite: RewardSuite, is_enough: IsEnough | None = None) -> Drawn:
        """Sample a group for each prompt, and score them.

        Args:
            prompts: Of this rank.
            seed: Of sampling.
            suite: The rewards that are asked.
            is_enough: Ends sampling early, where scoring overlaps it.
        """
        with self._begun(prompts, seed, suite, is_enough) as drawn:
            return drawn()

    @contextmanager
    def _begun(
        self,
        prompts: PromptBatch,
        seed: int,
        suite: RewardSuite,
        is_enough: IsEnough | None = None,
        for_loss: bool = False,
        ahead: bool = False,
    ) -> Iterator[Callable[[], Drawn]]:
        """Begin what :meth:`draw` returns, in the background where it is ``ahead``, and yield what waits for it."""
        module = self.module
        with scoring(suite, module.overlap_scoring, is_enough) as (score, options):
            begin = module.engine.under_way if ahead else partial(at_once, module.engine)
            with ExitStack() as ends:
                with module.policy.failing_together():  # before all ask the reference
                    begun = begin(module.policy, prompts, module.group_size, seed, **options)
                    under_way = ends.enter_context(begun)

                def drawn() -> Drawn:
                    start = time.perf_counter()
                    with module.policy.failing_together():
                        rollout = under_way.result()
                    waited = time.perf_counter() - start
                    rollout, reference = self.with_reference(rollout, module.rewards, for_loss)
                    return Drawn(rollout, score(rollout), reference, under_way.seconds, waited)

                yield drawn

    def with_reference(self, rollout: Rollout, suite: RewardSuite, for_loss: bool) -> tuple[Rollout, Tensor | None]:
        """Ask the reference once, at both temperatures, and only if the loss or a reward needs it."""
        if not for_loss and not suite.needs_reference_logprobs:
            return rollout, None
        supports = (rollout.support, None)  # rewards ask about the whole vocabulary
        at = (self.module.engine.temperature, 1.0)
        sampled, plain = self.module.policy.logprobs_at(rollout, at, reference=True, supports=supports)
        return replace(rollout, reference_logprobs=plain), sampled if for_loss else None

    def for_loss(self, drawn: Drawn) -> Drawn:
        """Return the same with the reference's log-probs, if the loss needs them; the rewards had theirs."""
        rollout, reference = self.with_reference(drawn.rollout, RewardSuite({}), self.module.loss.beta > 0)
        return replace(drawn, rollout=rollout, reference=reference)

    def has_spread(self, rollout: Rollout, scores: Scores) -> Tensor:
        """Return [P] bool: whether the completions of a group differ in advantage, and some of them count."""
        all_cut = rollout.truncated.all(1) & self.module.mask_truncated
        return self.module.aggregator.has_signal(own_copy(scores), self.module.rollout_step) & ~all_cut

    def total(self, scores: Scores) -> Tensor:
        """Return the combined reward for the logs, [P, G]; NaN for a completion that no reward has scored."""
        return self.module.aggregator.total(own_copy(scores), self.module.rollout_step)
