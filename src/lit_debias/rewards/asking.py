"""Asks one reward about one batch, and reads what it returns."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_debias.errors import UserError, cause_of
from lit_debias.rewards.explanation import ExplainingReward, Explanation
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.support.text import counted

T = TypeVar("T")
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
    return _call(name, reward.score, batch)


def ask_why(name: str, judge: ExplainingReward, batch: RewardBatch) -> list[Explanation | None]:
    """Return N explanations of a batch, of which the judge gets a copy of its own.

    Raises:
        RewardError: as in :func:`ask`; or it returned something else than an explanation or None for each completion.
    """
    found = list(_call(name, judge.explain, batch))
    if len(found) != len(batch) or not all(one is None or isinstance(one, Explanation) for one in found):
        raise RewardError(
            f"reward '{name}': explain returned {counted(len(found), 'value')} for "
            f"{counted(len(batch), 'completion')}; return an Explanation or None for each"
        )
    return found


def _call(name: str, method: Callable[[RewardBatch], Sequence[T]], batch: RewardBatch) -> Sequence[T]:
    try:
        return method(batch.copy())
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


def check_scores(name: str, answer: Sequence[float | None], batch: RewardBatch) -> list[float | None]:
    """Return N scores, in float32 as training sees them and None where there is no opinion; or say what is wrong.

    Raises:
        RewardError: wrong container, wrong length, or an entry that is neither None nor a finite number.
    """
    read = read_scores(name, answer, batch)
    refuse_problems(read)
    return [score if there else None for score, there in zip(read.values.tolist(), read.valid.tolist(), strict=True)]


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
        raise RewardError(
            f"reward '{name}' returned {counted(len(scores), 'score')} for {counted(len(batch), 'completion')}"
        )
    numbers = [_finite(score) for score in scores]
    problems = {
        row: f"reward '{name}' returned {score!r:.80} for prompt {batch.prompts[row]!r:.80} and completion "
        f"{batch.completions[row]!r:.80}; return a finite float, or None for no opinion"
        for row, score in enumerate(scores)
        if score is not None and numbers[row] is None
    }
    return Answer(numbers, problems)


def refuse_problems(answer: Answer) -> None:
    """Raise :class:`RewardError` where some score cannot be used."""
    for problem in answer.problems.values():
        raise RewardError(problem)


def _finite(score: Any) -> float | None:
    """Return the score as a float, or None where it is no finite number."""
    try:
        number = math.nan if isinstance(score, (str, bytes)) else float(score)
        return number if abs(number) <= LARGEST else None  # None for NaN
    except Exception:  # whatever a foreign __float__ raises
        return None
