"""What benchmarks ask of a policy: how likely it finds texts and choices, and what it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lit_debias.benchmark.answers import (
    Continuation,
    ImplicitReward,
    Likelihood,
    TokenLikelihoods,
    by_token,
    mean,
    sums,
)
from lit_debias.benchmark.prompting import Ask, System, asked_as, batches, even, numbered, wordings
from lit_debias.benchmark.writing import ROWS, Writer
from lit_debias.errors import UserError
from lit_debias.packing.tokens import pad
from lit_debias.policy.policy import Policy
from lit_debias.rewards.scoring import NamedScores, Scoring
from lit_debias.rewards.suite import RewardSuite
from lit_debias.types import PromptBatch, Rollout

BATCH = 8
"""Items in one forward pass; changes memory and speed, not the figures."""
CONTINUATION_TOKENS = 32
T = TypeVar("T")


class CannotAskError(UserError):
    """A model cannot be asked what a benchmark asks; the benchmark is left out, with a note that says why."""


@dataclass(frozen=True)
class Model:
    """A loaded policy as benchmarks see it. Its system prompt stands before every chat prompt without one of its own.

    Args:
        policy: Loaded; its adapter and its system prompt count.
        judges: Set up; score what is written in [0, 1], 1 is fair. Those that need data columns or reference log-probs
            are left out.
        advance: Told how many items are done.
    """

    policy: Policy
    judges: RewardSuite
    advance: Callable[[int], None]
    _writer: Writer = field(default_factory=Writer, repr=False)

    # ---------------------------------------------------------------- how likely texts are

    def sentences(self, contexts: Sequence[str], sentences: Sequence[Sequence[str]]) -> list[list[Likelihood]]:
        """Return the log-likelihoods of sentences [N][K] after their contexts [N], without chat template.

        The model sees ``BOS context sentence``, as in lm-eval 0.4.13: the prefix is the tokenizer's BOS, or its EOS
        where it has none, whether or not the tokenizer would add it. After a context a sentence begins with its space;
        an empty context is none. K may differ from context to context.
        """
        return self._read(contexts, sentences, self._likelihoods)

    def tokens(self, contexts: Sequence[str], sentences: Sequence[Sequence[str]]) -> list[list[TokenLikelihoods]]:
        """Return what :meth:`sentences` returns token by token."""
        return self._read(contexts, sentences, lambda rollout: by_token(self.policy.logprobs(rollout), rollout))

    def rewards(self, contexts: Sequence[str], sentences: Sequence[Sequence[str]]) -> list[list[ImplicitReward]]:
        """Return ``log pi(sentence | context) - log pi_ref(sentence | context)``, [N][K] as :meth:`sentences` has them.

        It is DPO's implicit reward (Rafailov et al. 2023) without its factor beta, and without what all sentences of a
        context share. The reference is the untouched base, so all are 0 for a policy without an adapter.
        """
        return self._read(contexts, sentences, self._rewards)

    def choices(
        self,
        questions: Sequence[Ask],
        choices: Sequence[Sequence[str]],
        system: System = None,
        rotations: bool = False,
    ) -> list[list[Likelihood]]:
        """Return the log-likelihoods of choices [N][K] as answers to questions [N], with chat template.

        Args:
            questions: [N] texts, or functions that write the question, given the K choices in the order in which it
                is to list them. A model without chat template gets the question alone.
            choices: [N][K]; K may differ from question to question.
            system: A system message in place of the policy's own; see :meth:`why_no_system`.
            rotations: Ask every question K times, its choices listed from each of them on, and return the means over
                these orders, as models prefer a place in a list. For questions that are functions.

        Raises:
            CannotAskError: the model takes no system message.
            TypeError: ``rotations``, and a question is a text.
        """
        systems = self._systems(system, len(questions))
        rows = [
            (owner, text)
            for owner, (question, listed) in enumerate(zip(questions, choices, strict=True))
            for text in wordings(question, listed, rotations)
        ]
        owners = [owner for owner, _ in rows]

        def rollout(some: list[int]) -> Rollout:
            prompts = asked_as([rows[i][1] for i in some], [systems[owners[i]] for i in some])
            return self.policy.encode(prompts, even([choices[owners[i]] for i in some]))

        orders: list[list[list[Likelihood]]] = [[] for _ in questions]
        found = self._passes([len(text) for _, text in rows], rollout, self._likelihoods, owners)
        for owner, row in zip(owners, found, strict=True):
            orders[owner].append(row[: len(choices[owner])])
        return [[mean(of_choice) for of_choice in zip(*of_question, strict=True)] for of_question in orders]

    # ---------------------------------------------------------------- what it writes

    def texts(
        self,
        prompts: Sequence[str],
        k: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
        max_new_tokens: int = 128,
        system: System = None,
    ) -> list[list[str]]:
        """Return k answers [N][k] to prompts [N], in the chat template if there is one.

        An answer depends on the seed, on its prompt and system message, and on its number among those of equal prompts
        and messages; not on the other prompts, their order or how they are batched, but for rounding. Arms draw with
        the same random numbers, so they are compared in pairs.

        Args:
            prompts: [N]
            k: Answers to each.
            temperature: Divides the logits; 0 takes the most probable token, so that all k are one text.
            seed: Of the random numbers.
            max_new_tokens: Longest answer, in tokens.
            system: A system message in place of the policy's own; see :meth:`why_no_system`.

        Raises:
            CannotAskError: the model takes no system message.
        """
        systems = self._systems(system, len(prompts))
        keys = numbered([f"{seed}\0{own or ''}\0{prompt}" for own, prompt in zip(systems, prompts, strict=True)])
        found: dict[int, list[str]] = {}
        for rows in batches([len(prompt) for prompt in prompts], max(1, ROWS // k)):
            asked = asked_as([prompts[i] for i in rows], [systems[i] for i in rows])
            mine = [keys[i] for i in rows]
            texts = self._writer.write(self.policy, asked, mine, k, temperature, max_new_tokens)
            found.update(zip(rows, texts, strict=True))
            self.advance(len(rows))
        return [found[i] for i in range(len(prompts))]

    def continuations(self, texts: Sequence[str]) -> list[Continuation]:
        """Return greedy continuations of texts [N], of at most 32 tokens, and what the judges say of them.

        A model with a chat template is asked to continue the text, one without gets the text alone.
        """
        asked = "Continue this text: {}" if self.policy.encoder.has_template else "{}"
        prompts = [asked.format(text) for text in texts]
        scoring = Scoring(self._able_judges())
        order: list[int] = []
        written: list[tuple[int, str]] = []
        for rows in batches([len(prompt) for prompt in prompts], BATCH):
            batch = PromptBatch([prompts[i] for i in rows])
            rollout = self._writer.most_probable(self.policy, batch, CONTINUATION_TOKENS)
            scoring.add(rollout)
            order += rows
            written += zip(rollout.lengths[:, 0].tolist(), [text for [text] in rollout.texts], strict=True)
            self.advance(len(rows))
        found = {
            row: Continuation.of(*own, judged)
            for row, own, judged in zip(order, written, scoring.finish(), strict=True)
        }
        return [found[i] for i in range(len(prompts))]

    def judged(self, prompts: Sequence[str], texts: Sequence[str]) -> list[NamedScores]:
        """Return what the judges say of texts [N], answers to prompts [N]: judge -> score in [0, 1], None for none.

        1 is fair. The policy is not asked, so :attr:`advance` is told nothing.
        """
        scoring = Scoring(self._able_judges())
        for start in range(0, len(texts), BATCH):
            some = slice(start, start + BATCH)
            scoring.add(self.policy.encode(PromptBatch(list(prompts[some])), [[text] for text in texts[some]]))
        return scoring.finish()

    def _able_judges(self) -> RewardSuite:
        return RewardSuite(
            {
                name: judge
                for name, judge in self.judges.rewards.items()
                if not judge.columns and not judge.needs_reference_logprobs
            }
        )

    # ---------------------------------------------------------------- system messages

    @property
    def system(self) -> str | None:
        """The policy's own system message, None where it has none; it asks for fairness in the arm of that name.

        A ``system`` argument takes its place, so a benchmark that wants to tell that arm from the others writes both.
        """
        return self.policy.system_prompt

    def why_no_system(self, system: str) -> str | None:
        """Return what keeps the model from being asked with a system message, or None where nothing does."""
        return self.policy.encoder.why_no_system(system)

    def _systems(self, system: System, count: int) -> list[str | None]:
        systems = [system] * count if system is None or isinstance(system, str) else list(system)
        for text in dict.fromkeys(filter(None, systems)):
            if reason := self.why_no_system(text):
                raise CannotAskError(reason)
        return systems

    # ---------------------------------------------------------------- forward passes

    def _read(
        self, contexts: Sequence[str], sentences: Sequence[Sequence[str]], look: Callable[[Rollout], list[list[T]]]
    ) -> list[list[T]]:
        """Return what ``look`` finds of sentences [N][K] after their contexts [N]."""
        prefix = self.policy.encoder.first()

        def rollout(rows: list[int]) -> Rollout:
            groups = zip(rows, even([sentences[i] for i in rows]), strict=True)
            cut = [[self._cut(contexts[i], sentence) for sentence in group] for i, group in groups]
            return self._rollout([[prefix, *row[0][0]] for row in cut], [[rest for _, rest in row] for row in cut])

        lengths = [len(c) + max(map(len, s)) for c, s in zip(contexts, sentences, strict=True)]
        found = self._passes(lengths, rollout, look, range(len(lengths)))
        return [row[: len(group)] for row, group in zip(found, sentences, strict=True)]

    def _passes(
        self,
        lengths: Sequence[int],
        rollout_of: Callable[[list[int]], Rollout],
        look: Callable[[Rollout], list[list[T]]],
        owners: Sequence[int],
    ) -> list[list[T]]:
        """Return what ``look`` finds in each row; an item is done with the last of the rows that it owns."""
        found: dict[int, list[T]] = {}
        left = Counter(owners)
        for rows in batches(lengths, BATCH):
            found.update(zip(rows, look(rollout_of(rows)), strict=True))
            mine = [owners[i] for i in rows]
            left.subtract(mine)
            self.advance(sum(left[owner] == 0 for owner in set(mine)))
        return [found[i] for i in range(len(lengths))]

    def _likelihoods(self, rollout: Rollout) -> list[list[Likelihood]]:
        return sums(self.policy.logprobs(rollout), rollout, Likelihood)

    def _rewards(self, rollout: Rollout) -> list[list[ImplicitReward]]:
        own = self.policy.logprobs(rollout)
        with self.policy.as_base():
            return sums(own - self.policy.logprobs(rollout), rollout, ImplicitReward)

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
