"""How long benchmarks will take, from a few items of each that are timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from lit_debias.benchmark.asking import CannotAskError, Model
from lit_debias.benchmark.benchmark import draw
from lit_debias.benchmark.measuring import Sample, blamed
from lit_debias.data.tables import Row
from lit_debias.evaluation.examiner import Examiner
from lit_debias.policy.policy import Policy
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.progress import ignore
from lit_debias.support.text import counted

TIMED = (1, 8)
"""Items of each benchmark that are timed one after the other: the first warms up, the last are as many as a batch."""
TIMED_PROMPTS = 2
"""Prompts that are timed where several answers to each are sampled."""
ENOUGH = 2.0
"""Seconds after which no more of them are timed."""


def how_long(policy: Policy, due: Sequence[Sample], judges: RewardSuite, arms: int) -> Iterator[str]:
    """Yield what to say before benchmarks are asked; nothing where no more would be asked than is timed.

    Args:
        policy: Loaded.
        due: What it will be asked.
        judges: Set up.
        arms: How many are asked the same, replicas included.
    """
    large = [sample for sample in due if len(sample.items) > TIMED[-1]]
    if not large:
        return
    seconds = {sample.name: seconds_of(policy, sample, judges) for sample in large}
    parts = [f"{name} {in_words(known)}" for name, known in seconds.items() if known is not None]
    total = in_words(sum(filter(None, seconds.values())))
    each = f", as long for each of {arms} arms" if arms > 1 else ""
    yield f"benchmarks: about {total}{each} ({', '.join(parts)}), by the time that {TIMED[-1]} items of each take"


def seconds_of(policy: Policy, sample: Sample, judges: RewardSuite) -> float | None:
    """Return the seconds that a sample will take, by some of its items; None where it cannot be asked."""
    model = Model(policy, judges, ignore)
    each = 0.0
    for count in TIMED:
        items = draw(sample.items, count, 0)
        start = time.perf_counter()
        try:
            with blamed(sample.benchmark, "ask"):
                sample.benchmark.ask(model, items)
        except CannotAskError:
            return None
        spent = time.perf_counter() - start
        each = spent / len(items)
        if spent > ENOUGH:
            break
    return each * len(sample.items)


def how_long_texts(examiner: Examiner, policy: Policy, rows: Sequence[Row], samples: int, arms: int) -> str:
    """Return what to say before several answers to each prompt are sampled, by the time that a few take.

    Args:
        examiner: Asks them.
        policy: Loaded.
        rows: Prompts that will be asked.
        samples: Answers to each.
        arms: How many are asked the same, replicas included.
    """
    few = rows[:: max(1, len(rows) // TIMED_PROMPTS)][:TIMED_PROMPTS]
    for part in (few[:1], few):  # the first warms up
        start = time.perf_counter()
        examiner.sample(policy, part, samples, ignore)
    seconds = (time.perf_counter() - start) / max(1, len(few)) * len(rows)
    each = f", as long for each of {arms} arms" if arms > 1 else ""
    total = counted(samples * len(rows), "answer")
    prompts = counted(len(rows), "prompt")
    return f"texts: {samples} answers to each of {prompts}, {total}: about {in_words(seconds)}{each}"


def in_words(seconds: float) -> str:
    """Return a duration as ``5 s`` or ``3 min``."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"
