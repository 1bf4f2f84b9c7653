"""Runs the named rewards over a rollout: checks what they return, times them, and guards them if asked to."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_debias import distributed
from lit_debias.errors import UserError, cause_of
from lit_debias.rewards.base import Reward, RewardBatch, check_columns
from lit_debias.rewards.settings import kept_settings
from lit_debias.types import Rollout, Scores

if TYPE_CHECKING:
    from lit_debias.rewards.guard import Guard

LARGEST = torch.finfo(torch.float32).max


class RewardError(UserError):
    """A reward broke its contract; the message names the reward, the row and the value."""


@dataclass(frozen=True)
class Answer:
    """What a reward said of N completions."""

    scores: list[float | None]
    """[N] finite in float32; None where there is no opinion, or no usable one."""
    problems: dict[int, str]
    """Row -> why its score cannot be used."""

    @property
    def values(self) -> Tensor:
        """[N] float32, 0 where there is no score."""
        return torch.tensor([0.0 if score is None else score for score in self.scores], dtype=torch.float32)

    @property
    def valid(self) -> Tensor:
        """[N] bool, True where there is a score."""
        return torch.tensor([score is not None for score in self.scores], dtype=torch.bool)

    @property
    def failed(self) -> Tensor:
        """[N] bool, True where a score is missing through the reward's fault."""
        return torch.tensor([row in self.problems for row in range(len(self.scores))], dtype=torch.bool)


class RewardSuite:
    """Named rewards that are scored together.

    Args:
        rewards: The rewards by name.
        guard: Stands around every reward; without one, a reward that fails stops the run.
        guards: Guards of single rewards, by name, instead of ``guard``; null leaves a reward without one.

    Raises:
        UserError: a reward that is to be isolated cannot be sent to another process.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        guard: Guard | None = None,
        guards: Mapping[str, Guard | None] | None = None,
    ) -> None:
        self.rewards = dict(rewards)
        chosen = {name: (guards or {}).get(name, guard) for name in self.rewards}
        self.guarded = {name: own.around(name, self.rewards[name]) for name, own in chosen.items() if own is not None}

    @property
    def needs_reference_logprobs(self) -> bool:
        """Whether some reward asks for log-probs under the reference."""
        return any(reward.needs_reference_logprobs for reward in self.rewards.values())

    def setup(self, device: torch.device) -> None:
        """Let every reward load what it needs onto ``device``.

        Raises:
            RewardError: one failed.
        """
        for name, reward in self.rewards.items():
            with kept_settings():
                self.guarded[name].setup(device) if name in self.guarded else prepare(name, reward, device)

    def check_columns(self, available: Sequence[str]) -> None:
        """Raise :class:`UserError` where a reward needs a column that the data does not have."""
        for name, reward in self.rewards.items():
            check_columns(f"reward '{name}'", reward.columns, available)

    def score(self, rollout: Rollout, names: Sequence[str] | None = None) -> Scores:
        """Score every completion with every reward. Where there are guards, :meth:`settle` must follow.

        Args:
            rollout: P x G completions.
            names: Some of the rewards, instead of all.

        Raises:
            RewardError: a reward without a guard failed, returned the wrong number of scores, or one that is not a
                finite number.
        """
        flat = flatten(rollout)
        shape, device = (len(rollout.prompts), rollout.group_size), rollout.completion_ids.device
        scores = Scores({}, {}, columns=rollout.prompts.columns)
        for name in self.rewards if names is None else names:
            start = time.perf_counter()
            answer = self._answer(name, flat)
            scores.seconds[name] = time.perf_counter() - start
            scores.values[name] = answer.values.view(shape).to(device)
            scores.valid[name] = answer.valid.view(shape).to(device)
            if name in self.guarded:
                scores.failed[name] = answer.failed.view(shape).to(device)
        return scores

    def _answer(self, name: str, batch: RewardBatch) -> Answer:
        with kept_settings():
            if name in self.guarded:
                return self.guarded[name].score(batch)
            answer = answer_of(name, self.rewards[name], batch)
        _refuse_problems(answer)
        return answer

    def settle(self, scores: Scores) -> None:
        """Tell the guards of all ranks how the rollout went, so that they decide alike; nothing without guards.

        Collective: every rank calls it once after each rollout is scored, and outside
        :func:`lit_debias.distributed.fail_together`.

        Args:
            scores: What was found of the whole rollout on this rank.

        Raises:
            UnreliableRewardError: a reward has lost more of its scores than its guard allows; on every rank.
        """
        if not self.guarded:
            return
        counts = [
            [int(scores.failed[name].sum()), scores.failed[name].numel(), guarded.failed, guarded.hangs]
            for name, guarded in self.guarded.items()
        ]
        device = next(iter(scores.failed.values())).device
        totals = distributed.all_sum(torch.tensor(counts, dtype=torch.float32, device=device)).tolist()
        for guarded, (lost, asked, failed, hangs) in zip(self.guarded.values(), totals, strict=True):
            guarded.settle(lost / asked, failed=failed > 0, hangs=hangs > 0)


def prepare(name: str, reward: Reward, device: torch.device) -> None:
    """Let a reward load what it needs.

    Raises:
        UserError: as the reward raised it.
        RewardError: it raised something else; the message says where, and the cause is chained.
    """
    try:
        reward.setup(device)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(f"reward '{name}' failed in setup: {cause_of(error)} ({_place(error)})") from error


def ask(name: str, reward: Reward, batch: RewardBatch) -> Sequence[float | None]:
    """Return what the reward says of a batch, of which it gets a copy of its own.

    Raises:
        RewardError: it raised something; the message says where, and the cause is chained.
    """
    try:
        return reward.score(batch.copy())
    except UserError as error:
        raise RewardError(f"reward '{name}': {error}") from error
    except SystemExit as error:  # it must not end a run as if all were well
        raise RewardError(f"reward '{name}' raised {cause_of(error)} in {_place(error)}") from error
    except Exception as error:
        raise RewardError(f"reward '{name}' failed in {_place(error)}: {cause_of(error)}") from error


def _place(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{place.filename}, line {place.lineno}"


def answer_of(name: str, reward: Reward, batch: RewardBatch) -> Answer:
    """Ask a reward and read what it returns.

    Raises:
        RewardError: it raised something, or nothing says which score belongs to which completion.
    """
    return read_scores(name, ask(name, reward, batch), batch)


def flatten(rollout: Rollout) -> RewardBatch:
    """Return the rollout's P x G completions as one flat batch, group by group."""
    group_size = rollout.group_size

    def repeat(rows: Sequence[Any]) -> list[Any]:
        return [row for row in rows for _ in range(group_size)]

    lengths = rollout.lengths.flatten().tolist()
    ids = rollout.completion_ids.flatten(0, 1).tolist()
    reference = None
    if rollout.reference_logprobs is not None:
        rows = rollout.reference_logprobs.flatten(0, 1).cpu()
        reference = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    return RewardBatch(
        prompts=repeat(rollout.prompts.texts),
        completions=[text for group in rollout.texts for text in group],
        group_ids=repeat(range(len(rollout.prompts))),
        columns={name: repeat(rows) for name, rows in rollout.prompts.columns.items()},
        completion_ids=[row[:length] for row, length in zip(ids, lengths, strict=True)],
        reference_logprobs=reference,
    )


def check_scores(name: str, answer: Sequence[float | None], batch: RewardBatch) -> tuple[Tensor, Tensor]:
    """Return [N] float32 scores and the [N] mask of those that are there, or say what is wrong with them.

    Raises:
        RewardError: wrong container, wrong length, or an entry that is neither None nor a finite number.
    """
    read = read_scores(name, answer, batch)
    _refuse_problems(read)
    return read.values, read.valid


def read_scores(name: str, answer: Any, batch: RewardBatch) -> Answer:
    """Return what can be used of a reward's answer, and what is wrong with the rest.

    Raises:
        RewardError: wrong container or length, so that nothing says which score belongs to which completion; or
            code of the container's or of an entry's own failed.
    """
    try:
        return _read(name, answer, batch)
    except RewardError:
        raise
    except Exception as error:  # a foreign __len__ or __repr__; a whole number of thousands of digits has no text
        raise RewardError(
            f"reward '{name}' returned what cannot be read ({type(error).__name__}); return a list of floats"
        ) from error


def _read(name: str, answer: Any, batch: RewardBatch) -> Answer:
    scores = answer.tolist() if hasattr(answer, "tolist") else answer  # tensors and arrays
    if isinstance(scores, (str, bytes)) or not isinstance(scores, Sequence):
        raise RewardError(
            f"reward '{name}' returned {type(answer).__name__}; return a list with one float or None per completion"
        )
    scores = list(scores)  # a class of one's own may say another length than it has
    if len(scores) != len(batch):
        raise RewardError(f"reward '{name}' returned {len(scores)} scores for {len(batch)} completions")
    numbers = [_finite(score) for score in scores]
    problems = {
        row: f"reward '{name}' returned {score!r:.80} for prompt {batch.prompts[row]!r:.80} and completion "
        f"{batch.completions[row]!r:.80}; return a finite float, or None for no opinion"
        for row, score in enumerate(scores)
        if score is not None and numbers[row] is None
    }
    return Answer(numbers, problems)


def _refuse_problems(answer: Answer) -> None:
    for problem in answer.problems.values():
        raise RewardError(problem)


def _finite(score: Any) -> float | None:
    """Return the score as a float, or None where it is no finite number."""
    try:
        number = math.nan if isinstance(score, (str, bytes)) else float(score)
        return number if abs(number) <= LARGEST else None  # None for NaN
    except Exception:  # whatever a foreign __float__ raises
        return None
