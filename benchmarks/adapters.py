"""LoRA adapters that are the same in two programs, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STD = 0.05


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the LoRA weights of a PEFT model by name, in order of their names."""
    return {name: weight for name, weight in sorted(model.named_parameters()) if "lora_" in name}


def set_adapters(model: nn.Module, drift: float = 0.0) -> None:
    """Give either side the same adapters, A and B away from 0; ``drift`` is how far they have been trained since."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapters(model).values():
            start, way = torch.randn(2, *weight.shape, generator=generator)
            weight.copy_(STD * start + drift * way)


def flat_gradient(model: nn.Module) -> Tensor:
    """Return the gradients of the adapters as one fp32 vector, in order of their names."""
    return torch.cat([weight.grad.flatten().float() for weight in adapters(model).values() if weight.grad is not None])
