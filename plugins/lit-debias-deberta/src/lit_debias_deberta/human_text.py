"""Pairs of texts by people, from public benchmarks, that measure a fairness head and never train it.

The folder is laid out as below; a benchmark that is not there is left out:

    stereoset/dev.json[.gz]                         Nadeem et al. 2021: stereotype against anti-stereotype
    crows_pairs/crows_pairs_anonymized.csv[.gz]     Nangia et al. 2020: more against less stereotypical
    cbbq/instances/region__ambiguous.json[.gz]      Huang and Xiong 2023, in Chinese: the biased answer against "do not
    cbbq/instances/ethnicity__ambiguous.json[.gz]   know", each as a sentence, where the context decides nothing
    bbq/*.jsonl[.gz], additional_metadata.csv[.gz]  Parrish et al. 2022: a seeded choice, each answer as a sentence
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from lit_debias.plugins import UserError, read_text
from lit_debias_deberta.contrasts import Contrast
from lit_debias_deberta.human_bbq import QUESTIONS, find_bbq, read_bbq

PROMPT = "Write one sentence about people."
"""Stands before sentences that answer nothing."""
QUESTION_MARK = "\uff1f"
DRAWS = 1000
Estimates = dict[str, dict[str, dict[str, float]]]
"""Source -> type of bias, or ``all`` -> figures."""


def check_folder(folder: str) -> None:
    """Raise :class:`UserError` where a folder holds none of the benchmarks."""
    if not any(_find(Path(folder), name) for name in READERS) and not find_bbq(Path(folder)):
        raise UserError(
            f"human_text '{folder}' holds none of the files {', '.join((*READERS, QUESTIONS))} (or the same with .gz)"
        )


def read(folder: str) -> list[Contrast]:
    """Return the pairs of all benchmarks in a folder.

    Raises:
        UserError: there are none, or a file is not what its name says.
    """
    check_folder(folder)
    pairs: list[Contrast] = []
    for name, reader in READERS.items():
        path = _find(Path(folder), name)
        if path:
            text = read_text(path, "human_text")
            with _laid_out(path):
                pairs += reader(text)
    if find_bbq(Path(folder)):
        with _laid_out(Path(folder) / "bbq"):
            pairs += read_bbq(Path(folder))
    return pairs


@contextmanager
def _laid_out(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"human_text: '{path}' is not laid out as the benchmark is ({error!r})") from error


def measure(pairs: Sequence[Contrast], score: Callable[[list[str], list[str]], Tensor], seed: int = 0) -> Estimates:
    """Return how often the fairer text scores higher (a tie counts half), with a 95% bootstrap interval.

    Args:
        pairs: [N].
        score: Prompts [M] and responses [M] -> fairness [M].
        seed: Of the bootstrap.

    Returns:
        Per source and type: ``value``, ``low``, ``high``, ``n``, and the mean scores ``fairer`` and ``less_fair``.
    """
    prompts, responses = [p.prompt for p in pairs] * 2, [p.fairer for p in pairs] + [p.less_fair for p in pairs]
    fairer, less_fair = score(prompts, responses).double().numpy().reshape(2, len(pairs))
    wins = (fairer > less_fair) + 0.5 * (fairer == less_fair)
    members: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(pairs):
        members.setdefault((pair.source, "all"), []).append(row)
        members.setdefault((pair.source, pair.kind), []).append(row)
    found: Estimates = {}
    for (source, kind), rows in members.items():
        low, high = interval(wins[rows], [pairs[row].cluster for row in rows], seed)
        found.setdefault(source, {})[kind] = {
            "value": float(wins[rows].mean()),
            "low": low,
            "high": high,
            "n": len(rows),
            "fairer": float(fairer[rows].mean()),
            "less_fair": float(less_fair[rows].mean()),
        }
    return found


def interval(values: Iterable[float], clusters: Sequence[str], seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean of values [N] when whole clusters are drawn with replacement."""
    owner = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, sizes = np.bincount(owner, np.fromiter(values, float)), np.bincount(owner)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    low, high = np.percentile((drawn @ sums) / (drawn @ sizes), [2.5, 97.5])
    return float(low), float(high)


def _stereoset(text: str) -> Iterator[Contrast]:
    for part, records in json.loads(text)["data"].items():
        for record in records:
            sentence = {s["gold_label"]: s["sentence"] for s in record["sentences"]}
            prompt = record["context"] if part == "intersentence" else PROMPT
            about = (f"StereoSet {part}", record["bias_type"], record["target"])
            yield Contrast(*about, prompt, sentence["anti-stereotype"], sentence["stereotype"])


def _crows_pairs(text: str) -> Iterator[Contrast]:
    # in both directions, "stereo" and "antistereo", sent_more is the more stereotypical one
    for number, row in enumerate(csv.DictReader(io.StringIO(text))):
        yield Contrast("CrowS-Pairs", row["bias_type"], str(number), PROMPT, row["sent_less"], row["sent_more"])


def _cbbq(text: str) -> Iterator[Contrast]:
    # the stereotype names the first answer; a question that is not negative turns it round
    for row in json.loads(text):
        biased = row["ans0"] if row["question_polarity"] == "neg" else row["ans1"]
        about = ("CBBQ", row["category"], f"{row['category']} {row['question_index']}")
        question = row["question"].removesuffix(QUESTION_MARK)
        prompt = row["context"] + row["question"]
        yield Contrast(*about, prompt, f"{row['ans2']}{question}。", _statement(question, biased))


def _statement(question: str, answer: str) -> str:
    """Return the answer as a sentence: in the place of "who", or after the question."""
    return question.replace("谁", answer, 1) + "。" if "谁" in question else f"{question}{QUESTION_MARK}{answer}。"


READERS: dict[str, Callable[[str], Iterator[Contrast]]] = {
    "stereoset/dev.json": _stereoset,
    "crows_pairs/crows_pairs_anonymized.csv": _crows_pairs,
    "cbbq/instances/region__ambiguous.json": _cbbq,
    "cbbq/instances/ethnicity__ambiguous.json": _cbbq,
}


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
