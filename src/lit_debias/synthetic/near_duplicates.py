"""Finds texts that are nearly one that is there already."""

from __future__ import annotations

from lit_debias.errors import UserError

SHINGLE = 3
"""Words in what two texts may share."""
HASHES = 64


class NearDuplicates:
    """Remembers texts by MinHash and finds near copies, about: Jaccard similarity of their word trigrams.

    Args:
        threshold: Similarity from which on two texts are one, above 0 and up to 1.

    Raises:
        UserError: the threshold is out of range, or the extra ``llm`` is not installed.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise UserError(f"similarity={threshold}; write a number above 0 and up to 1")
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise UserError("removing duplicates needs the extra 'llm'; pip install 'lit-debias[llm]'") from error
        self.threshold = threshold
        self._index = MinHashLSH(threshold, HASHES)
        self._new = MinHash
        self._sketches: list[MinHash] = []

    def add(self, text: str) -> bool:
        """Remember a text; return False, and forget it, where it is nearly one that is remembered."""
        words = text.lower().split()
        sketch = self._new(HASHES)
        sketch.update_batch(
            [" ".join(words[start : start + SHINGLE]).encode() for start in range(max(1, len(words) - SHINGLE + 1))]
        )
        close = (self._sketches[number] for number in self._index.query(sketch))
        if any(sketch.jaccard(other) >= self.threshold for other in close):
            return False
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return True
