"""A second reading of a tenth of the written texts, without their labels, and how far it agrees.

    python -m benchmarks.second_reading --draw FOLDER     # texts without labels, to be read
    python -m benchmarks.second_reading --take FOLDER     # puts what was read there into results/second_reading.jsonl
    python -m benchmarks.second_reading                   # the tables of agreement

A reader grades each answer (0 fair to 4 hostile) knowing prompt and group, says which conclusion from a context follows
a stereotype, and which attribute of a statement does.
"""

from __future__ import annotations

import json
import random
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torchmetrics.functional.classification import multiclass_cohen_kappa

from lit_debias.support.hashing import stable_hash
from lit_debias.synthetic.written import CORPUS, KINDS, entries

READ = Path(__file__).parent / "results" / "second_reading.jsonl"
SHARE = 10
"""One item in so many is read again."""
CONCLUSIONS = ("stereotyped", "counter", "undecided")
ATTRIBUTES = ("stereotype", "counter", "neutral")
Item = dict[str, Any]


def drawn(kind: str) -> Iterator[tuple[str, Item]]:
    """Yield the names and entries that are read again, a function of the entry alone."""
    for name, entry in entries(CORPUS, kind):
        if stable_hash(f"second reading {json.dumps(entry, sort_keys=True)}") % SHARE == 0:
            yield name, dict(entry)


def questions(kind: str) -> list[tuple[Item, int]]:
    """Return what a reader sees, and the label that it does not show, in an order that says nothing of it."""
    return sorted(_questions(kind), key=lambda question: str(question[0]["id"]))


def _questions(kind: str) -> Iterator[tuple[Item, int]]:
    for name, entry in drawn(kind):
        about = {"category": entry["category"], "group": entry["group"]}
        if kind == "prompts":
            for number, answer in enumerate(entry["answers"]):
                shown = {"prompt": entry["prompt"], "answer": answer["text"]}
                yield {"id": _blind(f"{name}-{number}"), **about, **shown}, answer["intensity"]
        else:
            order = random.Random(name).sample(range(3), 3)
            options = _options(kind, entry)
            shown = {"text": _text(kind, entry), "options": [options[place] for place in order]}
            yield {"id": _blind(name), **about, **shown}, order.index(0)


def _blind(name: str) -> str:
    """Return an id that does not say where among the answers to a prompt a text stands."""
    return f"{stable_hash(name):016x}"


def _options(kind: str, entry: Item) -> list[str]:
    if kind == "contexts":
        return [entry[key] for key in CONCLUSIONS]
    return entry["text"].partition("{")[2].partition("}")[0].split("|")


def _text(kind: str, entry: Item) -> str:
    if kind == "contexts":
        return f"{entry['context']} {entry['question']}"
    before, _, rest = entry["text"].partition("{")
    return f"{before}____{rest.partition('}')[2]}"


def draw(folder: Path) -> None:
    """Write ``KIND.jsonl`` with what a reader sees."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        lines = [json.dumps(shown, ensure_ascii=False) for shown, _ in questions(kind)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def take(folder: Path) -> None:
    """Collect ``{"id": ..., "label": ...}`` from ``*.read.jsonl`` of a folder."""
    known = {shown["id"] for kind in KINDS for shown, _ in questions(kind)}
    rows = [json.loads(line) for path in sorted(folder.glob("*.read.jsonl")) for line in path.read_text().splitlines()]
    kept = {row["id"]: row["label"] for row in rows if row["id"] in known}
    READ.write_text("".join(f"{json.dumps({'id': name, 'label': kept[name]})}\n" for name in sorted(kept)))


def agreement(labels: Sequence[int], read: Sequence[int], classes: int, weights: str | None) -> tuple[float, float]:
    """Return the share of equal labels, and Cohen's kappa, quadratically weighted where labels are grades."""
    first, second = torch.tensor(labels), torch.tensor(read)
    kappa = multiclass_cohen_kappa(second, first, num_classes=classes, weights=weights)  # type: ignore[arg-type]
    return float((first == second).double().mean()), float(kappa)


def agreements() -> Iterator[tuple[str, int, float, float]]:
    """Yield the kind of texts, how many were read again, the share of equal labels, and Cohen's kappa."""
    read = {row["id"]: row["label"] for row in map(json.loads, READ.read_text().splitlines())}
    for kind in KINDS:
        pairs = [(label, read[shown["id"]]) for shown, label in questions(kind) if shown["id"] in read]
        graded = kind == "prompts"
        labels, seen = zip(*pairs, strict=True)
        name = "answers, intensity 0 to 4" if graded else kind
        yield name, len(pairs), *agreement(labels, seen, 5 if graded else 3, "quadratic" if graded else None)
        if graded:
            fair = [[int(value > 0) for value in values] for values in (labels, seen)]
            yield "answers, fair or not", len(pairs), *agreement(*fair, 2, None)


def main() -> None:
    """Draw, take, or report."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--draw", type=Path)
    parser.add_argument("--take", type=Path)
    options = parser.parse_args()
    if options.draw:
        draw(options.draw)
        return
    if options.take:
        take(options.take)
    table = Table("texts", "read again", "equal", "Cohen's kappa", title="second reading")
    for texts, number, equal, kappa in agreements():
        table.add_row(texts, str(number), f"{equal:.1%}", f"{kappa:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
