"""Which measures an option names: by name, or configured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from inspect import Parameter, signature

from lit_debias.errors import UserError, did_you_mean
from lit_debias.text_measures.cooccurrence import Cooccurrence
from lit_debias.text_measures.honest import Honest
from lit_debias.text_measures.log_odds import LogOdds
from lit_debias.text_measures.measure import TextMeasure
from lit_debias.text_measures.polarity import Polarity
from lit_debias.text_measures.representation import Associations, Representation
from lit_debias.text_measures.scored import Labels, Toxicity
from lit_debias.text_measures.sentiment import Sentiment

MEASURES: dict[str, type[TextMeasure]] = {
    cls.name: cls
    for cls in (Sentiment, Toxicity, Labels, Representation, Associations, Cooccurrence, Polarity, LogOdds, Honest)
}
"""Name -> class."""
ALL_OFFLINE = "all-offline"
"""Stands for every measure that needs no options and whose extra is installed."""
Chosen = str | Sequence[str | TextMeasure]
"""Names separated by commas, or a list of names and of measures with options."""


def measures_of(chosen: Chosen) -> list[TextMeasure]:
    """Return the measures that an option names, each once.

    Raises:
        UserError: there is no such measure, it needs options or an extra, or two have one name.
    """
    entries = [name.strip() for name in chosen.split(",")] if isinstance(chosen, str) else list(chosen)
    named = dict.fromkeys(entry for entry in entries if entry not in ("", ALL_OFFLINE))
    found = [one if isinstance(one, TextMeasure) else make(one) for one in named]
    if ALL_OFFLINE in entries:
        there = {measure.name for measure in found}
        found += [measure for measure in offline() if measure.name not in there]
    names = [measure.name for measure in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"text_measures: '{name}' is there twice; leave one out")
    return found


def make(name: str) -> TextMeasure:
    """Return a measure without options.

    Raises:
        UserError: there is none, or it needs options or an extra.
    """
    if name not in MEASURES:
        raise UserError(f"text_measures: there is no '{name}'{did_you_mean(name, [*MEASURES, ALL_OFFLINE])}")
    cls = MEASURES[name]
    if needed := _needed(cls):
        options = ", ".join(f"{option}: ..." for option in needed)
        raise UserError(
            f"text_measures: '{name}' needs options; write {{class_path: {cls.__name__}, init_args: {{{options}}}}}"
        )
    return cls()


def offline() -> list[TextMeasure]:
    """Return the measures that need neither options nor what is not installed."""
    found = []
    for name, cls in MEASURES.items():
        if not _needed(cls):
            with suppress(UserError):
                found.append(make(name))
    return found


def _needed(cls: type[TextMeasure]) -> list[str]:
    """Return the options that a class has no default for."""
    options = list(signature(cls.__init__).parameters.values())[1:]
    return [option.name for option in options if option.default is Parameter.empty]
