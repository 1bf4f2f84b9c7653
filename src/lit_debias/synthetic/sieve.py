"""Decides which written responses are kept, and counts why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lit_debias.data.tables import Row
from lit_debias.errors import UserError
from lit_debias.rewards.asking import ask, check_scores
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.devices import best_device
from lit_debias.synthetic.assignments import Assignment
from lit_debias.synthetic.leaks import held_out_names
from lit_debias.synthetic.near_duplicates import NearDuplicates
from lit_debias.synthetic.taxonomy import Taxonomy

BATCH = 64
"""Responses that a judge sees at once."""
SHORTEST = 4
"""Words."""


class Sieve:
    """Keeps a response that is whole, names no held-out group, is what was asked for, and is new.

    Args:
        taxonomy: Says which groups are held out.
        judge: Scores fairness in [0, 1]; where it has no opinion, the response is kept.
        tolerance: Largest distance of the judge from the label.
        similarity: Jaccard similarity from which on two texts are one.

    Raises:
        UserError: a number is out of range, or the judge needs what text alone does not have.
    """

    def __init__(self, taxonomy: Taxonomy, judge: Reward | None, tolerance: float, similarity: float) -> None:
        if not 0 < tolerance <= 1:
            raise UserError(f"tolerance={tolerance}; write a number above 0 and up to 1")
        if judge is not None and judge.needs_reference_logprobs:
            raise UserError(
                f"judge: {type(judge).__name__} needs a policy's log-probabilities; name one that reads text"
            )
        self.judge, self.tolerance, self.seen = judge, tolerance, NearDuplicates(similarity)
        self._held_out = list(held_out_names(taxonomy).values())

    def sift(
        self, assignments: Sequence[Assignment], texts: Sequence[str | None], known: Iterable[str]
    ) -> tuple[list[Row], Counter[str]]:
        """Return the records to keep, and outcome -> number of assignments.

        Args:
            assignments: What was asked for.
            texts: The answer to each; None where there is none.
            known: Responses of the data set, none of which may be repeated.

        Raises:
            UserError: the judge fails or leaves [0, 1].
        """
        outcomes: Counter[str] = Counter({"kept": 0})
        records: list[Row] = []
        for assignment, text in zip(assignments, texts, strict=True):
            whole = tidy(text)
            if not whole:
                outcomes["no usable answer"] += 1
            elif any(pattern.search(whole) for pattern in self._held_out):
                outcomes["names a held-out group"] += 1
            else:
                records.append(assignment.record(whole))
        fair = list(self._agreeing(records))
        outcomes["judged far from its label"] = len(records) - len(fair)
        for text in known:
            self.seen.add(text)
        kept = [record for record in fair if self.seen.add(record["response"])]
        outcomes["near-duplicate"] = len(fair) - len(kept)
        outcomes["kept"] = len(kept)
        return kept, outcomes

    def _agreeing(self, records: Sequence[Row]) -> Iterator[Row]:
        if self.judge is None or not records:
            yield from records
            return
        RewardSuite({"judge": self.judge}).check_columns(list(records[0]))
        self.judge.setup(best_device())
        for start in range(0, len(records), BATCH):
            part = records[start : start + BATCH]
            for record, score in zip(part, self._judged(self.judge, part), strict=True):
                if score is None or abs(score - record["fairness"]) <= self.tolerance:
                    yield record

    def _judged(self, judge: Reward, records: Sequence[Row]) -> list[float | None]:
        batch = RewardBatch(
            prompts=[record["prompt"] for record in records],
            completions=[record["response"] for record in records],
            group_ids=list(range(len(records))),
            columns={name: [record[name] for record in records] for name in records[0]},
        )
        scores = check_scores("judge", ask("judge", judge, batch), batch)
        odd = next((score for score in scores if score is not None and not 0 <= score <= 1), None)
        if odd is not None:
            raise UserError(f"judge returned {odd:.3g}; a judge must score from 0 (biased) to 1 (fair)")
        return scores


def tidy(text: str | None) -> str:
    """Return an answer on one line without quotes around it, up to its last whole sentence; "" where none is whole."""
    line = " ".join((text or "").split()).strip("\"“”'")
    whole = line[: max(line.rfind(mark) for mark in ".!?") + 1]
    return whole if len(whole.split()) >= SHORTEST else ""
