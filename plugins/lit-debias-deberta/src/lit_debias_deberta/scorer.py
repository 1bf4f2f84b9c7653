"""Scores texts with a saved reward model; rewards of one checkpoint share it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lit_debias_deberta.checkpoint import MANIFEST, load_network
from lit_debias_deberta.network import RewardNetwork

Pair = tuple[str, str]


class RewardScorer:
    """A frozen reward network that remembers the scores of its last batch.

    N pairs of prompt and response, D dimensions.
    """

    def __init__(self, network: RewardNetwork) -> None:
        self.network = network.eval().requires_grad_(False)
        self.dimensions = network.dimensions
        self._batch: tuple[list[Pair], int] | None = None
        self._scores = torch.empty(0, len(self.dimensions))

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> RewardScorer:
        """Load the folder that :class:`~lit_debias_deberta.RewardModel` wrote."""
        return cls(load_network(Path(folder)).to(device))

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], batch_size: int = 64, max_length: int | None = None
    ) -> Tensor:
        """Return calibrated scores [N, D] float32 in [0, 1] on the CPU; the same batch again costs nothing.

        Args:
            prompts: [N].
            responses: [N].
            batch_size: Pairs in one forward pass.
            max_length: Tokens of a pair; by default as in training.
        """
        pairs = list(zip(prompts, responses, strict=True))
        batch = (pairs, max_length or self.network.max_length)
        if batch != self._batch:
            self._scores = self._score(pairs, batch_size, batch[1])
            self._batch = batch
        return self._scores

    @torch.inference_mode()
    def _score(self, pairs: list[Pair], batch_size: int, max_length: int) -> Tensor:
        if not pairs:
            return torch.empty(0, len(self.dimensions))
        row = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        prompts, responses = zip(*row, strict=True)
        device = self.network.encoder.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = self.network.read(prompts, responses, batch_size, max_length)
        return self.network.scores(logits).cpu()[[row[pair] for pair in pairs]]


_shared: WeakValueDictionary[tuple[Path, int, str], RewardScorer] = WeakValueDictionary()


def shared_scorer(folder: Path, device: torch.device) -> RewardScorer:
    """Return the scorer of this folder and device; it is loaded once, and freed with its last user."""
    folder = folder.resolve()
    key = (folder, (folder / MANIFEST).stat().st_mtime_ns, str(device))
    scorer = _shared.get(key)
    if scorer is None:
        scorer = _shared[key] = RewardScorer.load(folder, device)
    return scorer
