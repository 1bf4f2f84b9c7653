"""The texts of ``corpus/``, each written on its own: prompts with answers, contexts of two people, and statements.

``corpus/KIND/CATEGORY.jsonl`` holds them, a JSON object on each line; ``corpus/README.md`` says what its keys are.
A prompt marks what its counterfactual twin exchanges as ``[Henan|Shanghai]``; a statement also has one
``{stereotype|counter-stereotype|neutral}``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from lit_debias.data.tables import Row
from lit_debias.support.files import read_jsonl
from lit_debias.support.hashing import stable_hash
from lit_debias.synthetic.builder import Tables
from lit_debias.synthetic.cases import part_of_name
from lit_debias.synthetic.flaws import flawed
from lit_debias.synthetic.grammar import Grammar, Part
from lit_debias.synthetic.responses import HARD_NEGATIVES, Stance, Style, labels
from lit_debias.synthetic.taxonomy import Taxonomy

CORPUS = Path(__file__).parent / "corpus"
VERSION = "1"
"""Version of the texts."""
KINDS = ("prompts", "contexts", "statements")
TRAIN, VALIDATION = 80, 88
"""Percentiles of an item's hash where training and validation end."""
CONTEXT = {
    "stereotyped": {"fairness": 0.35, "neutrality": 0.3, "relevance": 1.0},
    "counter": {"fairness": 0.7, "neutrality": 0.45, "relevance": 1.0},
    "undecided": {"fairness": 1.0, "neutrality": 0.85, "relevance": 1.0},
}
"""Conclusion -> its labels where the context decides nothing. Who decides without evidence is unfair to somebody, and
more so along a stereotype."""
EVIDENT = {"fairness": 1.0, "neutrality": 1.0, "relevance": 1.0}
"""Labels of a conclusion that the context proves."""
CONTRARY = {
    "stereotyped": {"fairness": 0.2, "neutrality": 0.1, "relevance": 0.3},
    "counter": {"fairness": 0.6, "neutrality": 0.25, "relevance": 0.3},
    "undecided": {"fairness": 1.0, "neutrality": 0.6, "relevance": 0.4},
}
"""Conclusion -> its labels where the context proves another."""
STATEMENT = {
    ("group", "stereotype"): 0.35,
    ("group", "counter"): 0.9,
    ("group", "neutral"): 1.0,
    ("contrast", "stereotype"): 0.75,
    ("contrast", "counter"): 0.8,
    ("contrast", "neutral"): 1.0,
}
"""Whom and what a statement says -> its fairness. The same words about the group that a stereotype is about are less
fair than about another."""
STATEMENT_PROMPTS = (
    "Write one sentence about people.",
    "Write a sentence from daily life.",
    "Continue the text.",
    "Describe somebody in a sentence or two.",
)
_SWAP = re.compile(r"\[([^\[\]|]+)\|([^\[\]|]+)\]")
_ATTRIBUTE = re.compile(r"\{([^{}|]+)\|([^{}|]+)\|([^{}|]+)\}")
Entry = Mapping[str, Any]
"""A line of the corpus."""
Deal = Callable[[str, str], str]
"""Gives the split of an item: from its text, and the name of the split that is held out."""


def written_tables(
    include_harmful: bool = True, folder: Path = CORPUS, words: Grammar | None = None, seed: int = 0
) -> Tables:
    """Return ``{"prompts": {split: records}, "responses": {split: records}}`` of the written texts.

    Args:
        include_harmful: Include answers of intensity 3 and 4.
        folder: Holds ``prompts``, ``contexts`` and ``statements``, each with a file for each category.
        words: The grammar of responses, whose evasions are added; by default the package's own.
        seed: Deals the items out to the splits; another seed holds out others.
    """
    deal = partial(_split, seed)
    tables: Tables = {"prompts": {}, "responses": {}}
    known = {
        kind: [(name, entry if include_harmful else _harmless(entry)) for name, entry in entries(folder, kind)]
        for kind in KINDS
    }
    for kind, rows_of in zip(KINDS, (_of_prompt, _of_context, _of_statement), strict=True):
        for table, row in chain.from_iterable(rows_of(name, entry, deal) for name, entry in known[kind]):
            tables[table].setdefault(row["split"], []).append(row)
    for row in _worthless(known["prompts"], words or Taxonomy.load().responses, deal):
        tables["responses"][row["split"]].append(row)
    return tables


def _harmless(entry: Entry) -> Entry:
    return {**entry, "answers": [answer for answer in entry.get("answers", ()) if answer["intensity"] < 3]}


def entries(folder: Path, kind: str) -> Iterator[tuple[str, Entry]]:
    """Yield the name and the content of each line of a kind: ``prompts``, ``contexts`` or ``statements``."""
    for path in sorted((folder / kind).glob("*.jsonl")):
        for number, entry in read_jsonl(path, "written texts"):
            yield f"{kind}-{path.stem}-{number:04d}", entry


def files() -> list[Path]:
    """Return the files that hold the written texts."""
    return sorted(path for kind in KINDS for path in (CORPUS / kind).glob("*.jsonl"))


def categories() -> set[str]:
    """Return the categories that the written texts are about."""
    return {path.stem for path in files()}


def counts() -> dict[str, int]:
    """Return kind -> number of written items."""
    return {kind: sum(1 for _ in entries(CORPUS, kind)) for kind in KINDS}


# -------------------------------------------------------------------- prompts with answers


def _of_prompt(name: str, entry: Entry, deal: Deal) -> Iterator[tuple[str, Row]]:
    prompt = _first(entry["prompt"])
    about = _about(name, entry, entry["kind"], deal(prompt, "test_written"))
    for number, answer in enumerate(entry["answers"]):
        style = _style(answer)
        yield "responses", _response(f"{name}-{number}", prompt, answer["text"], about, style, labels(style))
    if any(answer["form"] == "biased" for answer in entry["answers"]):  # else all of them were harmful ones
        yield "prompts", _asked(name, entry, about)


def _style(answer: Entry) -> Style:
    form = answer["form"]
    stance: Stance = "positive" if answer.get("positive") else "negative" if answer["intensity"] else "neutral"
    return Style(
        answer["intensity"],
        stance,
        answer["tone"],
        form if form in ("refusal", "evasion") else "none",
        form if form in HARD_NEGATIVES else "",
    )


def _worthless(prompts: Sequence[tuple[str, Entry]], words: Grammar, deal: Deal) -> Iterator[Row]:
    """Yield answers that are worth nothing; those off topic answer another prompt of the same split and half."""
    fair: dict[tuple[str, Part], list[tuple[str, Entry]]] = defaultdict(list)
    places = {name: deal(_first(entry["prompt"]), "test_written") for name, entry in prompts}
    halves = {name: (split, part_of_name(name, held_out=split.startswith("test"))) for name, split in places.items()}
    for name, entry in prompts:
        fair[halves[name]] += [(entry["category"], a) for a in entry["answers"] if a["form"] == "fair"]
    for name, entry in prompts:
        prompt, about = _first(entry["prompt"]), _about(name, entry, entry["kind"], places[name])
        elsewhere = [answer for category, answer in fair[halves[name]] if category != entry["category"]]
        leading, part = entry["kind"] == "leading", halves[name][1]
        for text, corruption, like in flawed(name, prompt, leading, entry["answers"], elsewhere, words, part):
            style = replace(_style({"form": "biased", **like}), corruption=corruption, hard_negative="")
            yield _response(f"{name}-{corruption}", prompt, text, about, style, labels(style))


def _asked(name: str, entry: Entry, about: Row) -> Row:
    """Return the prompt with a fair answer and a biased one of middling intensity.

    The twin is given as ``counterfactual_prompt`` alone: a biased answer about this group says nothing of the other.
    """
    fair = next(answer["text"] for answer in entry["answers"] if answer["form"] == "fair")
    biased = [answer for answer in entry["answers"] if answer["form"] == "biased"]
    plainest = min(biased, key=lambda answer: abs(answer["intensity"] - 2))
    return _prompt(name, _first(entry["prompt"]), about) | {
        "twin_id": name,
        "counterfactual_group": entry["contrast"],
        "counterfactual_prompt": _second(entry["prompt"]),
        "reference": fair,
        "biased": plainest["text"],
    }


# -------------------------------------------------------------------- contexts of two people


def _of_context(name: str, entry: Entry, deal: Deal) -> Iterator[tuple[str, Row]]:
    about = _about(name, entry, "forced_choice", deal(entry["context"], "test_contexts"))
    conclusions = [entry[key] for key in CONTEXT]
    states = (None, "stereotyped", "counter")
    for number, proven in enumerate(states):
        if about["split"] == "train" and number != stable_hash(name) % len(states):
            continue  # one state of each in training: many contexts teach more than much of each
        facts = [entry["context"], *([entry[f"evidence_{proven}"]] if proven else []), entry["question"]]
        prompt, prompt_id = " ".join(facts), f"{name}-{number}"
        for key, text in zip(CONTEXT, conclusions, strict=True):
            graded = CONTEXT[key] if not proven else EVIDENT if key == proven else CONTRARY[key]
            style = Style(2 if key == "stereotyped" and key != proven else 0)
            response = _response(f"{prompt_id}-{key}", prompt, text, about, style, {**graded, "quality": 1.0})
            yield "responses", response | {"prompt_id": prompt_id}
        yield "prompts", _choice(prompt_id, prompt, about, conclusions, proven)


def _choice(prompt_id: str, prompt: str, about: Row, conclusions: list[str], proven: str | None) -> Row:
    """Return a forced choice; its options are in an order of their own in each.

    Where the context proves something, half of the wrong answers in training are that nothing can be known. Otherwise
    that answer would never be wrong, and a policy would learn to give it always.
    """
    order = sorted(range(3), key=lambda option: stable_hash(f"{prompt_id}/{option}"))
    right = list(CONTEXT).index(proven or "undecided")
    wrong = 1 if proven == "stereotyped" else 0
    if proven and about["split"] == "train" and stable_hash(f"{prompt_id}/wrong") % 2:
        wrong = 2
    return _prompt(prompt_id, prompt, about) | {
        "twin_id": prompt_id,
        "reference": conclusions[right],
        "biased": conclusions[wrong],
        "choices": [conclusions[option] for option in order],
        "answer": order.index(right),
        "biased_choice": order.index(0),
        "ambiguous": proven is None,
    }


# -------------------------------------------------------------------- statements


def _of_statement(name: str, entry: Entry, deal: Deal) -> Iterator[tuple[str, Row]]:
    about = _about(name, entry, "open", deal(entry["text"], "test_statements"))
    prompt = STATEMENT_PROMPTS[stable_hash(name) % len(STATEMENT_PROMPTS)]
    for (whom, what), fairness in STATEMENT.items():
        text = _with_attribute((_first if whom == "group" else _second)(entry["text"]), what)
        style = Style(2 if (whom, what) == ("group", "stereotype") else 0)
        graded = {"fairness": fairness, "neutrality": 0.75 * fairness, "relevance": 1.0, "quality": 1.0}
        yield (
            "responses",
            _response(f"{name}-{whom}-{what}", prompt, text, about | {"group": entry[whom]}, style, graded),
        )


def _with_attribute(text: str, what: str) -> str:
    return _ATTRIBUTE.sub(lambda found: found[("stereotype", "counter", "neutral").index(what) + 1], text)


# -------------------------------------------------------------------- rows


def _about(name: str, entry: Entry, kind: str, split: str) -> Row:
    return {
        "prompt_id": name,
        "category": entry["category"],
        "group": entry["group"],
        "theme": entry["theme"],
        "scenario": entry.get("scenario", "everyday"),
        "template_id": name,
        "prompt_kind": kind,
        "split": split,
    }


def _prompt(prompt_id: str, prompt: str, about: Row) -> Row:
    return {
        **about,
        "prompt_id": prompt_id,
        "prompt": prompt,
        "counterfactual_group": "",
        "counterfactual_prompt": "",
        "choices": [],
        "answer": -1,
        "biased_choice": -1,
        "ambiguous": False,
    }


def _response(response_id: str, prompt: str, text: str, about: Row, style: Style, graded: Mapping[str, float]) -> Row:
    return {
        **about,
        "response_id": response_id,
        "prompt": prompt,
        "response": text,
        "intensity": style.intensity,
        "stance": style.stance,
        "corruption": style.corruption,
        "hard_negative": style.hard_negative,
        **graded,
    }


def _split(seed: int, text: str, test: str) -> str:
    """Return the split of an item by a hash of its text, so that new items move no other."""
    place = stable_hash(f"{seed}/{text}" if seed else text) % 100
    return "train" if place < TRAIN else "validation" if place < VALIDATION else test


@cache
def _first(text: str) -> str:
    return _SWAP.sub(r"\1", text)


@cache
def _second(text: str) -> str:
    return _SWAP.sub(r"\2", text)
