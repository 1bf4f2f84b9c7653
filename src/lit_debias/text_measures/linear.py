"""Toxicity by a linear model over words and runs of words: no hub, and no code in its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from lit_debias.errors import UserError
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.support.atomic import new_folder
from lit_debias.support.files import parse_json, read_text
from lit_debias.support.text import ngrams, words

WEIGHTS = "toxicity.safetensors"
ABOUT = "toxicity.json"
FORMAT = 1


class LinearToxicity(Reward):
    """1 - the probability that a completion is toxic, by a linear model that was trained on texts of one's own.

    ``lit-debias toxicity train`` writes the model: logistic regression over words and runs of words. It reads the
    completion alone, knows no word that its training texts lacked, and takes a group's name for toxic where toxic texts
    named that group more often (Dixon et al. 2018). A completion without a known word gets what a text of no words has,
    an empty one no opinion.

    Args:
        model: Folder that ``lit-debias toxicity train`` wrote.

    Raises:
        UserError: the folder lacks a file.
    """

    def __init__(self, model: str) -> None:
        self.folder = Path(model).expanduser()
        for name in (WEIGHTS, ABOUT):
            if not (self.folder / name).is_file():
                raise UserError(
                    f"LinearToxicity: there is no {name} in '{model}'; write a folder of `lit-debias toxicity train`"
                )
        self._model: LinearModel | None = None

    def setup(self, device: torch.device) -> None:
        """Read the model; it stays on the CPU.

        Raises:
            UserError: a file is damaged.
        """
        self._model = self._model or LinearModel.load(self.folder)

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [0, 1], 1 is harmless."""
        assert self._model is not None, "call setup() first"
        harmless = 1 - self._model.probabilities(batch.completions)
        scored = zip(harmless.tolist(), batch.completions, strict=True)
        return [score if text.strip() else None for score, text in scored]


@dataclass(frozen=True)
class LinearModel:
    """``p(toxic) = sigmoid(sum of the weights of a text's V known n-grams / sqrt(how many they are) + bias)``."""

    vocabulary: dict[str, int]
    """N-gram, its words with a space between them -> its number."""
    weights: Tensor
    """[V] float64."""
    bias: float
    longest: int
    """Words of the longest n-gram."""

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """Return p(toxic) [N] of texts [N]."""
        found = Features.of([known(text, self.vocabulary, self.longest) for text in texts])
        return (found.sums(self.weights) + self.bias).sigmoid()

    def save(self, out: Path, training: dict[str, Any]) -> None:
        """Write the model into a folder, which takes the place of another one.

        Args:
            out: The folder.
            training: What is to be known of its training, as JSON.
        """
        about = {
            "format": FORMAT,
            "longest": self.longest,
            "training": training,
            "vocabulary": list(self.vocabulary),
        }
        with new_folder(out) as folder:
            bias = torch.tensor([self.bias], dtype=torch.float64)
            save_file({"weights": self.weights.contiguous(), "bias": bias}, folder / WEIGHTS)
            (folder / ABOUT).write_text(json.dumps(about, indent=0, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LinearModel:
        """Return the model of a folder.

        Raises:
            UserError: a file is missing or damaged, or the two do not belong together.
        """
        about = parse_json(read_text(folder / ABOUT, "model"), f"model '{folder / ABOUT}'")
        try:
            tensors = load_file(folder / WEIGHTS)
            weights, [bias] = tensors["weights"].double(), tensors["bias"].tolist()
            vocabulary = {gram: number for number, gram in enumerate(about["vocabulary"])}
            if about["format"] != FORMAT or weights.shape != (len(vocabulary),):
                raise ValueError("its weights are not those of its vocabulary")
            return cls(vocabulary, weights, float(bias), int(about["longest"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"model '{folder}' is damaged ({error}); train it anew") from error


@dataclass(frozen=True)
class Features:
    """The n-grams of N texts, each with the weight of its text."""

    numbers: Tensor
    """[M] int64, text after text."""
    starts: Tensor
    """[N] where each text begins."""
    scale: Tensor
    """[M] 1 / sqrt(how many the text has)."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Features:
        """Return the features of texts by the numbers of their n-grams."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        numbers = torch.tensor([number for row in rows for number in row], dtype=torch.long)
        scale = lengths.double().clamp(min=1).rsqrt().repeat_interleave(lengths)
        return cls(numbers, lengths.cumsum(0) - lengths, scale)

    def sums(self, weights: Tensor) -> Tensor:
        """Return the scaled sum [N] of each text's weights, of [V]."""
        if not len(self.numbers):
            return weights.new_zeros(len(self.starts))
        found = embedding_bag(self.numbers, weights[:, None], self.starts, mode="sum", per_sample_weights=self.scale)
        return found[:, 0]


def known(text: str, vocabulary: dict[str, int], longest: int) -> list[int]:
    """Return the numbers of the different n-grams of a text that are known, sorted."""
    return sorted({vocabulary[gram] for gram in grams(text, longest) if gram in vocabulary})


def grams(text: str, longest: int) -> set[str]:
    """Return the different n-grams of a text, of 1 to ``longest`` words."""
    own = words(text)
    return {" ".join(gram) for n in range(1, longest + 1) for gram in ngrams(own, n)}
