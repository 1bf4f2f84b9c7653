"""A frozen sentence encoder that says how close two texts are in meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_debias.models.loading import load_encoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 256
"""Longer texts are cut, as all-MiniLM-L6-v2 does."""


class SentenceEncoder:
    """Cosine similarity of mean-pooled last hidden states, as the card of all-MiniLM-L6-v2 computes it.

    Args:
        source: Any encoder that was trained for it: a local folder, ``pkg://PACKAGE/PATH``, or a hub id.
        batch_size: Texts in one forward pass.
    """

    def __init__(self, source: str, batch_size: int = 32) -> None:
        self.source = source
        self.batch_size = batch_size
        self._encoder: PreTrainedModel | None = None

    def load(self, device: torch.device) -> None:
        """Load onto ``device`` in fp32; does nothing when the encoder is there.

        Raises:
            UserError: there is no such model, or it cannot be reached.
        """
        if self._encoder is not None:
            return
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.source)
        self._encoder = load_encoder(self.source, device_map={"": device})

    def similarity(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Return the cosines [N] in [-1, 1] of texts [N] and [N]; an empty text is like nothing, 0."""
        texts = sorted({*first, *second}, key=len)  # pads little, and reads a text once
        starts = range(0, len(texts), self.batch_size)
        parts = [self._embed(texts[start : start + self.batch_size]) for start in starts]
        vectors = dict(zip(texts, torch.cat(parts), strict=True))
        return [
            float((vectors[a] @ vectors[b]).clamp(-1, 1)) if a.strip() and b.strip() else 0.0
            for a, b in zip(first, second, strict=True)
        ]

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> Tensor:
        """Return vectors [N, H] of length 1 on the CPU."""
        assert self._encoder is not None, "call load() first"
        longest = min(MAX_TOKENS, self._tokenizer.model_max_length)
        encoded = self._tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        encoded = encoded.to(self._encoder.device)
        states = self._encoder(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).cpu()
