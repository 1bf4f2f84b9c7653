"""Which device computes."""

from __future__ import annotations

import torch

from lit_debias.errors import UserError


def best_device() -> torch.device:
    """Return where a model computes unless somebody says otherwise: the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_in_this_thread(device: torch.device) -> None:
    """Make a CUDA device the current one: a thread begins on the first one, whatever its parent computes on."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def known_device(option: str, name: str) -> torch.device:
    """Return the device of that name.

    Args:
        option: Where the name was written, for the message.
        name: As PyTorch writes it: ``cpu``, ``cuda``, ``cuda:1``.

    Raises:
        UserError: PyTorch knows none, or the machine has none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{option} '{name}': there is no such device; write cpu, cuda or cuda:1") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"{option} '{name}': PyTorch sees {count} CUDA devices here; write cpu or one of them")
    return device
