"""What a judge was asked, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass

from lit_debias.plugins import counted


@dataclass(slots=True)
class Usage:
    """Totals since the judge was made, in this process.

    Slots keep it out of what an evaluation compares judges by.
    """

    input_price: float = 0.0
    """Of a million tokens, in any currency."""
    output_price: float = 0.0
    scored: int = 0
    """Completions with a score, those from the cache included."""
    cached: int = 0
    """Distinct texts whose score was known."""
    answers: int = 0
    """Requests that were answered; each is paid for."""
    retries: int = 0
    """Requests that were sent again."""
    unreadable: int = 0
    """Answers without a score that could be parsed."""
    dropped: int = 0
    """Keywords of explanations that their completion does not hold."""
    failed: int = 0
    """Requests that never got an answer."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Answers that did not say how many tokens they took; they are missing from tokens and cost."""

    @property
    def cost(self) -> float:
        """Price of all tokens so far, in the currency of the prices."""
        return (self.prompt_tokens * self.input_price + self.completion_tokens * self.output_price) / 1e6

    def __str__(self) -> str:
        """Return one line for the log."""
        line = (
            f"{counted(self.scored, 'completion')} scored, {counted(self.answers, 'answer')}, {self.cached} from the "
            f"cache, {counted(self.retries, 'retry', 'retries')}, {self.unreadable} unreadable, {self.failed} failed; "
            f"{self.prompt_tokens} + {counted(self.completion_tokens, 'token')}, cost {self.cost:.6g}"
        )
        line += f"; {counted(self.dropped, 'keyword')} dropped" if self.dropped else ""
        return f"{line} (without {counted(self.uncounted, 'answer')} that named no tokens)" if self.uncounted else line
