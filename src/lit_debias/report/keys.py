"""How arms and curves are told apart. The page draws the legends from this, so that they wrap on a phone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lit_debias.report.sources import Evaluation

# Each colour has a contrast of 3 or more against the page in light and in dark mode; a test holds that.
NEUTRAL = "#748091"
COLOURS = ("#0d9488", "#c07600", "#6366f1", "#db2777", "#4d8a0f", "#0284c7", "#a855f7", "#dc2626")
INKS = (NEUTRAL, COLOURS[1], COLOURS[0], *COLOURS[2:])
"""Of before, prompt_only, the arm that the verdict is about, and the others."""
SYMBOLS = {
    "circle": "●",
    "diamond": "◆",
    "square": "■",
    "triangle-up": "▲",
    "star": "★",
    "cross": "✚",
    "triangle-down": "▼",
    "triangle-left": "◂",
    "triangle-right": "▸",
}
"""Plotly's name -> the character in a legend."""


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    name: str
    colour: str
    symbol: str = "circle"
    glyph: str = "━"


def arm_keys(evaluation: Evaluation) -> dict[str, Key]:
    """Return arm -> its key, the same in every figure."""
    symbols = list(SYMBOLS.items())
    fixed = {"before": 0, "prompt_only": 1, evaluation.arm: 2}
    others = iter(range(3, 3 + len(evaluation.arms)))
    found = {}
    for arm in evaluation.arms:
        place = fixed[arm] if arm in fixed else next(others)
        found[arm] = Key(evaluation.titles[arm], INKS[place % len(INKS)], *symbols[place % len(symbols)])
    return found


def curve_keys(names: Iterable[str]) -> list[Key]:
    """Return a key for each curve."""
    return [Key(name, COLOURS[index % len(COLOURS)]) for index, name in enumerate(names)]
