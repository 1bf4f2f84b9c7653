"""One token per row: inverse-CDF sampling with given uniform numbers, and the log-prob of what was taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Choice(NamedTuple):
    """One token for each of N rows; numbers that are not finite where the logits are not."""

    tokens: Tensor
    """[N] int64."""
    logprobs: Tensor
    """[N] float32, under the distribution that was sampled from."""
    kept: Tensor | None = None
    """[N, V] bool, the tokens that could be sampled; None for all."""


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from logits [N, V].

    Filters apply in the order of their fields, each to what the one before has left, as in Hugging Face. The log-probs
    are those of the filtered, renormalised distribution.
    """

    temperature: float = 1.0
    top_k: int = 0
    """Keep the k most probable tokens, and those that are as probable as the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most probable tokens that together reach this probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this probable, as a share of the probability of the most probable one; 0 keeps all."""
    greedy: bool = False

    def __call__(self, logits: Tensor, uniforms: Tensor) -> Choice:
        """Return tokens, their log-probs, and what they were chosen from.

        Args:
            logits: [N, V], any float type.
            uniforms: [N] in [0, 1), one for each row; not used when greedy.
        """
        scaled = logits.float() if self.temperature == 1 else logits.float() / self.temperature
        filtered = self.filtered(scaled)
        kept = None if filtered is scaled else filtered > -torch.inf
        largest = filtered.amax(-1, keepdim=True)
        weights = (filtered - largest).exp_()
        tokens = filtered.argmax(-1) if self.greedy else inverse_cdf(weights, uniforms)
        logprobs = (filtered.gather(-1, tokens[:, None]) - largest)[:, 0] - weights.sum(-1).log()
        return Choice(tokens, logprobs, kept)

    def filtered(self, logits: Tensor) -> Tensor:
        """Return logits [N, V] with everything outside of the filters at minus infinity; themselves without filters."""
        if 0 < self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.softmax(-1).sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # probability of everything more likely; 0 for the first, so it stays
            outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(outside, -torch.inf)
        if self.min_p > 0:
            shares = (logits - logits.amax(-1, keepdim=True)).exp()
            logits = logits.masked_fill(shares < self.min_p, -torch.inf)
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
    return (block * _BLOCK + within)[:, 0].clamp(max=weights.shape[-1] - 1)  # weights that are no numbers pass the end


_BLOCK = 256  # sums of blocks first: a cumulated sum takes several times as long as a sum


def _first_beyond(cumulated: Tensor, wanted: Tensor) -> Tensor:
    """Return the first index [N, 1] at which a cumulated sum [N, K] of weights exceeds a number [N]."""
    # Rounding can make the number equal the total, which no cumulated weight exceeds. Just below it, the search
    # ends at the last index that has any weight.
    total = cumulated[:, -1]
    below = torch.minimum(wanted, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulated, below[:, None], right=True).clamp(max=cumulated.shape[-1] - 1)
