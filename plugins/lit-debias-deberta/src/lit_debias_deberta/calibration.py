"""Makes a score mean what the labels mean: a temperature and a bias on the logit (Platt 1999; Guo et al. 2017).

The map is strictly increasing, so no ranking changes. Isotonic regression, the usual alternative, makes plateaus, and
on a plateau the completions of a group are equal and teach a policy nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 200


@dataclass(frozen=True)
class Calibration:
    """score = sigmoid(logit / temperature + bias)."""

    temperature: float = 1.0
    """Above 0; more than 1 pulls scores together, less spreads them."""
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf and math.isfinite(self.bias)):
            raise ValueError(f"temperature={self.temperature}, bias={self.bias}: not finite, or not above 0")

    def __call__(self, logits: Tensor) -> Tensor:
        """Return scores in [0, 1] of logits of any shape."""
        return (logits / self.temperature + self.bias).sigmoid()


def fit_calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Return the calibration that minimises the cross-entropy of logits [N] with graded labels [N], NaN left out.

    A penalty worth one response, (log(temperature)^2 + bias^2) / 2, keeps the result finite where scores separate the
    labels, and leaves the logits as they are where there is nothing to learn from.
    """
    known = ~labels.isnan()
    with torch.inference_mode(False), torch.enable_grad():  # Lightning validates without gradients
        x, y = (values[known].detach().double().cpu().clone() for values in (logits, labels))
        parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of 1 / temperature, bias
        optimizer = torch.optim.LBFGS([parameters], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            fit = F.binary_cross_entropy_with_logits(x * parameters[0].exp() + parameters[1], y, reduction="sum")
            value = (fit + parameters.square().sum() / 2) / (len(y) + 1)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
    log_slope, bias = parameters.tolist()
    return Calibration(temperature=math.exp(-log_slope), bias=bias)
