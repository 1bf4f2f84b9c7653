"""What of a ``results.json`` the page needs, and what it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Problem = str | None
Rule = Callable[[Any, str], Problem]
"""Takes a value and its place, such as ``arms.before``; returns what is wrong with it, None where nothing is."""


def _is(words: str, *kinds: type) -> Rule:
    def check(value: Any, place: str) -> Problem:
        fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        return None if fits else f"'{place}' is {value!r:.40} and not {words}"

    return check


def _maybe(check: Rule) -> Rule:
    return lambda value, place: None if value is None else check(value, place)


def _each(check: Rule) -> Rule:
    """All values of a mapping or a list."""

    def check_each(value: Any, place: str) -> Problem:
        if not isinstance(value, (dict, list)):
            return f"'{place}' is {value!r:.40} and not a collection"
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return next((p for name, item in items if (p := check(item, f"{place}.{name}"))), None)

    return check_each


def _record(needed: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    def check_record(value: Any, place: str) -> Problem:
        if not isinstance(value, dict):
            return f"'{place}' is {value!r:.40} and not an object"
        dot = f"{place}." if place else ""
        for name in needed:
            if name not in value:
                return f"'{dot}{name}' is missing"
        checks = {**needed, **(optional or {})}
        found = ((check, name) for name, check in checks.items() if name in value)
        return next((p for check, name in found if (p := check(value[name], f"{dot}{name}"))), None)

    return check_record


def _word(value: Any, place: str) -> Problem:
    """A word with its value."""
    fits = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) in (int, float)
    return None if fits else f"'{place}' is {value!r:.40} and not a word with a number"


_TEXT, _FLAG = _is("a text", str), _is("true or false", bool)
_NUMBER, _FIGURE = _is("a number", int, float), _maybe(_is("a number", int, float))
_BOUNDS = {"low": _FIGURE, "high": _FIGURE}
_ESTIMATE = _record({"value": _FIGURE, "n": _NUMBER, **_BOUNDS})
_CHANGE = _record(
    {"difference": _FIGURE, "clear": _FLAG, **_BOUNDS},
    {"n": _NUMBER, "relative": _FIGURE, "relative_low": _FIGURE, "relative_high": _FIGURE},
)
_VERDICT = _record(
    {"measure": _maybe(_TEXT), "sentence": _TEXT},
    {
        "arm": _maybe(_TEXT),
        "checks": _each(_record({"name": _TEXT, "value": _NUMBER, "bar": _TEXT, "passed": _FLAG}, {"measure": _TEXT})),
        "against": _each(_CHANGE),
        "opinions": _each(_record({"measure": _TEXT, "judge": _TEXT, "says": _TEXT, "change": _CHANGE})),
    },
)
_RESULTS = _record(
    {
        "verdict": _VERDICT,
        "measures": _each(_record({"label": _TEXT, "better": _TEXT, "section": _TEXT}, {"meaning": _TEXT})),
        "arms": _each(
            _record({"measures": _each(_ESTIMATE)}, {"breakdowns": _each(_each(_each(_ESTIMATE))), "replicas": _NUMBER})
        ),
    },
    {
        "comparisons": _each(_each(_CHANGE)),
        "titles": _each(_TEXT),
        "not_measured": _each(_TEXT),
        "notes": _each(_TEXT),
        "words": _each(_each(_each(_each(_word)))),
        "prompts": _record({"rows": _NUMBER, "twins": _NUMBER}),
        "created": _TEXT,
        "hardware": _TEXT,
        "versions": _each(_TEXT),
        "fingerprints": _each(_TEXT),
        "settings": _record({}, {"adapters": _record({})}),
    },
)


def problem(results: dict[str, Any]) -> Problem:
    """Return what of an evaluation's results the page could not show; None where it can show all of it."""
    found = _RESULTS(results, "")
    if found:
        return found
    arms, measures, verdict = results["arms"], results["measures"], results["verdict"]
    if "before" not in arms:
        return "'arms.before' is missing"
    if verdict["measure"] is not None and verdict["measure"] not in measures:
        return f"'verdict.measure' is '{verdict['measure']}', and 'measures' does not have it"
    strange = [name for name in verdict.get("against", {}) if name not in arms]
    if strange:
        return f"'verdict.against' names the arm '{strange[0]}', and 'arms' does not have it"
    if verdict.get("against") and verdict.get("arm") not in arms:
        return f"'verdict.arm' is {verdict.get('arm')!r}, and 'arms' does not have it"
    return None
