"""The contract of a reward as a test: what ``lit-debias rewards check`` looks at, for tests of plugins too."""

from __future__ import annotations

import json
import pickle
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch

from lit_debias.errors import UserError, cause_of
from lit_debias.rewards.asking import RewardError, ask, check_scores, prepare
from lit_debias.rewards.contract_texts import EXAMPLES, ODD, PLAIN, TWIN
from lit_debias.rewards.identity import UnknownIdentityError, variants
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.support.text import counted

ROUNDING = 1e-6
"""How far a score may lie outside its bounds: scores are float32."""
REPEATS = 3


@dataclass(frozen=True)
class Finding:
    """One line of the result."""

    check: str
    passed: bool | None
    """None where there is nothing to pass: something is only measured, or does not apply."""
    detail: str


@dataclass(frozen=True)
class Example:
    """One completion with what belongs to it."""

    prompt: str
    completion: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    """Where it comes from, for messages."""


class _Remark(str):
    """What a check found that a reward cannot fail."""


def examine(
    reward: Reward,
    pairs: Sequence[tuple[Example, Example]] = (),
    columns: Mapping[str, Any] | None = None,
    max_latency: float | None = None,
    tolerance: float = 1e-4,
    device: str = "cpu",
) -> list[Finding]:
    """Test the contract of a reward on texts of all kinds.

    Tokens are the bytes of a completion, and log-probabilities under the reference, where the reward asks for them,
    are made up: both are functions of the completion alone.

    Args:
        reward: As configured, before its ``setup``.
        pairs: Better and worse completion of one prompt; the better one must score higher. Each is a batch of its own.
        columns: Column -> the value that every completion gets, for rewards that need columns of the data. Those that
            say how prompts belong together, such as ``twin_id``, have examples of their own.
        max_latency: Most milliseconds that a completion may take; by default latency is measured and not judged.
        tolerance: Largest difference of scores that counts as rounding.
        device: Where models are loaded.

    Returns:
        One finding per check. A reward that gives no usable scores for ordinary texts is not tested further.

    Raises:
        UserError: the reward needs a column that ``columns`` lacks and that has no example, or a number is negative.
    """
    if tolerance < 0 or (max_latency is not None and max_latency < 0):
        raise UserError(f"tolerance={tolerance}, max_latency={max_latency}; write numbers from 0 up")
    rows = ordinary_rows(reward, columns or {})
    return list(_Examination(reward, list(pairs), rows, max_latency, tolerance, torch.device(device)).findings())


def ordinary_rows(reward: Reward, columns: Mapping[str, Any]) -> list[Example]:
    """Return completions of ordinary length with the columns that a reward needs.

    Raises:
        UserError: there is no value for one of them.
    """
    examples = {name: values for name, values in EXAMPLES.items() if name in reward.columns and name not in columns}
    prompts = {**PLAIN, **TWIN} if examples else PLAIN
    return [
        Example(prompt, text, needed_columns(reward, {**columns, **{name: v[number] for name, v in examples.items()}}))
        for number, (prompt, texts) in enumerate(prompts.items())
        for text in texts
    ]


class _Examination:
    """Runs the checks; scores of ordinary texts and all extremes are kept between them."""

    def __init__(
        self,
        reward: Reward,
        pairs: list[tuple[Example, Example]],
        rows: list[Example],
        max_latency: float | None,
        tolerance: float,
        device: torch.device,
    ) -> None:
        self.reward, self.pairs, self.rows = reward, pairs, rows
        self.max_latency, self.tolerance, self.device = max_latency, tolerance, device
        self.name = type(reward).__name__
        self.first: list[float | None] = []
        self.extremes: dict[float, str] = {}
        self.pickled: bytes | Exception = b""
        self.identified: Any = None

    def findings(self) -> Iterator[Finding]:
        """Yield a finding per check; without usable scores the first two are all."""
        for check, run in (("setup", self.setup), ("length and finiteness", self.ordinary)):
            yield (finding := _finding(check, run))
            if finding.passed is False:
                return
        yield _finding("order of the batch", self.order)
        yield _finding("size of the batch", self.size)
        for check, texts in ODD.items():
            yield _finding(check, partial(self.odd, texts))
        if self.pairs:
            yield _finding("better and worse pairs", self.ordering)
        yield _finding("range", self.range)
        yield _finding("determinism", self.determinism)
        yield _finding("pickle", self.copy)
        yield _finding("identity", self.identity)
        yield _finding("latency", self.latency)

    def score(self, rows: Sequence[Example], reward: Reward | None = None) -> list[float | None]:
        """Return checked scores, in float32 as training sees them; rows of one prompt are one group."""
        batch = with_tokens(batch_of(rows), self.reward.needs_reference_logprobs)
        scores = check_scores(self.name, ask(self.name, reward or self.reward, batch), batch)
        self.extremes |= {score: row.completion for score, row in zip(scores, rows, strict=True) if score is not None}
        return scores

    def setup(self) -> str:
        try:
            self.pickled = pickle.dumps(self.reward)
        except Exception as error:  # whatever an attribute raises
            self.pickled = error
        with suppress(Exception):  # it is asked again below
            self.identified = self.reward.identity()
        try:
            prepare(self.name, self.reward, self.device)
        except UserError as error:
            raise RewardError(f"setup fails: {error}") from error
        return f"ready on {self.device}"

    def ordinary(self) -> str:
        self.score(self.rows[:1])
        self.first = self.score(self.rows)
        if self.pairs and not self.heard:  # perhaps it reads another language
            self.rows = [row for pair in self.pairs for row in pair]
            self.first = self.score(self.rows)
        silent = self.first.count(None)
        return self.seen(f"{counted(len(self.rows), 'completion')}, {silent} without opinion")

    @property
    def heard(self) -> bool:
        """Whether it has an opinion on anything ordinary."""
        return any(score is not None for score in self.first)

    def seen(self, detail: str) -> str:
        """Return what was found, or that nothing was to be seen."""
        if self.heard:
            return detail
        return _Remark(
            f"no opinion on any of {counted(len(self.rows), 'completion')}: nothing was seen; give --pairs to judge"
        )

    def order(self) -> str:
        self.compare(self.score(self.rows[::-1])[::-1], "as the batch is, {}, and with its rows reversed, {}")
        return self.seen("a reversed batch gets the same scores")

    def size(self) -> str:
        if self.reward.depends_on_batch:
            return _Remark("depends on the batch, as the class says: compare scores within one batch only")
        half, groups = len(self.rows) // 2, [list(group) for _, group in groupby(self.rows, lambda row: row.prompt)]
        parts = {
            "alone": [[row] for row in self.rows],
            "in its group": groups,
            "in half of it": [self.rows[:half], self.rows[half:]],
        }
        for how, batches in parts.items():
            scores = [score for batch in batches for score in self.score(batch)]
            hint = "if that is meant, set depends_on_batch = True"
            self.compare(scores, f"in a batch of {len(self.rows)}, {{}}, and {how}, {{}}; {hint}")
        return self.seen(f"alone and in a batch of {len(self.rows)}: the same scores")

    def odd(self, texts: Sequence[str]) -> str:
        rows = [replace(self.rows[0], completion=text) for text in texts]
        others = self.rows if self.reward.depends_on_batch else []  # such as twins, without which it has no opinion
        return ", ".join(map(shown, self.score([*rows, *others])[: len(rows)]))

    def ordering(self) -> str:
        wrong = []
        for better, worse in self.pairs:
            high, low = self.score([better, worse])
            if high is None or low is None or high <= low:
                wrong.append(f"{better.completion!r:.40}: {shown(high)}, {worse.completion!r:.40}: {shown(low)}")
        if wrong:
            raise RewardError(f"{len(wrong)} of {len(self.pairs)} are wrong, such as better {wrong[0]}")
        return f"all {len(self.pairs)} in order"

    def range(self) -> str:
        low, high = self.reward.bounds
        for score, text in self.extremes.items():
            if not low - ROUNDING <= score <= high + ROUNDING:
                raise RewardError(
                    f"{shown(score)} for {text!r:.40} is not in [{low:g}, {high:g}]; set bounds in the class"
                )
        if not self.extremes:
            return "no opinion on anything"
        return f"{shown(min(self.extremes))} to {shown(max(self.extremes))}, within [{low:g}, {high:g}]"

    def determinism(self) -> str:
        self.compare(self.score(self.rows), "the first time, {}, and after other texts, {}", tolerance=0)
        first: dict[str, float | None] = {}
        for row, score in zip(self.rows, self.first, strict=True):
            old = first.setdefault(repr(row), score)
            if not close(old, score, self.tolerance):
                raise RewardError(f"one text twice in a group scores {shown(old)} and {shown(score)}")
        return self.seen("the same batch, and the same text, gets the same scores")

    def copy(self) -> str:
        if isinstance(self.pickled, Exception):
            raise RewardError(f"{self.pickled}; keep functions at the top of a module, and open things in setup")
        try:
            copy = pickle.loads(self.pickled)
            copy.setup(self.device)
        except Exception as error:
            raise RewardError(f"a copy fails: {cause_of(error)}") from error
        self.compare(self.score(self.rows, copy), "by the reward, {}, and by its copy, {}")
        return self.seen(f"{len(self.pickled)} bytes before setup; the copy gives the same scores")

    def identity(self) -> str:
        try:
            found = json.dumps(self.reward.identity())
            if found != json.dumps(self.identified):
                raise RewardError("identity() is another one before setup; return what does not change")
            for change, other in variants(self.reward):
                same = json.dumps(other.identity()) == found
                if same is bool(change):
                    raise RewardError(f"identity() {_identity_fault(change)}")
        except UnknownIdentityError as reason:
            return _Remark(f"cannot be told, so nothing is kept of its scores: {reason}; define identity()")
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(f"identity() fails or is not JSON: {cause_of(error)}") from error
        return "the same for equal arguments, and another one for others"

    def latency(self) -> str:
        seconds = []
        for repeat in range(REPEATS):  # new texts: a reward may remember old ones
            rows = [replace(row, completion=f"{row.completion} {repeat}") for row in self.rows]
            start = time.perf_counter()
            self.score(rows)
            seconds.append(time.perf_counter() - start)
        milliseconds = 1000 * statistics.median(seconds) / len(self.rows)
        found = f"{milliseconds:.3g} ms a completion, in batches of {len(self.rows)}"
        if self.max_latency is None:
            return _Remark(found)
        if milliseconds > self.max_latency:
            raise RewardError(f"{found}; at most {self.max_latency:g}")
        return found

    def compare(self, scores: list[float | None], how: str, tolerance: float | None = None) -> None:
        """Raise :class:`RewardError` for the first score that differs from the first time."""
        for row, old, new in zip(self.rows, self.first, scores, strict=True):
            if not close(old, new, self.tolerance if tolerance is None else tolerance):
                raise RewardError(f"{row.completion!r:.40} scores {how.format(shown(old), shown(new))}")


def _identity_fault(change: str) -> str:
    if not change:
        return "differs for equal arguments; return what they alone decide"
    return f"is the same with {change}; let it tell them apart, or name the argument in speed_options"


def _finding(check: str, run: Callable[[], str]) -> Finding:
    try:
        detail = run()
        return Finding(check, None if isinstance(detail, _Remark) else True, detail)
    except RewardError as broken:
        return Finding(check, False, str(broken))


def close(left: float | None, right: float | None, tolerance: float) -> bool:
    """Return whether two scores are equal up to rounding; None equals None only."""
    if left is None or right is None:
        return left is right
    return abs(left - right) <= tolerance * max(1.0, abs(left), abs(right))


def shown(score: float | None) -> str:
    """Return a score for people."""
    return "no opinion" if score is None else f"{score:.4g}"


def needed_columns(reward: Reward, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return those columns that the reward needs.

    Raises:
        UserError: one is missing.
    """
    if missing := sorted(set(reward.columns) - set(columns)):
        name = type(reward).__name__
        raise UserError(f"{name} needs the data column '{missing[0]}'; write --columns '{{{missing[0]}: VALUE}}'")
    return {name: columns[name] for name in reward.columns}


def batch_of(rows: Sequence[Example]) -> RewardBatch:
    """Return N rows as a batch of texts, without tokens; those of one prompt are one group."""
    groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    return RewardBatch(
        prompts=[row.prompt for row in rows],
        completions=[row.completion for row in rows],
        group_ids=[groups[row.prompt] for row in rows],
        columns={name: [row.columns[name] for row in rows] for name in rows[0].columns},
    )


def with_tokens(batch: RewardBatch, reference: bool) -> RewardBatch:
    """Return the batch with bytes as its tokens, and made-up log-probs in [-4, 0] where they are wanted."""
    ids = [list(text.encode()) for text in batch.completions]
    logprobs = [torch.tensor(row, dtype=torch.float32) / -64 for row in ids]
    return replace(batch, completion_ids=ids, reference_logprobs=logprobs if reference else None)
