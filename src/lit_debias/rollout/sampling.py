"""One token per row: inverse-CDF sampling with given uniform numbers, and the log-prob of what was taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from logits [N, V].

    With ``top_k`` or ``top_p`` the log-probs are those of the filtered, renormalised distribution.
    """

    temperature: float = 1.0
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most probable tokens that together reach this probability; 1 keeps all."""
    greedy: bool = False

    def __call__(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens [N] int64 and their log-probs [N] fp32.

        Args:
            logits: [N, V], any float type.
            uniforms: [N] in [0, 1), one for each row; not used when greedy.
        """
        scaled = logits.float() if self.temperature == 1 else logits.float() / self.temperature
        scaled = self.filtered(scaled)
        largest = scaled.amax(-1, keepdim=True)
        weights = (scaled - largest).exp_()
        tokens = scaled.argmax(-1) if self.greedy else inverse_cdf(weights, uniforms)
        return tokens, (scaled.gather(-1, tokens[:, None]) - largest)[:, 0] - weights.sum(-1).log()

    def filtered(self, logits: Tensor) -> Tensor:
        """Return logits [N, V] with everything outside top-k and top-p at minus infinity."""
        if self.top_k > 0:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.softmax(-1).sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # probability of everything more likely; 0 for the first, so it stays
            outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(outside, -torch.inf)
        return logits


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return for each row the first token whose cumulated share of the weights exceeds its uniform number.

    Args:
        weights: [N, V], not negative; proportional to the probabilities.
        uniforms: [N] in [0, 1).
    """
    blocks = pad(weights, (0, -weights.shape[-1] % _BLOCK)).reshape(len(weights), -1, _BLOCK)
    sums = blocks.sum(-1)
    cumulated = sums.cumsum(-1)
    wanted = uniforms * cumulated[:, -1]
    block = _first_beyond(cumulated, wanted)
    rest = wanted[:, None] - (cumulated - sums).gather(-1, block)
    within = _first_beyond(blocks.take_along_dim(block[..., None], 1)[:, 0].cumsum(-1), rest[:, 0].clamp(min=0))
    return (block * _BLOCK + within)[:, 0]


_BLOCK = 256  # sums of blocks first: a cumulated sum takes several times as long as a sum


def _first_beyond(cumulated: Tensor, wanted: Tensor) -> Tensor:
    """Return the first index [N, 1] at which a cumulated sum [N, K] of weights exceeds a number [N]."""
    # Rounding can make the number equal the total, which no cumulated weight exceeds. Just below it, the search
    # ends at the last index that has any weight.
    total = cumulated[:, -1]
    below = torch.minimum(wanted, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulated, below[:, None], right=True)
