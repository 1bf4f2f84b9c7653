"""Says which answer a bag of words suggests: how far a model's answers rest on single words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

LEAST = 5
"""Documents in which a word must be, to count."""


class NaiveBayes:
    """Multinomial naive Bayes over the words of N documents, every count one higher than it is.

    Args:
        documents: [N] words.
        answers: [N] labels, 0 to K - 1.
        labels: K.
        least: Documents in which a word must be.
    """

    def __init__(
        self, documents: Sequence[Sequence[str]], answers: Sequence[int], labels: int, least: int = LEAST
    ) -> None:
        found = Counter(word for words in documents for word in set(words))
        self.index = {word: i for i, word in enumerate(sorted(word for word, n in found.items() if n >= least))}
        counts = np.ones((len(self.index), labels))
        for words, answer in zip(documents, answers, strict=True):
            for word in self._known(words):
                counts[word, answer] += 1
        self.words = np.log(counts / counts.sum(axis=0))
        """[V, K] log p(word | label)."""
        self.prior = np.log((np.bincount(np.array(answers, dtype=int), minlength=labels) + 1) / (len(answers) + labels))
        """[K] log p(label)."""

    def most_frequent(self) -> int:
        """Return the label of most documents, the first of equals."""
        return int(np.argmax(self.prior))

    def predict(self, words: Sequence[str]) -> int:
        """Return the most probable label of a document, the first of equals."""
        return int(np.argmax(self.prior + self.words[self._known(words)].sum(axis=0)))

    def _known(self, words: Sequence[str]) -> list[int]:
        return [self.index[word] for word in words if word in self.index]
