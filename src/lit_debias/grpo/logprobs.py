"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

Each log-probability is one number per row, so its gradient with respect to the hidden state is one row
of H numbers that the forward pass can compute while the logits of its chunk are at hand. The backward
pass is then a multiplication: no [N, V] tensor is kept, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokenLogprobs(NamedTuple):
    """What :func:`selected_logprobs` found for N tokens."""

    logprobs: Tensor
    """[N] float32 (float64 for float64 weights)."""
    entropy: Tensor
    """[N] entropy in nats of the distribution that the token came from; zeros where it was not asked for."""


def selected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk: int | None = None,
    entropy: bool = False,
    entropy_grad: bool = False,
) -> TokenLogprobs:
    """Return ``log_softmax((hidden @ weight.T + bias) / temperature)[targets]``, differentiable in ``hidden``.

    Products are taken in the dtype of ``weight``, the softmax in float32.

    Args:
        hidden: [N, H] last hidden states, each at the position that predicts its target.
        weight: [V, H] frozen output embedding.
        targets: [N] int64 token ids.
        temperature: Positive divisor of the logits.
        bias: [V] frozen bias of the output layer.
        chunk: Rows whose logits are held at a time: a few tensors of [chunk, V] in float32. None is 128 on a CPU, where
            more leave its cache, and 256 elsewhere.
        entropy: Whether to compute the entropy too.
        entropy_grad: Whether the entropy is differentiable; costs a second [N, H] tensor. Implies ``entropy``.

    Raises:
        ValueError: ``weight`` or ``bias`` wants a gradient, which this function does not give.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("selected_logprobs needs a frozen output layer; freeze the head or keep LoRA off it")
    with torch.autocast(hidden.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _SelectedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden, weight, targets, temperature, bias, chunk, entropy or entropy_grad, entropy_grad
        )
    return TokenLogprobs(*result)


@torch.no_grad()
def logprobs_at(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperatures: Sequence[float],
    bias: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return [K, N] float32 log-probabilities at K temperatures from one set of logits, without gradient.

    The arguments are those of :func:`selected_logprobs`.
    """
    columns = []
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, logits in _logits(hidden, weight, bias, chunk):
            chosen = logits.gather(1, targets[rows, None]).squeeze(1)
            at = {t: chosen / t - torch.logsumexp(logits if t == 1 else logits / t, 1) for t in set(temperatures)}
            columns.append(torch.stack([at[t] for t in temperatures]))
    return torch.cat(columns, 1) if columns else _empty(weight, (len(temperatures), 0))


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        bias: Tensor | None,
        chunk: int | None,
        entropy: bool,
        entropy_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0]
        logprobs = _empty(weight, (len(hidden),))
        entropies = torch.zeros_like(logprobs)
        gradient = torch.empty_like(hidden) if needs_grad else None
        entropy_gradient = torch.empty_like(hidden) if needs_grad and entropy_grad else None
        for rows, logits in _logits(hidden, weight, bias, chunk):
            target = targets[rows, None]
            logp = (logits if temperature == 1 else logits.div_(temperature)).log_softmax(1)
            logprobs[rows] = logp.gather(1, target).squeeze(1)
            if gradient is None and not entropy:
                continue
            probabilities = torch.exp(logp, out=logits)
            if entropy:
                entropies[rows] = -torch.bmm(probabilities[:, None], logp[..., None]).flatten()  # no product is written
            if entropy_gradient is not None:  # dH/dlogit = -p (log p + H)
                slope = logp.add_(entropies[rows, None]).mul_(probabilities)
                entropy_gradient[rows] = (slope.to(weight.dtype) @ weight) / -temperature
            if gradient is not None:  # dlogp/dlogit = onehot - p, rounded only after the subtraction
                slope = probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
                gradient[rows] = (slope.to(weight.dtype) @ weight) / -temperature
        ctx.save_for_backward(gradient, entropy_gradient)
        if entropy_gradient is None:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient, entropy_gradient = ctx.saved_tensors
        total = gradient * grads[0][:, None].to(gradient.dtype)
        if entropy_gradient is not None:
            total += entropy_gradient * grads[1][:, None].to(gradient.dtype)
        return (total, *[None] * 7)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows with their logits, [chunk, V] in float32 (float64 for float64 weights)."""
    chunk = chunk or (128 if hidden.device.type == "cpu" else 256)
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        logits = _wide(hidden[rows].to(weight.dtype) @ weight.T)
        yield rows, logits if bias is None else logits + bias


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _empty(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
