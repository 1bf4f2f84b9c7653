"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

The vocabulary is read slice by slice with a running softmax (Milakov and Gimelshein, arXiv 1805.02867), so the logits
of a slice are used while they are in the cache, and each is computed and exponentiated once. A log-probability is one
number per row; its gradient with respect to the hidden state is one row of H numbers, which the same pass sums up: the
target's row of the head minus the mean row. The backward pass is then a multiplication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_debias.types import Support


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
    columns: int | None = None,
    entropy: bool = False,
    entropy_grad: bool = False,
    support: Support | None = None,
) -> TokenLogprobs:
    """Return ``log_softmax((hidden @ weight.T + bias) / temperature)[targets]``, differentiable in ``hidden``.

    Products are taken in the dtype of ``weight``, the softmax in float32.

    Args:
        hidden: [N, H] last hidden states, each at the position that predicts its target.
        weight: [V, H] frozen output embedding.
        targets: [N] int64 token ids.
        temperature: Positive divisor of the logits.
        bias: [V] frozen bias of the output layer.
        columns: Entries of the vocabulary whose logits are held at a time, for at most 1,024 rows. None takes as many
            as make a million logits on a CPU, which stay in its cache, and 16 million elsewhere.
        entropy: Whether to compute the entropy too.
        entropy_grad: Whether the entropy is differentiable; costs a second pass over the vocabulary. Implies
            ``entropy``.
        support: [N] the tokens that the softmax is over, each target among them; None for the whole vocabulary. The
            log-probs, the entropy and both gradients are those of the renormalised distribution.

    Raises:
        ValueError: ``weight`` or ``bias`` wants a gradient, which this function does not give.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("selected_logprobs needs a frozen output layer; freeze the head or keep LoRA off it")
    with torch.autocast(hidden.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _SelectedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden, weight, targets, temperature, bias, columns, entropy or entropy_grad, entropy_grad, support
        )
    return TokenLogprobs(*result)


@torch.no_grad()
def logprobs_at(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperatures: Sequence[float],
    bias: Tensor | None = None,
    columns: int | None = None,
    supports: Sequence[Support | None] | None = None,
) -> Tensor:
    """Return [K, N] float32 log-probabilities at K temperatures from one set of logits, without gradient.

    The arguments are those of :func:`selected_logprobs`, with a support or None for each of the temperatures.
    """
    result = _empty(weight, (len(temperatures), len(hidden)))
    asked = list(zip(temperatures, supports or [None] * len(temperatures), strict=True))
    distributions = {(temperature, id(support)): support for temperature, support in asked}
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _blocks(len(hidden)):
            within = {key: _entries(support, rows) for key, support in distributions.items()}
            at = {key: RunningSoftmax(targets[rows], weight, key[0]) for key in distributions}
            for part in _slices(hidden[rows], weight, bias, columns):
                for key, softmax in at.items():
                    softmax.add(_restricted(part, within[key]))
            for row, (temperature, support) in zip(result, asked, strict=True):
                row[rows] = at[temperature, id(support)].logprobs()
    return result


def logits_logprobs(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy_grad: bool = False,
    support: Support | None = None,
) -> TokenLogprobs:
    """Return log-probabilities and entropies of N tokens from all of their logits [N, V], by autograd alone.

    For models whose logits are no plain product; takes the memory that :func:`selected_logprobs` saves. The arguments
    are those of that function.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if support is not None:
        inside = torch.zeros_like(logits, dtype=torch.bool).index_put(
            support.entries(), logits.new_ones((), dtype=torch.bool)
        )
        logits = logits.masked_fill(~inside, OUTSIDE)
    logprobs = (logits / temperature).log_softmax(-1)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return TokenLogprobs(logprobs.gather(-1, targets[:, None])[:, 0], entropy)


class Slice(NamedTuple):
    """Some entries of the vocabulary, C of them from ``start`` on."""

    start: int
    weight: Tensor
    """[C, H]."""
    logits: Tensor
    """[N, C] float32 (float64 for float64 weights), not divided by the temperature."""


class RunningSoftmax:
    """The softmax of N rows over the slices so far.

    Args:
        targets: [N] int64 token ids.
        weight: [V, H] output embedding, for its type and device.
        temperature: Divides the logits.
    """

    def __init__(self, targets: Tensor, weight: Tensor, temperature: float) -> None:
        self.targets, self.temperature = targets[:, None], temperature
        self.largest = _empty(weight, (len(targets), 1)).fill_(-torch.inf)
        self.total = torch.zeros_like(self.largest)
        self.chosen = torch.zeros_like(self.largest)  # logits of the targets

    def add(self, part: Slice) -> tuple[Tensor, Tensor]:
        """Return the slice's weights [N, C] relative to the largest so far, and what [N, 1] earlier sums shrink by."""
        largest = torch.maximum(self.largest, part.logits.amax(1, keepdim=True))
        shrink, weights = self._exp(self.largest - largest), self._exp(part.logits - largest)
        self.total = self.total * shrink + weights.sum(1, keepdim=True)
        self.largest = largest
        place, inside = self.places(part)
        self.chosen = torch.where(inside, part.logits.gather(1, place), self.chosen)
        return weights, shrink

    def places(self, part: Slice) -> tuple[Tensor, Tensor]:
        """Return the columns [N, 1] of the targets in a slice, and whether [N, 1] they are in it at all."""
        place, last = self.targets - part.start, part.logits.shape[1] - 1
        return place.clamp(0, last), (place >= 0) & (place <= last)

    def logsumexp(self) -> Tensor:
        """Return [N, 1]."""
        return self.largest / self.temperature + self.total.log()

    def logprobs(self) -> Tensor:
        """Return [N] log-probabilities of the targets."""
        return ((self.chosen - self.largest) / self.temperature - self.total.log())[:, 0]

    def _exp(self, differences: Tensor) -> Tensor:
        return (differences if self.temperature == 1 else differences.div_(self.temperature)).exp_()


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        bias: Tensor | None,
        columns: int | None,
        entropy: bool,
        entropy_grad: bool,
        support: Support | None,
    ) -> tuple[Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0]
        logprobs = _empty(weight, (len(hidden),))
        entropies = torch.zeros_like(logprobs)
        gradient = torch.empty_like(hidden) if needs_grad else None
        entropy_gradient = torch.empty_like(hidden) if needs_grad and entropy_grad else None
        for rows in _blocks(len(hidden)):
            softmax = RunningSoftmax(targets[rows], weight, temperature)
            mean_logit = mean_row = torch.zeros_like(softmax.total)
            within = _entries(support, rows)
            for part in _slices(hidden[rows], weight, bias, columns, within):
                weights, shrink = softmax.add(part)
                if entropy:
                    mean_logit = mean_logit * shrink + torch.linalg.vecdot(weights, part.logits)[:, None]
                if needs_grad:  # without the target, whose own 1 - p would be lost in the rounding of p
                    place, inside = softmax.places(part)
                    weights.scatter_(1, place, weights.gather(1, place).masked_fill(inside, 0))
                    mean_row = mean_row * shrink + weights.to(weight.dtype) @ part.weight
            logprobs[rows] = softmax.logprobs()
            if entropy:
                entropies[rows] = (softmax.logsumexp() - mean_logit / softmax.total / temperature)[:, 0]
            if gradient is not None:  # dlogp/dlogit = onehot - p
                others = mean_row / softmax.total
                gradient[rows] = (weight[targets[rows]] * -logprobs[rows, None].expm1() - others) / temperature
            if entropy_gradient is not None:
                again = _slices(hidden[rows], weight, bias, columns, within)
                entropy_gradient[rows] = _entropy_slope(again, softmax, entropies[rows, None])
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
        return (total, *[None] * 8)


def _entropy_slope(slices: Iterator[Slice], softmax: RunningSoftmax, entropy: Tensor) -> Tensor:
    """Return dH/dhidden [N, H] of entropies H [N, 1], from dH/dlogit = -p (log p + H)."""
    slope = torch.zeros_like(entropy)
    for part in slices:
        logp = part.logits / softmax.temperature - softmax.logsumexp()
        slope = slope - (logp.exp() * (logp + entropy)).to(part.weight.dtype) @ part.weight
    return slope / softmax.temperature


ROWS = 1024
CPU_LOGITS, GPU_LOGITS = 2**20, 2**24


def _blocks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, ROWS):
        yield slice(start, start + ROWS)


def _slices(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: int | None, within: Entries | None = None
) -> Iterator[Slice]:
    """Yield the vocabulary's slices for the rows of hidden [N, H]."""
    hidden = hidden.to(weight.dtype)
    held = CPU_LOGITS if hidden.device.type == "cpu" else GPU_LOGITS
    columns = columns or max(64, held // len(hidden) // 64 * 64)
    for start in range(0, len(weight), columns):
        part = weight[start : start + columns]
        logits = hidden @ part.T
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        whole = Slice(start, part, logits if bias is None else logits + bias[start : start + columns])
        yield _restricted(whole, within)


Entries = tuple[Tensor, Tensor]
"""Rows and token ids of a support, see :meth:`Support.entries`."""
OUTSIDE = -1e25
"""Logit of a token outside of a support. Its exponential is 0 beside that of any token inside; infinity would make the
first slices of a row NaN, where nothing of its support has come yet."""


def _entries(support: Support | None, rows: slice) -> Entries | None:
    return None if support is None else support[rows].entries()


def _restricted(part: Slice, within: Entries | None) -> Slice:
    """Return the slice with the logits of everything outside of a support at :data:`OUTSIDE`."""
    if within is None:
        return part
    rows, columns = within[0], within[1] - part.start
    here = (columns >= 0) & (columns < part.logits.shape[1])
    kept = torch.zeros_like(part.logits, dtype=torch.bool)
    kept[rows[here], columns[here]] = True
    return part._replace(logits=part.logits.masked_fill(~kept, OUTSIDE))


def _empty(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
