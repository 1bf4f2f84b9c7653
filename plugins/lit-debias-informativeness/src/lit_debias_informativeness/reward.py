"""The reward for saying what a reference says."""

from __future__ import annotations

from typing import Literal

import torch

from lit_debias.plugins import Reward, RewardBatch, SentenceEncoder, UserError, check_model
from lit_debias_informativeness.content import ContentWords


class Informativeness(Reward):
    """How near a completion is to a text in meaning, and how much of its content it covers.

    With the cosine of the two sentence embeddings, and the share of the text's distinct content words that the
    completion holds::

        score = similarity_weight * max(0, cosine) + (1 - similarity_weight) * coverage, in [0, 1]

    Content words are all but function words ("the", "of", "would"), stemmed. The cosine is that of Sentence-BERT (arXiv
    1908.10084), coverage is the recall of ROUGE-1 (Lin 2004) over distinct content words. An empty completion scores 0;
    a text to compare with that is missing or empty gives no opinion, and one of function words alone has no coverage to
    mix in.

    Args:
        model: Sentence encoder: a local folder, ``pkg://PACKAGE/PATH``, or a hub id.
        against: What completions are compared with: the data column ``reference``, which holds a neutral answer, or the
            prompt, where there is no such column; a completion that repeats its prompt then has the highest score.
        similarity_weight: Weight of the cosine in [0, 1]; coverage has the rest.
        language: Of the stems, by Snowball's name: ``english``, ``german``, ...
        stop_words: Words that are no content, needed for other languages than English.
        batch_size: Texts in one forward pass.

    Raises:
        UserError: an argument is out of range, the language is unknown, or ``model`` names nothing.
    """

    columns: tuple[str, ...] = ("reference",)
    speed_options = ("batch_size",)

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        against: Literal["reference", "prompt"] = "reference",
        similarity_weight: float = 0.5,
        language: str = "english",
        stop_words: list[str] | None = None,
        batch_size: int = 32,
    ) -> None:
        if not 0 <= similarity_weight <= 1:
            raise UserError(f"Informativeness: similarity_weight={similarity_weight}; write a number from 0 to 1")
        if batch_size < 1:
            raise UserError(f"Informativeness: batch_size={batch_size}; write at least 1")
        if against not in ("reference", "prompt"):
            raise UserError(f"Informativeness: against='{against}'; write reference or prompt")
        check_model(model)
        if against == "prompt":
            self.columns = ()
        self.against, self.similarity_weight = against, similarity_weight
        self.content_words = ContentWords(language, stop_words)
        self.encoder = SentenceEncoder(model, batch_size)

    def setup(self, device: torch.device) -> None:
        """Load the encoder onto ``device``, unless only coverage counts."""
        if self.similarity_weight > 0:
            self.encoder.load(device)

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [0, 1]."""
        wanted = batch.prompts if self.against == "prompt" else batch.columns["reference"]
        pairs = [(text, other or "") for text, other in zip(batch.completions, wanted, strict=True)]
        known = dict.fromkeys(pair for pair in pairs if pair[1].strip())
        scores = dict(zip(known, map(self._mix, known, self._similarities(list(known))), strict=True))
        return [scores.get(pair) for pair in pairs]

    def _similarities(self, pairs: list[tuple[str, str]]) -> list[float]:
        if self.similarity_weight == 0 or not pairs:
            return [0.0] * len(pairs)
        texts, others = map(list, zip(*pairs, strict=True))
        return [max(0.0, cosine) for cosine in self.encoder.similarity(texts, others)]

    def _mix(self, pair: tuple[str, str], similarity: float) -> float | None:
        coverage = self.content_words.coverage(*pair)
        if coverage is None:
            return similarity if self.similarity_weight > 0 else None
        return self.similarity_weight * similarity + (1 - self.similarity_weight) * coverage
