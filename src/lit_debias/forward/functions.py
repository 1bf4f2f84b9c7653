"""Norms and gated activations of the lean forward pass, which keep little and need few kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, silu


class Norm(NamedTuple):
    """An RMS norm: values of unit size, rounded to the weight's type, times the weight."""

    weight: Tensor
    """[H], frozen."""
    epsilon: float


def rms_norm(values: Tensor, norm: Norm) -> Tensor:
    """Return the norm of values [..., H], like them, in one kernel where there is one."""
    weight, epsilon = norm
    if values.device.type == "cpu" and len(values) >= _MANY_ROWS and not torch.compiler.is_compiling():
        normed: Tensor = _RMSNorm.apply(values, weight, epsilon)  # type: ignore[no-untyped-call]
        return normed
    if weight.dtype != values.dtype:
        return nn.functional.rms_norm(values.to(weight.dtype), weight.shape, weight, epsilon).to(values.dtype)
    return nn.functional.rms_norm(values, weight.shape, weight, epsilon)


_MANY_ROWS = 64


class _RMSNorm(torch.autograd.Function):
    """RMS norm [..., H] with a frozen weight [H]; on a CPU twice as fast as torch's, which has no kernel there."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = squares.mul_(1 / values.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(values, weight, scale)
        normed: Tensor = (wide * scale).to(weight.dtype).mul_(weight)
        return normed.to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        values, weight, scale = ctx.saved_tensors
        wide, slope = (tensor.to(scale.dtype) for tensor in (values, grad * weight))
        along = (slope * wide).sum(-1, keepdim=True)
        slope.addcmul_(wide, along * scale.square() * (-1 / values.shape[-1])).mul_(scale)
        return slope.to(values.dtype), None, None


class Activation(NamedTuple):
    """A function of one number, and how a gradient passes through it."""

    value: Callable[[Tensor], Tensor]
    """Takes inputs and returns a tensor of its own."""
    backward: Callable[[Tensor, Tensor, Tensor], object]
    """Takes the gradient of values, the inputs, and where to put the gradient of inputs."""


SILU = Activation(silu, lambda grad, inputs, out: torch.ops.aten.silu_backward.grad_input(grad, inputs, grad_input=out))
GELU_TANH = Activation(
    lambda inputs: gelu(inputs, approximate="tanh"),
    lambda grad, inputs, out: torch.ops.aten.gelu_backward.grad_input(grad, inputs, approximate="tanh", grad_input=out),
)
ACTIVATIONS = {"SiLU": SILU, "SiLUActivation": SILU, "GELUTanh": GELU_TANH}  # PyTorch's and Hugging Face's, by class


def gated(gate_up: Tensor, activation: nn.Module) -> Tensor:
    """Return ``activation(gate) * up`` [N, I] of gate and up side by side [N, 2 I]."""
    if torch.is_grad_enabled() and (known := known_activation(activation)):
        product: Tensor = _Gated.apply(gate_up, known)  # type: ignore[no-untyped-call]
        return product
    gate, up = gate_up.chunk(2, -1)
    return activation(gate) * up  # type: ignore[no-any-return]


def known_activation(activation: nn.Module) -> Activation | None:
    """Return what an activation computes, or None where it is no common one."""
    return ACTIVATIONS.get(type(activation).__name__)


class _Gated(torch.autograd.Function):
    """activation(gate) * up, which keeps neither factor and puts both gradients where they belong without a copy."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        gate, up = gate_up.chunk(2, -1)
        return activation.value(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        both = torch.empty_like(gate_up)
        of_gate, of_up = both.chunk(2, -1)
        torch.mul(grad, ctx.activation.value(gate), out=of_up)
        ctx.activation.backward(grad * up, gate, of_gate)
        return both, None
