"""How arms and curves are told apart. The page draws the legends from this, so that they wrap on a phone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lit_debias.report.sources import Evaluation

# Each colour has a contrast of 3 or more against the page in light and in dark mode; a test holds that.
FIXED = {"before": "#748091", "prompt_only": "#c07600"}
OWN = "#0d9488"
"""Of the arm that the verdict is about."""
COLOURS = (OWN, "#c07600", "#6366f1", "#db2777", "#4d8a0f", "#0284c7", "#a855f7", "#dc2626")
SYMBOLS = {
    "circle": "●",
    "diamond": "◆",
    "square": "■",
    "triangle-up": "▲",
    "star": "★",
    "cross": "✚",
    "triangle-down": "▼",
    "hourglass": "⧗",
    "x": "✖",
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
    others = iter(COLOURS[2:] * len(evaluation.arms))
    found = {}
    for index, arm in enumerate(evaluation.arms):
        colour = OWN if arm == evaluation.arm else FIXED.get(arm) or next(others)
        found[arm] = Key(evaluation.titles[arm], colour, *symbols[index % len(symbols)])
    return found


def curve_keys(names: Iterable[str]) -> list[Key]:
    """Return a key for each curve."""
    return [Key(name, COLOURS[index % len(COLOURS)]) for index, name in enumerate(names)]
