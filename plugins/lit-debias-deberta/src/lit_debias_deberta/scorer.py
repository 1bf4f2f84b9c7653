"""Scores texts with a saved reward model; rewards of one checkpoint share it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lit_debias.plugins import ScoreFile
from lit_debias_deberta.checkpoint import MANIFEST, TEST, load_network
from lit_debias_deberta.fast_deberta import freeze_attention
from lit_debias_deberta.network import RewardNetwork
from lit_debias_deberta.score_file import fingerprint

Key = tuple[str, str, int]
Scored = tuple[float, ...]
"""Prompt, response, and the tokens that a pair may have."""

BATCH_TOKENS = 4096
CACHE_SIZE = 10_000


class RewardScorer:
    """A frozen reward network that remembers scores; N pairs of prompt and response, D dimensions.

    Args:
        network: It is put into evaluation mode for good: a DeBERTa's attention is replaced by a faster one.
        cache_size: Pairs whose scores are kept in memory, those used last; the pairs of the last call always are.
        file: Scores on disk, if any.
        bf16: Compute in bf16 where autocast does; None does so on GPUs.
    """

    def __init__(
        self,
        network: RewardNetwork,
        cache_size: int = CACHE_SIZE,
        file: ScoreFile | None = None,
        bf16: bool | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        freeze_attention(network.encoder)
        self.dimensions = network.dimensions
        self.cache_size, self.file = cache_size, file
        self.bf16 = network.encoder.device.type == "cuda" if bf16 is None else bf16
        self._known: OrderedDict[Key, Scored] = OrderedDict()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        cache_size: int = CACHE_SIZE,
        cache_dir: str | Path | None = None,
        bf16: bool | None = None,
    ) -> RewardScorer:
        """Load the folder that :class:`~lit_debias_deberta.RewardModel` wrote.

        Raises:
            UserError: ``cache_dir`` cannot be made.
        """
        file = None if cache_dir is None else _score_file(Path(cache_dir), Path(folder), torch.device(device), bf16)
        return cls(load_network(Path(folder)).to(device), cache_size, file, bf16)

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> Tensor:
        """Return calibrated scores [N, D] float32 in [0, 1] on the CPU; only pairs not known yet are read, each once.

        Args:
            prompts: [N].
            responses: [N].
            batch_size: Pairs in one forward pass; by default as many as ``batch_tokens`` allows.
            max_length: Tokens of a pair; by default as in training.
            batch_tokens: Tokens in one forward pass, padding included; a longer pair is read alone.
        """
        length = max_length or self.network.max_length
        keys = [(prompt, response, length) for prompt, response in zip(prompts, responses, strict=True)]
        distinct = dict.fromkeys(keys)
        unknown = [key for key in distinct if key not in self._known]
        found = self.file.get(unknown) if self.file else {}
        fresh = self._read([key for key in unknown if key not in found], batch_size, length, batch_tokens)
        if self.file:
            self.file.put(fresh)
        self._remember(distinct, found | fresh)
        return torch.tensor([self._known[key] for key in keys]).view(len(keys), len(self.dimensions))

    @torch.inference_mode()
    def _read(self, keys: list[Key], batch_size: int | None, length: int, batch_tokens: int) -> dict[Key, Scored]:
        if not keys:
            return {}
        prompts, responses, _ = zip(*keys, strict=True)
        device = self.network.encoder.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.network.read(prompts, responses, batch_size, length, batch_tokens)
        return dict(zip(keys, map(tuple, self.network.scores(logits).tolist()), strict=True))

    def _remember(self, used: Collection[Key], new: dict[Key, Scored]) -> None:
        self._known.update(new)
        for key in used:
            self._known.move_to_end(key)
        while len(self._known) > max(self.cache_size, len(used)):
            self._known.popitem(last=False)


_shared: WeakValueDictionary[tuple[Path, int, str, bool | None], RewardScorer] = WeakValueDictionary()


def shared_scorer(
    folder: Path,
    device: torch.device,
    cache_size: int = CACHE_SIZE,
    cache_dir: str | None = None,
    bf16: bool | None = None,
) -> RewardScorer:
    """Return the scorer of this folder, device and precision; it is loaded once, and freed with its last user.

    Its users share one cache: the largest ``cache_size`` and the first ``cache_dir`` hold for all.

    Raises:
        UserError: ``cache_dir`` cannot be made.
    """
    folder = folder.resolve()
    key = (folder, (folder / MANIFEST).stat().st_mtime_ns, str(device), bf16)
    scorer = _shared.get(key)
    if scorer is None:
        scorer = _shared[key] = RewardScorer.load(folder, device, cache_size, cache_dir, bf16)
    elif cache_dir is not None and scorer.file is None:
        scorer.file = _score_file(Path(cache_dir), folder, device, bf16)
    scorer.cache_size = max(scorer.cache_size, cache_size)
    return scorer


def _score_file(cache_dir: Path, folder: Path, device: torch.device, bf16: bool | None) -> ScoreFile:
    files = (file for file in folder.iterdir() if file.is_file() and file.name != TEST)
    how = (version("lit-debias-deberta"), device.type, "auto" if bf16 is None else "bf16" if bf16 else "fp32")
    return ScoreFile(cache_dir.expanduser(), fingerprint(files, *how))
