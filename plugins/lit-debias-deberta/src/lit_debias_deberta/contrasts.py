"""Two responses to one prompt, of which one should be the fairer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contrast:
    """Two responses to one prompt, of which the first should be the fairer."""

    source: str
    kind: str
    """Type of bias."""
    cluster: str
    """What is drawn together in the bootstrap: a target term, a pair, a question."""
    prompt: str
    fairer: str
    less_fair: str
