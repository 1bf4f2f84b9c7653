"""What turns prompts into groups of completions."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

from lit_debias.errors import UserError
from lit_debias.policy.policy import Policy
from lit_debias.support.requirement import Requirement
from lit_debias.types import PromptBatch, Rollout

OnGroup = Callable[[int, Rollout], None]


def enough(on_group: OnGroup | None) -> bool:
    """Return whether no further group is needed by now: whether ``on_group`` has an attribute ``enough`` that says so.

    An engine may ask between two tokens, and end the groups that it has not called ``on_group`` with yet: nobody will
    look at them.
    """
    return bool(getattr(on_group, "enough", False))


class RolloutUnderWay(ABC):
    """A rollout that is being sampled, see :meth:`RolloutEngine.under_way`."""

    seconds: float
    """Wall-clock time of sampling, known once :meth:`result` has returned; it may have ended long before."""

    @abstractmethod
    def result(self) -> Rollout:
        """Wait for it, and return it.

        The policy has the weights again with which it was begun, whatever it had in the meantime.
        """


class RolloutEngine(ABC):
    """Samples completions from the policy.

    Args:
        max_new_tokens: Longest completion, in tokens, end-of-sequence token included.
        temperature: Divides the logits before sampling; the update uses the same value.

    Raises:
        UserError: a value is out of range.
    """

    reads_pictures: ClassVar[bool] = False
    """Whether it shows the model the pictures of prompts; see :meth:`Policy.pictures_of`."""

    def __init__(self, max_new_tokens: int = 128, temperature: float = 1.0) -> None:
        if max_new_tokens < 1 or not 0 < temperature < math.inf:
            raise UserError(
                f"engine: max_new_tokens={max_new_tokens}, temperature={temperature}; write max_new_tokens >= 1 and a "
                "finite temperature > 0 (validation is greedy whatever the temperature)"
            )
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature

    @property
    def needs_base(self) -> bool:
        """Whether it needs the whole base in this process, which has only a part under ModelParallelStrategy."""
        return True

    def prepare(self, policy: Policy) -> None:  # noqa: B027  # engines may have nothing to check
        """Check, before the first step, that what will be sampled is the policy; does nothing by default.

        Raises:
            UserError: the engine cannot sample from this model.
        """

    def examine(self) -> Iterable[Requirement]:
        """Look at what it needs outside of this process, for ``lit-debias doctor --engine``; nothing by default."""
        return ()

    @abstractmethod
    def generate(
        self,
        policy: Policy,
        prompts: PromptBatch,
        group_size: int,
        seed: int,
        greedy: bool = False,
        on_group: OnGroup | None = None,
    ) -> Rollout:
        """Return ``group_size`` completions for each prompt.

        The log-probs are those of the distribution that was sampled from: that of the temperature over the whole
        vocabulary, or, where an engine filters it, renormalised over the ``support`` that the rollout then carries.

        Args:
            policy: The policy as it is now.
            prompts: P prompts of this rank; every rank brings the same number.
            group_size: G.
            seed: The same on every rank; equal seeds give equal completions of equal prompts, in whatever way
                the prompts are dealt to ranks.
            greedy: Take the most probable token instead of sampling.
            on_group: Called with the number of a prompt and the rollout of it alone, at most once for each, as soon as
                all of its completions are finished; an engine that cannot tell need not call it. See :func:`enough`.
        """

    def under_way(
        self, policy: Policy, prompts: PromptBatch, group_size: int, seed: int, on_group: OnGroup | None = None
    ) -> AbstractContextManager[RolloutUnderWay]:
        """Begin a rollout that is the one of :meth:`generate`, and return a context that ends it where it is not done.

        For ``one_step_off_policy``. By default it is sampled at once, as the context is entered. An engine that samples
        elsewhere has it sampled in the background: within the context the policy is then trained, so nothing is asked
        of it, of its weights or of other ranks except on entering and in :meth:`RolloutUnderWay.result`, which both are
        called in the thread of the caller. What failed in the background is raised by ``result``.
        """
        options = {} if on_group is None else {"on_group": on_group}
        return at_once(self, policy, prompts, group_size, seed, **options)


@dataclass
class Sampled(RolloutUnderWay):
    """A rollout that is there."""

    rollout: Rollout
    seconds: float

    def result(self) -> Rollout:
        """Return it."""
        return self.rollout


@contextmanager
def at_once(
    engine: RolloutEngine, policy: Policy, prompts: PromptBatch, group_size: int, seed: int, **options: OnGroup
) -> Iterator[RolloutUnderWay]:
    """Sample as the context is entered; the arguments are those of :meth:`RolloutEngine.under_way`."""
    start = time.perf_counter()
    rollout = engine.generate(policy, prompts, group_size, seed, **options)  # type: ignore[arg-type]
    yield Sampled(rollout, time.perf_counter() - start)
