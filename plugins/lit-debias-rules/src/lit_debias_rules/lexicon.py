"""Reads rules from files: YAML, or one word or phrase a line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_debias.plugins import UserError, did_you_mean, read_text, read_yaml
from lit_debias_rules.matching import UNSPACED, Matcher, Pattern, Terms, fold

FOLDER = Path(__file__).parent / "lexicons"
KEYS = {"name", "terms", "pattern", "weight", "limit", "whole_words"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What is looked for, and what a match is worth."""

    name: str
    matcher: Matcher
    weight: float
    """Added to the score for each match; below 0 it is a penalty."""
    limit: int | None = None
    """Matches in one completion that count; None counts all."""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The rules of a file, which share a language."""

    language: str
    rules: list[Rule]

    def matches(self, text: str) -> list[tuple[Rule, int]]:
        """Return the rules that match a text, with the number of their matches."""
        folded = fold(text, self.language)
        found = [(rule, rule.matcher.count(folded)) for rule in self.rules]
        return [(rule, count) for rule, count in found if count]


def find_lexicon(name: str) -> Path:
    """Return the file of a lexicon: a path, or the name of one of this package.

    Raises:
        UserError: there is no such file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    own = {file.stem: file for file in FOLDER.glob("*.yaml")}
    if name not in own:
        raise UserError(f"Rules: lexicon '{name}' is no file and none of this package{did_you_mean(name, own)}")
    return own[name]


def read_lexicon(path: Path, weight: float, language: str) -> Lexicon:
    """Read a .yaml file with rules, or a text file with one word or phrase a line (``#`` begins a comment).

    Args:
        path: The file.
        weight: Of rules that have none.
        language: Of a file that names none, as ``en`` or ``zh``.

    Raises:
        UserError: it is malformed; the message names file, rule and what to write.
    """
    is_yaml = path.suffix in (".yaml", ".yml")
    content = read_yaml(path, "lexicon") if is_yaml else {"rules": [{"terms": _lines(read_text(path, "lexicon"))}]}
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list) or not content["rules"]:
        raise UserError(f"lexicon '{path}' has no rules; write 'rules:' and a list of them")
    if unknown := set(content) - {"language", "rules"}:
        name = sorted(map(str, unknown))[0]
        raise UserError(f"lexicon '{path}' has an unknown key '{name}'{did_you_mean(name, ['language', 'rules'])}")
    language = str(content.get("language", language)).lower().partition("-")[0]
    rules = [
        _rule(f"lexicon '{path}', rule {number}", entry, weight, language)
        for number, entry in enumerate(content["rules"], 1)
    ]
    return Lexicon(language, rules)


def _lines(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _rule(where: str, entry: Any, weight: float, language: str) -> Rule:
    if not isinstance(entry, dict) or ("terms" in entry) == ("pattern" in entry):
        raise UserError(f"{where}: write a mapping with either terms or pattern")
    if unknown := set(entry) - KEYS:
        name = sorted(map(str, unknown))[0]
        raise UserError(f"{where} has an unknown key '{name}'{did_you_mean(name, KEYS)}")
    weight, limit = entry.get("weight", weight), entry.get("limit")
    if not _is_number(weight) or not weight or not math.isfinite(weight):
        raise UserError(f"{where}: weight {weight!r}; write a number, below 0 for a penalty and above 0 for a reward")
    if limit is not None and (not _is_number(limit) or limit < 1 or limit != int(limit)):
        raise UserError(f"{where}: limit {limit!r}; write a whole number from 1 up, or leave it out")
    whole_words = entry.get("whole_words", language not in UNSPACED)
    if not isinstance(whole_words, bool):
        raise UserError(f"{where}: whole_words {whole_words!r}; write true or false")
    matcher, name = _matcher(where, entry, language, whole_words)
    return Rule(str(entry.get("name", name)), matcher, float(weight), limit)


def _matcher(where: str, entry: dict[str, Any], language: str, whole_words: bool) -> tuple[Matcher, str]:
    if "pattern" in entry:
        try:
            return Pattern(str(entry["pattern"]), whole_words), str(entry["pattern"])
        except ValueError as error:
            raise UserError(f"{where}: pattern {entry['pattern']!r}: {error}") from error
    terms = entry["terms"]
    if not isinstance(terms, list) or not terms or not all(isinstance(term, str) and term.strip() for term in terms):
        raise UserError(f"{where}: terms must be a list of words or phrases, in quotes where YAML reads one as a value")
    return Terms([fold(term, language) for term in terms], whole_words), ", ".join(terms[:3])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
