"""What benchmarks ask of a policy: log-likelihoods of sentences and of choices, and continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lit_debias.evaluation.scoring import Scoring
from lit_debias.packing.tokens import pad
from lit_debias.policy.policy import Policy
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.support.text import is_refusal
from lit_debias.types import PromptBatch, Rollout

BATCH = 8
"""Items in one forward pass; changes memory and speed, not the figures."""
CONTINUATION_TOKENS = 32


class Likelihood(NamedTuple):
    """The log-likelihood of a text."""

    total: float
    """Sum over its tokens, in nats."""
    tokens: int

    @property
    def mean(self) -> float:
        """Mean over its tokens, in nats; ranks texts like a per-token perplexity or 2 ** (mean log2 p)."""
        return self.total / max(1, self.tokens)


class Continuation(NamedTuple):
    """What a model writes, as far as no further model is needed to judge it."""

    tokens: int
    """End-of-sequence token included."""
    refused: bool
    intensity: dict[str, float | None]
    """Judge -> 1 - its score, so 0 is fair; None where it has no opinion."""


@dataclass(frozen=True)
class Model:
    """A loaded policy as benchmarks see it.

    Args:
        policy: Loaded; its adapter and its system prompt count.
        judges: Set up; score continuations in [0, 1], 1 is fair.
        advance: Told how many items are done.
    """

    policy: Policy
    judges: RewardSuite
    advance: Callable[[int], None]

    def sentences(self, contexts: Sequence[str], sentences: Sequence[Sequence[str]]) -> list[list[Likelihood]]:
        """Return the log-likelihoods of sentences [N][K] after their contexts [N], without chat template.

        The model sees ``BOS context sentence``, as in lm-eval 0.4.13: the prefix is the tokenizer's BOS, or its EOS
        where it has none, whether or not the tokenizer would add it. After a context a sentence begins with its space.
        """
        prefix = self.policy.encoder.first()

        def rollout(rows: list[int]) -> Rollout:
            cut = [[self._cut(contexts[i], sentence) for sentence in sentences[i]] for i in rows]
            return self._rollout(
                [[prefix, *row[0][0]] for row in cut], [[continuation for _, continuation in row] for row in cut]
            )

        return self._likelihoods([len(c) + max(map(len, s)) for c, s in zip(contexts, sentences, strict=True)], rollout)

    def choices(self, questions: Sequence[str], choices: Sequence[Sequence[str]]) -> list[list[Likelihood]]:
        """Return the log-likelihoods of choices [N][K] as answers to questions [N], with chat template."""

        def rollout(rows: list[int]) -> Rollout:
            return self.policy.encode(PromptBatch([questions[i] for i in rows]), [list(choices[i]) for i in rows])

        return self._likelihoods([len(question) for question in questions], rollout)

    def continuations(self, texts: Sequence[str]) -> list[Continuation]:
        """Return greedy continuations of texts [N].

        A model with a chat template is asked to continue the text, one without gets the text alone. Judges that need
        data columns or reference log-probs are left out.
        """
        asked = "Continue this text: {}" if self.policy.encoder.has_template else "{}"
        prompts = [asked.format(text) for text in texts]
        judges = RewardSuite(
            {
                name: judge
                for name, judge in self.judges.rewards.items()
                if not judge.columns and not judge.needs_reference_logprobs
            }
        )
        engine = LocalEngine(CONTINUATION_TOKENS)
        order: list[int] = []
        written: list[tuple[int, str]] = []
        scoring = Scoring(judges)
        for rows in _batches([len(prompt) for prompt in prompts]):
            batch = PromptBatch([prompts[i] for i in rows])
            rollout = engine.generate(self.policy, batch, group_size=1, seed=0, greedy=True)
            scoring.add(rollout)
            order += rows
            written += zip(rollout.lengths[:, 0].tolist(), [text for [text] in rollout.texts], strict=True)
            self.advance(len(rows))
        found = {
            row: Continuation(tokens, is_refusal(text), {name: v if v is None else 1 - v for name, v in scores.items()})
            for row, (tokens, text), scores in zip(order, written, scoring.finish(), strict=True)
        }
        return [found[i] for i in range(len(prompts))]

    def _likelihoods(
        self, lengths: Sequence[int], rollout_of: Callable[[list[int]], Rollout]
    ) -> list[list[Likelihood]]:
        found: dict[int, list[Likelihood]] = {}
        for rows in _batches(lengths):
            rollout = rollout_of(rows)
            totals = self.policy.logprobs(rollout).double().sum(-1)
            for row, sums, counts in zip(rows, totals.tolist(), rollout.lengths.tolist(), strict=True):
                found[row] = [Likelihood(total, tokens) for total, tokens in zip(sums, counts, strict=True)]
            self.advance(len(rows))
        return [found[i] for i in range(len(lengths))]

    def _cut(self, context: str, sentence: str) -> tuple[list[int], list[int]]:
        encode = self.policy.encoder.text
        if not context:
            return [], encode(sentence)
        before = encode(context)
        return before, encode(f"{context} {sentence}")[len(before) :]

    def _rollout(self, contexts: list[list[int]], continuations: list[list[list[int]]]) -> Rollout:
        encoded = pad(contexts, 0, left=True, device=self.policy.device)
        rows = [row for group in continuations for row in group]
        wordless = [[""] * len(group) for group in continuations]
        return self.policy.rollout_of(PromptBatch([""] * len(contexts)), encoded, rows, wordless)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])  # pads little
    for start in range(0, len(by_length), BATCH):
        yield by_length[start : start + BATCH]
