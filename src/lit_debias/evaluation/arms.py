"""One arm of the comparison: a policy, the prompts, and everything that is asked of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_debias.conversations import with_system
from lit_debias.errors import UserError
from lit_debias.evaluation.prompts import BIAS_KINDS, GENERATED_KINDS, PROSE, Row
from lit_debias.evaluation.public.asking import Model
from lit_debias.evaluation.records import Record
from lit_debias.language_model import LanguageModel
from lit_debias.policy import QLoRAPolicy
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.sentence_encoder import SentenceEncoder
from lit_debias.types import PromptBatch, Rollout, Scores

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Arm:
    """What is compared: the base as it is, asked for fairness, or with an adapter; or one replica of that."""

    name: str
    """Of its files; that of a replica ends in its number, from 1: ``sft.2``."""
    adapter: str | None = None
    system_prompt: str | None = None


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
    """

    judges: RewardSuite
    rewards: RewardSuite
    engine: LocalEngine
    batch_size: int
    greedy: bool = False
    seed: int = 0
    other: LanguageModel | None = None
    encoder: SentenceEncoder | None = None

    def load(self, device: torch.device) -> None:
        """Load every model but the policy onto ``device``; does nothing for those that are there."""
        for suite in (self.judges, self.rewards):
            suite.setup(device)
        for model in (self.other, self.encoder):
            if model is not None:
                model.load(device)

    def examine(self, policy: QLoRAPolicy, rows: Sequence[Row], advance: Advance) -> list[Record]:
        """Return a record per row; ``advance`` is told how many rows are done."""
        records = [Record.of(row) for row in rows]
        pairs = list(zip(rows, records, strict=True))
        generated = [pair for pair in pairs if pair[0]["prompt_kind"] in GENERATED_KINDS]
        for number, batch in enumerate(self._batches(generated)):
            self._generate(policy, batch, self.seed * 1_000_003 + number)
            advance(len(batch))
        preferring = [
            (row, record)
            for row, record in pairs
            if row["prompt_kind"] in BIAS_KINDS and row["reference"] and row["biased"]
        ]
        for batch in self._batches(preferring):
            answers = [[row["reference"], row["biased"]] for row, _ in batch]
            for (_, record), (neutral, biased) in zip(batch, mean_logprobs(policy, batch, answers), strict=True):
                record.reference_logprob, record.biased_logprob = neutral, biased
        choosing = [pair for pair in pairs if len(pair[0]["choices"]) > 1]
        for batch in self._batches(choosing):
            choices = [list(row["choices"]) for row, _ in batch]
            for (_, record), values in zip(batch, mean_logprobs(policy, batch, choices), strict=True):
                record.choice_logprobs = values
            advance(sum(row["prompt_kind"] not in GENERATED_KINDS for row, _ in batch))
        self._read_prose(policy, [record for record in records if record.prompt_kind == PROSE], advance)
        return records

    def _read_prose(self, policy: QLoRAPolicy, records: Sequence[Record], advance: Advance) -> None:
        passages = [[record.prompt] for record in records]
        found = Model(policy, self.judges, advance).sentences([""] * len(passages), passages)
        for record, [likelihood] in zip(records, found, strict=True):
            record.prose_logprob, record.prose_tokens = likelihood.total, likelihood.tokens

    def _batches(self, pairs: list[tuple[Row, Record]]) -> Iterator[list[tuple[Row, Record]]]:
        by_length = sorted(pairs, key=lambda pair: len(pair[0]["prompt"]))  # pads little
        for start in range(0, len(by_length), self.batch_size):
            yield by_length[start : start + self.batch_size]

    def _generate(self, policy: QLoRAPolicy, batch: Sequence[tuple[Row, Record]], seed: int) -> None:
        rows = [row for row, _ in batch]
        prompts = replace(asked_of(rows), columns={name: [row[name] for row in rows] for name in rows[0]})
        rollout = self.engine.generate(policy, prompts, group_size=1, seed=seed, greedy=self.greedy)
        with frozen_base(policy):
            ids, mask = policy.encode_prompts(prompts.asked)
            plain = replace(rollout, prompt_ids=ids, prompt_mask=mask)
            logprobs = policy.logprobs(plain)
        plain = replace(plain, reference_logprobs=logprobs)
        judged, scored = self.judges.score(plain), self.rewards.score(plain)
        check_range(judged)
        for index, (_, record) in enumerate(batch):
            record.completion = rollout.texts[index][0]
            record.tokens = int(rollout.lengths[index, 0])
            record.truncated = bool(rollout.truncated[index, 0])
            record.base_logprob = float(logprobs[index].sum())
            record.judges, record.rewards = _row(judged, index), _row(scored, index)
        self._read_again(batch)

    def _read_again(self, batch: Sequence[tuple[Row, Record]]) -> None:
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


@contextlib.contextmanager
def frozen_base(policy: QLoRAPolicy) -> Iterator[None]:
    """Within the context the policy is the untouched base, without its system prompt: one yardstick for all arms.

    ``policy.as_reference()`` is something else: for a policy that continues an adapter it is that adapter.
    """
    assert policy.lm is not None, "call load() first"
    system_prompt, policy.system_prompt = policy.system_prompt, None
    try:
        with policy.lm.disable_adapter():
            yield
    finally:
        policy.system_prompt = system_prompt


def check_range(judged: Scores) -> None:
    """Raise :class:`UserError` where a judge leaves [0, 1]; bias intensity is 1 minus its score."""
    for name, values in judged.values.items():
        if bool(((values < 0) | (values > 1)).any()):
            odd = float(values.min()) if float(values.min()) < 0 else float(values.max())
            raise UserError(f"judge '{name}' returned {odd:.3g}; a judge must score from 0 (biased) to 1 (fair)")


def mean_logprobs(
    policy: QLoRAPolicy, batch: Sequence[tuple[Row, Record]], answers: Sequence[list[str]]
) -> list[list[float]]:
    """Return for each prompt the mean log-probability of a token of each of its answers, in nats."""
    widest = max(map(len, answers))
    padded = [[*given, *[""] * (widest - len(given))] for given in answers]
    rollout = policy.encode(asked_of([row for row, _ in batch]), padded)
    means = _mean_over_tokens(policy.logprobs(rollout), rollout)
    return [row[: len(given)] for row, given in zip(means.tolist(), answers, strict=True)]


def _mean_over_tokens(logprobs: Tensor, rollout: Rollout) -> Tensor:
    return logprobs.sum(-1) / rollout.lengths.clamp(min=1)


def _row(scores: Scores, index: int) -> dict[str, float | None]:
    return {
        name: float(values[index, 0]) if scores.valid[name][index, 0] else None
        for name, values in scores.values.items()
    }


def device() -> torch.device:
    """Return the device that is evaluated on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
