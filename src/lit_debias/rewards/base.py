"""What a reward is: one finite float, or None for "no opinion", per completion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_debias.errors import UserError


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


class Reward(ABC):
    """Scores completions. The ``__init__`` signature is the reward's YAML schema.

    Build cheaply: check arguments in ``__init__``, load models in :meth:`setup`. A reward is no
    ``torch.nn.Module`` of the trainer: its weights are never trained, moved or stored with the policy.
    """

    columns: tuple[str, ...] = ()
    """Data columns that must be there, for example ``("reference",)``."""
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Lowest and highest score that there can be; nothing is clipped to it, ``lit-debias rewards check`` tests it."""
    depends_on_batch: ClassVar[bool] = False
    """Whether a score depends on the other completions of the batch, so that it compares within one batch only."""
    needs_reference_logprobs: bool = False
    """Ask for :attr:`RewardBatch.reference_logprobs`; they cost one forward pass where the KL coefficient is 0."""

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
