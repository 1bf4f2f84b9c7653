"""``lit-debias write``: adds responses that a language model wrote to a synthetic data set."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from lit_debias.data.sources import read_file
from lit_debias.data.tables import SCHEMAS, Row
from lit_debias.errors import UserError
from lit_debias.rewards.reward import Reward
from lit_debias.support.atomic import new_folder
from lit_debias.support.hashing import sha256
from lit_debias.synthetic.assignments import INTENSITIES, assign
from lit_debias.synthetic.authors import Author
from lit_debias.synthetic.card import written_section
from lit_debias.synthetic.sieve import Sieve
from lit_debias.synthetic.synthesis import ARGUMENTS
from lit_debias.synthetic.taxonomy import Taxonomy

ANSWERS = "answers.jsonl"
PATIENCE = 20
"""Requests without an answer, one after the other, that end a run."""


def write(
    data: Path,
    out: Path,
    author: Author,
    judge: Reward | None = None,
    limit: int | None = None,
    intensities: tuple[int, ...] = (0, 1, 2),
    tolerance: float = 0.3,
    similarity: float = 0.7,
    wording: Path | None = None,
    seed: int = 0,
) -> None:
    """Let a language model write responses to the training prompts, and keep those that are what they should be.

    OUT becomes a copy of the data set whose training responses hold the written ones too, labelled by what was asked
    for. Answers are kept in OUT/answers.jsonl: a run that was cut off, or is repeated with another judge, asks for what
    is missing and for nothing twice.

    Args:
        data: Folder made by `lit-debias synthesize`.
        out: Folder to write.
        author: Who writes: Endpoint (an OpenAI-compatible server) or LocalModel.
        judge: Reward in [0, 1] that checks fairness; without it labels are not checked.
        limit: Write to at most so many prompts, chosen by the seed.
        intensities: Intensities to ask for; leave 3 and 4 (discriminatory, hostile) out of what you share.
        tolerance: Drop a response whose judged fairness is further than this from its label.
        similarity: Drop a response whose word trigrams overlap with another one's as much as this (Jaccard).
        wording: The folder that the data was made with, where it was not the package's own.
        seed: Draws prompts, tones and stances.

    Raises:
        UserError: a path or number is wrong, or the author does not answer.
    """
    data, out = Path(data), Path(out)
    check_folders(data, out)
    check_numbers(intensities, limit)
    taxonomy = Taxonomy.load(wording)
    sieve = Sieve(taxonomy, judge, tolerance, similarity)
    people = {group.id: group.people for pair in taxonomy.pairs for group in pair.groups}
    prompts = read_file(data / "prompts/train.parquet").to_list()
    assignments = assign(prompts, people, intensities, limit, seed)
    out.mkdir(parents=True, exist_ok=True)
    texts = collect(out / ANSWERS, author, assignments)
    known = [text for file in sorted(data.glob("responses/*.parquet")) for text in read_file(file)["response"]]
    records, outcomes = sieve.sift(assignments, texts, known)
    settings = {
        "author": {"class": type(author).__name__, **author.describe()},
        "judge": type(judge).__name__ if judge else None,
        "limit": limit,
        "intensities": list(intensities),
        "tolerance": tolerance,
        "similarity": similarity,
        "seed": seed,
    }
    assemble(data, out, records, settings, outcomes)
    print(f"{out}: {len(records)} of {len(assignments)} written responses kept; README.md says why not the others")


def check_folders(data: Path, out: Path) -> None:
    """Raise :class:`UserError` where ``data`` is no data set, or ``out`` holds something else."""
    if not (data / ARGUMENTS).is_file():
        raise UserError(f"--data {data} is no folder of 'lit-debias synthesize'; make one with --out {data}")
    if (data / ANSWERS).exists():
        raise UserError(f"--data {data} holds written responses already; name the folder that it was made from")
    check_out(out, "write")


def check_out(out: Path, command: str) -> None:
    """Raise :class:`UserError` where ``out`` holds what another command has made."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / ANSWERS).is_file()):
        raise UserError(f"--out {out} holds something that 'lit-debias {command}' has not made; name another folder")


def check_numbers(intensities: Sequence[int], limit: int | None) -> None:
    """Raise :class:`UserError` where a number is out of range."""
    if not intensities or not set(intensities) <= set(INTENSITIES) or len(set(intensities)) < len(intensities):
        raise UserError(f"intensities={list(intensities)}; write some of {list(INTENSITIES)}, each once")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}; write 1 or more")


class Asked(Protocol):
    """What an author is asked for."""

    @property
    def instruction(self) -> str:
        """What the author is told."""

    def key(self, author: Mapping[str, Any]) -> str:
        """Return what identifies the answer of an author."""


def collect(path: Path, author: Author, assignments: Sequence[Asked]) -> list[str | None]:
    """Return the answer to each assignment, from the file where it is there, and else from the author.

    Raises:
        UserError: the author left ``PATIENCE`` requests in a row without an answer.
    """
    about = author.describe()
    keys = [assignment.key(about) for assignment in assignments]
    answers = read_answers(path)
    missing = {key: one.instruction for key, one in zip(keys, assignments, strict=True) if key not in answers}
    silent = 0
    with path.open("a", encoding="utf-8") as file:
        texts = author.write(list(missing.values())) if missing else iter(())
        for key, text in zip(missing, track(texts, "write", len(missing), disable=not missing), strict=True):
            silent = 0 if text else silent + 1
            if silent == PATIENCE:
                raise UserError(f"the author left {PATIENCE} requests in a row unanswered; run the command again later")
            if text:
                answers[key] = text
                file.write(f"\n{json.dumps({'key': key, 'text': text})}")  # the line before may be cut off
                file.flush()
    return [answers.get(key) for key in keys]


def read_answers(path: Path) -> dict[str, str]:
    """Return key -> text of the answers that are there; a line that was cut off is none."""
    answers = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            answers[entry["key"]] = entry["text"]
        except (ValueError, KeyError, TypeError):
            continue
    return answers


def assemble(data: Path, out: Path, records: Sequence[Row], settings: dict[str, Any], outcomes: Counter[str]) -> None:
    """Put the data set with the new responses in the place of ``out``, whose answers and other files it keeps."""
    train = Path("responses/train.parquet")
    table = pa.Table.from_pylist(list(records), schema=SCHEMAS["responses"])
    arguments = json.loads((data / ARGUMENTS).read_text(encoding="utf-8"))
    card = (data / "README.md").read_text(encoding="utf-8")
    with new_folder(out) as work:
        for source in (out, data):
            shutil.copytree(source, work, dirs_exist_ok=True)
        pq.write_table(pa.concat_tables([pq.read_table(data / train), table]), work / train)
        (work / ARGUMENTS).write_text(json.dumps({**arguments, "written": settings}, indent=2) + "\n", encoding="utf-8")
        card = card.replace(sha256([data / train]), sha256([work / train]))
        (work / "README.md").write_text(f"{card}\n{written_section(settings, outcomes)}", encoding="utf-8")
