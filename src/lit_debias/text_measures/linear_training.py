"""Trains a linear model of toxicity: logistic regression with an L2 penalty, by L-BFGS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lit_debias.data.sources import ORIGIN, load_split
from lit_debias.errors import UserError
from lit_debias.support.text import as_figure
from lit_debias.text_measures.linear import Features, LinearModel, grams, known

STEPS = 500
FLAGS = {"true": 1.0, "yes": 1.0, "toxic": 1.0, "false": 0.0, "no": 0.0}


class Labelled(NamedTuple):
    """A text, and how toxic it is."""

    text: str
    toxic: float
    """From 0 to 1, such as the share of annotators who find it toxic."""


@dataclass(frozen=True)
class Quality:
    """What a model is worth on texts that it was not trained on; a text is toxic from 0.5 on."""

    texts: int
    toxic: int
    accuracy: float | None
    majority: float | None
    """Accuracy of always saying what is more frequent."""
    auc: float | None
    """How often a toxic text has a higher probability than another one, ties half; None where one kind is missing."""


def read_labelled(data: str, text: str, label: str, harmless: bool = False) -> list[Labelled]:
    """Return the texts of a file, those of its split "train" where it has splits.

    Args:
        data: A .jsonl, .json, .csv or .parquet file, or whatever ``--data`` of training takes.
        text: Column of the texts.
        label: Column of the labels: numbers from 0 to 1, or true and false.
        harmless: Whether 1 and true say that a text is harmless, and not that it is toxic.

    Raises:
        UserError: it cannot be read, lacks a column, or a row has no text or no label.
    """
    rows = load_split(data, "prompts", "train", {text})
    if rows is None:
        raise UserError(f"data '{data}' has no split 'train'; write a file, or name the split so")
    for column in (text, label):
        if column not in rows.column_names:
            there = ", ".join(name for name in rows.column_names if name != ORIGIN)
            raise UserError(
                f"data '{data}' has no column '{column}', it has {there}; write --text, --toxic or --harmless COLUMN"
            )
    found = []
    for row in rows.to_list():
        if not isinstance(row[text], str) or not row[text].strip():
            raise UserError(f"{row[ORIGIN]}: '{text}' is {row[text]!r:.40}; write a text")
        value = _label(row[label], f"{row[ORIGIN]}: '{label}'")
        found.append(Labelled(row[text], 1 - value if harmless else value))
    return found


def _label(value: object, where: str) -> float:
    found = FLAGS.get(str(value).lower(), as_figure(value))
    if found is None or not 0 <= found <= 1:
        raise UserError(f"{where} is {value!r:.40}; write a number from 0 to 1, or true or false")
    return found


def split(rows: Sequence[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Return the texts to train on, and about a ``share`` of them to test on; equal texts stay together."""

    def place(text: str) -> float:
        return int.from_bytes(sha256(f"{seed}\0{text}".encode()).digest()[:8], "big") / 2**64

    held_out = [place(row.text) < share for row in rows]
    return (
        [row for row, out in zip(rows, held_out, strict=True) if not out],
        [row for row, out in zip(rows, held_out, strict=True) if out],
    )


def fit(rows: Sequence[Labelled], longest: int, least: int, penalty: float) -> LinearModel:
    """Return the model with the lowest ``sum of cross-entropies + penalty / 2 * sum of squared weights``.

    Args:
        rows: Texts with labels.
        longest: Words of the longest n-gram.
        least: Texts that an n-gram must occur in.
        penalty: 1 / C of scikit-learn; the bias is not penalised.

    Raises:
        UserError: all labels are one, or no n-gram is frequent enough.
    """
    labels = torch.tensor([row.toxic for row in rows], dtype=torch.float64)
    if not len(rows) or labels.min() == labels.max():
        raise UserError("all texts to train on have one label; write some toxic and some harmless ones")
    counts = Counter(gram for row in rows for gram in grams(row.text, longest))
    kept = sorted(gram for gram, count in counts.items() if count >= least)
    if not kept:
        raise UserError(f"no word occurs in {least} texts; write more texts, or a lower --min_texts")
    vocabulary = {gram: number for number, gram in enumerate(kept)}
    features = Features.of([known(row.text, vocabulary, longest) for row in rows])
    parameters = torch.zeros(len(kept) + 1, dtype=torch.float64, requires_grad=True)
    _minimise(parameters, features, labels, penalty)
    found = parameters.detach()
    return LinearModel(vocabulary, found[:-1].clone(), float(found[-1]), longest)


def loss_of(parameters: Tensor, features: Features, labels: Tensor, penalty: float) -> Tensor:
    """Return what :func:`fit` minimises, divided by the number of texts; the last parameter is the bias."""
    weights, bias = parameters[:-1], parameters[-1]
    fitted = binary_cross_entropy_with_logits(features.sums(weights) + bias, labels)
    return fitted + penalty / 2 * weights.square().sum() / len(labels)


def _minimise(parameters: Tensor, features: Features, labels: Tensor, penalty: float) -> None:
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=STEPS, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(parameters, features, labels, penalty)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def quality_of(model: LinearModel, rows: Sequence[Labelled]) -> Quality:
    """Return what a model is worth on texts."""
    if not rows:
        return Quality(0, 0, None, None, None)
    toxic = torch.tensor([row.toxic >= 0.5 for row in rows])
    probabilities = model.probabilities([row.text for row in rows])
    share = float(toxic.double().mean())
    right = float(((probabilities >= 0.5) == toxic).double().mean())
    return Quality(len(rows), int(toxic.sum()), right, max(share, 1 - share), auc(probabilities, toxic))


def auc(scores: Tensor, positive: Tensor) -> float | None:
    """Return how often a positive of scores [N] is above a negative, ties half; None where one kind is missing."""
    above, below = scores[positive], scores[~positive].sort().values
    if not len(above) or not len(below):
        return None
    lower = torch.searchsorted(below, above)
    upper = torch.searchsorted(below, above, right=True)
    return float((lower + upper).double().mean() / 2 / len(below))
