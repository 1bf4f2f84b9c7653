"""What a reward is: one finite float, or None for "no opinion", per completion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.rewards.identity import identity_of, recorded
from lit_debias.types import own_copy

R = TypeVar("R", bound="Reward")


@dataclass(frozen=True)
class RewardBatch:
    """N = P x G completions, flat, those of one prompt next to each other."""

    prompts: list[str]
    """[N] the user's words, repeated for each completion."""
    completions: list[str]
    """[N] decoded completions without special tokens."""
    group_ids: list[int]
    """[N] equal for the completions of one prompt."""
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    """The data's further columns by name, each [N]."""
    completion_ids: list[list[int]] | None = None
    """[N] token ids of each completion, where tokens are at hand."""
    reference_logprobs: list[Tensor] | None = None
    """[N] of [T_i] float32: log-probability of each completion token under the frozen reference at
    temperature 1. Filled only where a reward sets ``needs_reference_logprobs``."""

    def __len__(self) -> int:
        return len(self.completions)

    def copy(self) -> RewardBatch:
        """Return a batch of the same rows that shares nothing with this one which can be changed in place.

        Every reward gets one of its own. A reward that hands its batch to another one hands over a copy.
        """
        ids = self.completion_ids
        return replace(
            self,
            prompts=list(self.prompts),
            completions=list(self.completions),
            group_ids=list(self.group_ids),
            columns={name: own_copy(list(rows)) for name, rows in self.columns.items()},
            completion_ids=None if ids is None else [list(row) for row in ids],
            reference_logprobs=own_copy(self.reference_logprobs),
        )


class Reward(ABC):
    """Scores completions. The ``__init__`` signature is the reward's YAML schema.

    Build cheaply: check arguments in ``__init__``, load models in :meth:`setup`. A reward is no
    ``torch.nn.Module`` of the trainer: its weights are never trained, moved or stored with the policy.
    """

    _arguments: Any = ((), {})

    columns: tuple[str, ...] = ()
    """Data columns that must be there, for example ``("reference",)``."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest score that there can be; nothing is clipped to it, ``lit-debias rewards check`` tests it."""
    depends_on_batch: bool = False
    """Whether a score depends on the other completions of the batch, so that it compares within one batch only, and
    needs the whole of it at once. A reward around another one takes over what that one says."""
    needs_reference_logprobs: bool = False
    """Ask for :attr:`RewardBatch.reference_logprobs`; they cost one forward pass where the KL coefficient is 0."""

    speed_options: tuple[str, ...] = ()
    """Arguments of ``__init__`` that change scores by rounding at most; they are no part of :meth:`identity`."""

    def __new__(cls: type[R], *args: Any, **kwargs: Any) -> R:
        """Record the arguments, for :meth:`identity`."""
        reward = super().__new__(cls)
        object.__setattr__(reward, "_arguments", recorded((args, kwargs)))  # also where the class is a frozen one
        return reward

    def __init__(self) -> None:  # noqa: B027  (object's would take anything, now that __new__ does)
        """Take no options."""

    def identity(self) -> dict[str, Any]:
        """Return what the scores depend on, as JSON, the same before ``setup`` and after it.

        Evaluations keep an arm while the identities of judges and rewards stay what they were, and refuse a judge with
        the identity of a reward; caches of scores are keyed by it. By default it is the class, the version of its
        plugin, a digest of its source, and the arguments of ``__init__`` but for :attr:`speed_options`: numbers, texts,
        files and folders by their content, other rewards by their identity. A class whose scores depend on more, or
        that takes something else, such as a function, says so itself.

        Raises:
            UnknownIdentityError: it cannot be told, so that nothing is kept.
        """
        return identity_of(self, self._arguments, self.speed_options)

    def setup(self, device: torch.device) -> None:  # noqa: B027  (most rewards have nothing to load)
        """Load what scoring needs onto ``device``; called once before the first :meth:`score`."""

    @abstractmethod
    def score(self, batch: RewardBatch) -> Sequence[float | None]:
        """Return N finite floats, higher is better, or None where there is no opinion.

        The usual range is [0, 1], which keeps the weights of different rewards comparable; another one is written
        into :attr:`bounds`.
        """


def check_columns(what: str, needed: Sequence[str], available: Sequence[str]) -> None:
    """Raise :class:`UserError` where ``what`` needs a column that the data does not have."""
    missing = sorted(set(needed) - set(available))
    if missing:
        raise UserError(
            f"{what} needs the data column '{missing[0]}', and the data has: "
            f"{', '.join(available) or 'none'}; map it with data.init_args.columns"
        )
