"""Puts prompts to a policy, and keeps what it says and how likely it finds what it is given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_debias.benchmark.asking import Model
from lit_debias.conversations import with_system
from lit_debias.data.tables import Row
from lit_debias.errors import UserError
from lit_debias.evaluation.prompts import BIAS_KINDS, GENERATED_KINDS, PROSE
from lit_debias.evaluation.records import Record
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.sentence_encoder import SentenceEncoder
from lit_debias.policy.policy import Policy
from lit_debias.rewards.scoring import Scoring
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.support.progress import Advance
from lit_debias.support.seeds import seed_at
from lit_debias.types import PromptBatch, Rollout

Pair = tuple[Row, Record]
PARTS = ("answers", "preference", "choices", "prose")
"""What a policy may be asked: to answer, how likely given responses and choices are, and to read prose."""


@dataclass(frozen=True)
class Examiner:
    """Puts prompts to a policy.

    Args:
        judges: Score in [0, 1] how fair a completion is; nothing was trained on them.
        rewards: Reported next to the judges.
        engine: Answers the prompts.
        batch_size: Prompts in one forward pass.
        greedy: Take the most probable token instead of sampling.
        seed: Of sampling. Every arm draws with the same random numbers, so that arms are compared in pairs.
        other: Another language model, which reads the completions.
        encoder: Compares completions with the neutral responses.
        parts: What is asked, some of :data:`PARTS`.
    """

    judges: RewardSuite
    rewards: RewardSuite
    engine: LocalEngine
    batch_size: int
    greedy: bool = False
    seed: int = 0
    other: LanguageModel | None = None
    encoder: SentenceEncoder | None = None
    parts: Collection[str] = PARTS

    def load(self, device: torch.device) -> None:
        """Load every model but the policy onto ``device``; does nothing for those that are there."""
        for suite in (self.judges, self.rewards):
            suite.setup(device)
        for model in (self.other, self.encoder):
            if model is not None:
                model.load(device)

    def examine(self, policy: Policy, rows: Sequence[Row], advance: Advance) -> list[Record]:
        """Return a record per row; ``advance`` is told how many rows are done."""
        pairs = [(row, Record.of(row)) for row in rows]
        if "answers" in self.parts:
            self._answer(policy, [pair for pair in pairs if pair[0]["prompt_kind"] in GENERATED_KINDS], advance)
        if "preference" in self.parts:
            self._prefer(policy, [pair for pair in pairs if has_preference(pair[0])])
        if "choices" in self.parts:
            self._choose(policy, [pair for pair in pairs if len(pair[0]["choices"]) > 1], advance)
        records = [record for _, record in pairs]
        if "prose" in self.parts:
            self._read_prose(policy, [record for record in records if record.prompt_kind == PROSE], advance)
        return records

    def sample(self, policy: Policy, rows: Sequence[Row], count: int, advance: Advance) -> list[list[str]]:
        """Return ``count`` answers [P][count] to each of P prompts, sampled as :meth:`examine` samples one."""
        found: dict[int, list[str]] = {}
        size = max(1, self.batch_size // count)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt"]))  # pads little
        for number, start in enumerate(range(0, len(rows), size)):
            some = by_length[start : start + size]
            asked = asked_of([rows[i] for i in some])
            rollout = self.engine.generate(policy, asked, group_size=count, seed=seed_at(self.seed, number))
            found.update(zip(some, rollout.texts, strict=True))
            advance(len(some))
        return [found[i] for i in range(len(rows))]

    def _answer(self, policy: Policy, pairs: list[Pair], advance: Advance) -> None:
        judging, scoring = Scoring(self.judges), Scoring(self.rewards)
        answered: list[Pair] = []
        for number, batch in enumerate(self._batches(pairs)):
            rollout = self._generate(policy, batch, seed_at(self.seed, number))
            check_range(judging.add(rollout))
            scoring.add(rollout)
            self._read_again(batch)
            answered += batch
            advance(len(batch))
        for (_, record), judged, scored in zip(answered, judging.finish(), scoring.finish(), strict=True):
            check_range([judged])
            record.judges, record.rewards = judged, scored

    def _prefer(self, policy: Policy, pairs: list[Pair]) -> None:
        for batch in self._batches(pairs):
            answers = [[row["reference"], row["biased"]] for row, _ in batch]
            for (_, record), (neutral, biased) in zip(batch, mean_logprobs(policy, batch, answers), strict=True):
                record.reference_logprob, record.biased_logprob = neutral, biased

    def _choose(self, policy: Policy, pairs: list[Pair], advance: Advance) -> None:
        for batch in self._batches(pairs):
            choices = [list(row["choices"]) for row, _ in batch]
            for (_, record), values in zip(batch, mean_logprobs(policy, batch, choices), strict=True):
                record.choice_logprobs = values
            advance(sum(row["prompt_kind"] not in GENERATED_KINDS for row, _ in batch))

    def _read_prose(self, policy: Policy, records: Sequence[Record], advance: Advance) -> None:
        passages = [[record.prompt] for record in records]
        found = Model(policy, self.judges, advance).sentences([""] * len(passages), passages)
        for record, [likelihood] in zip(records, found, strict=True):
            record.prose_logprob, record.prose_tokens = likelihood.total, likelihood.tokens

    def _batches(self, pairs: list[Pair]) -> Iterator[list[Pair]]:
        by_length = sorted(pairs, key=lambda pair: len(pair[0]["prompt"]))  # pads little
        for start in range(0, len(by_length), self.batch_size):
            yield by_length[start : start + self.batch_size]

    def _generate(self, policy: Policy, batch: Sequence[Pair], seed: int) -> Rollout:
        """Answer prompts; the rollout is that of the frozen base's log-probs, which rewards may ask for."""
        rows = [row for row, _ in batch]
        prompts = replace(asked_of(rows), columns={name: [row[name] for row in rows] for name in rows[0]})
        rollout = self.engine.generate(policy, prompts, group_size=1, seed=seed, greedy=self.greedy)
        with policy.as_base():
            ids, mask = policy.encode_prompts(prompts.asked)
            pictures = policy.pictures_of(prompts.asked)
            plain = replace(rollout, prompt_ids=ids, prompt_mask=mask, pictures=pictures)
            logprobs = policy.logprobs(plain)
        for index, (_, record) in enumerate(batch):
            record.completion = rollout.texts[index][0]
            record.tokens = int(rollout.lengths[index, 0])
            record.truncated = bool(rollout.truncated[index, 0])
            record.base_logprob = float(logprobs[index].sum())
        return replace(plain, reference_logprobs=logprobs)

    def _read_again(self, batch: Sequence[Pair]) -> None:
        """Let the other language model and the encoder read the completions of a batch."""
        said = [(row, record, record.completion or "") for row, record in batch]
        if self.other is not None:
            asked = asked_of([row for row, _, _ in said]).asked
            _, logprobs = self.other.read(asked, [text for _, _, text in said])
            for (_, record), values in zip(batch, logprobs, strict=True):
                record.other_logprob, record.other_tokens = float(values.double().sum()), len(values)
        compared = [(record, text, row["reference"]) for row, record, text in said if row["reference"]]
        if self.encoder is not None and compared:
            found = self.encoder.similarity([text for _, text, _ in compared], [given for _, _, given in compared])
            for (record, _, _), value in zip(compared, found, strict=True):
                record.similarity = value


def asked_of(rows: Sequence[Row]) -> PromptBatch:
    """Return the prompts of rows, conversations where one of them is one."""
    texts = [row["prompt"] for row in rows]
    messages = [row.get("messages") or with_system(row["prompt"], None) for row in rows]
    return PromptBatch(texts, messages=messages if any(row.get("messages") for row in rows) else None)


def has_preference(row: Row) -> bool:
    """Return whether a prompt has a neutral and a biased response to be compared."""
    return bool(row["prompt_kind"] in BIAS_KINDS and row["reference"] and row["biased"])


def check_range(judged: Iterable[Mapping[str, float | None]]) -> None:
    """Raise :class:`UserError` where a judge leaves [0, 1]; bias intensity is 1 minus its score."""
    for row in judged:
        for name, score in row.items():
            if score is not None and not 0 <= score <= 1:
                raise UserError(f"judge '{name}' returned {score:.3g}; a judge must score from 0 (biased) to 1 (fair)")


def mean_logprobs(policy: Policy, batch: Sequence[Pair], answers: Sequence[list[str]]) -> list[list[float]]:
    """Return for each prompt the mean log-probability of a token of each of its answers, in nats."""
    widest = max(map(len, answers))
    padded = [[*given, *[""] * (widest - len(given))] for given in answers]
    rollout = policy.encode(asked_of([row for row, _ in batch]), padded)
    means = _mean_over_tokens(policy.logprobs(rollout), rollout)
    return [row[: len(given)] for row, given in zip(means.tolist(), answers, strict=True)]


def _mean_over_tokens(logprobs: Tensor, rollout: Rollout) -> Tensor:
    return logprobs.sum(-1) / rollout.lengths.clamp(min=1)
