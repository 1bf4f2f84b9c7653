"""What the heads see of a pair: prompt and response apart, and what each says that the other does not.

Shapes: N pairs of L tokens, H features. Sides [N, L] int64 say whose a token is: 0 the prompt's, 1 the response's,
-1 nobody's (padding and separators).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Pooling = Literal["parts", "mean"]
PARTS: dict[Pooling, int] = {"parts": 4, "mean": 1}
"""Pooling -> how many times H features it gives. ``mean`` over the whole pair is that of older reward models."""


def pool(states: Tensor, embeddings: Tensor, sides: Tensor, attention: Tensor, how: Pooling) -> Tensor:
    """Return the pooled features [N, H] (``mean``) or [N, 4H] (``parts``) of encoder states [N, L, H].

    ``parts`` are the means over the prompt and over the response, and the same again with each token weighted by its
    :func:`novelty`. The last two say what an answer leaves out and what it brings in: a small encoder trained for
    minutes does not learn by itself whether the two texts speak of the same people.

    Args:
        states: [N, L, H] of the encoder's last layer.
        embeddings: [N, L, E] of the tokens alone, before the encoder.
        sides: [N, L].
        attention: [N, L] 1 for tokens, 0 for padding.
        how: Which of both.
    """
    if how == "mean":
        return _mean(states, attention, attention)
    new = novelty(embeddings, sides)
    masks = [(sides == side).to(states) for side in (0, 1)]
    return torch.cat([_mean(states, mask * weight, mask) for weight in (1, new) for mask in masks], dim=-1)


def novelty(embeddings: Tensor, sides: Tensor) -> Tensor:
    """Return [N, L] in [0, 1]: 1 minus a token's highest cosine with a token of the other text; no gradient.

    A word that the other text has too is 0; one that is unlike all, or has no other text, is 1.
    """
    unit = F.normalize(embeddings.detach().float(), dim=-1)
    across = (sides[:, :, None] + sides[:, None, :] == 1) & (sides >= 0)[:, :, None] & (sides >= 0)[:, None, :]
    return 1 - (unit @ unit.transpose(1, 2) * across).amax(-1).clamp(0, 1)


def _mean(states: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Return the weighted sum over tokens, divided by how many the mask [N, L] has; 0 where it has none."""
    return (states * weights.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
