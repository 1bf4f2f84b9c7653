"""What a base model and an adapter must be for the policy's log-probs to be right."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lit_debias.errors import UserError
from lit_debias.models.adapter_config import WEIGHTS
from lit_debias.models.hub_names import hub_name
from lit_debias.models.layers import is_quantized
from lit_debias.support.text import counted

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


@contextmanager
def fitting(folder: str, config: LoraConfig, source: str) -> Iterator[None]:
    """Within the context, an adapter that cannot be put on the model ``source`` is a :class:`UserError`."""
    try:
        yield
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"adapter '{folder}'{_trained_on(config)} does not fit the model '{source}' "
            f"({reason:.160}); write the model that it was trained on, or another adapter"
        ) from error


def check_weights(lm: PeftModel, folder: str, source: str) -> None:
    """Raise :class:`UserError` unless the adapter's file holds the weights of every adapted layer, and no others.

    PEFT loads what is there: layers without weights would stay untrained, and weights without a layer be forgotten.
    """
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(lm, save_embedding_layers=False)  # otherwise it asks the hub about the base
    with safe_open(Path(folder) / WEIGHTS, "pt") as weights:
        odd = set(weights.keys()) ^ set(expected)
    if odd:
        config = lm.peft_config[lm.active_adapter]
        raise UserError(
            f"adapter '{folder}'{_trained_on(config)} does not fit the model '{source}' "
            f"({counted(len(odd), 'weight is', 'weights are')} on one side only, such as {min(odd)}); write the model "
            "that it was trained on, or another adapter"
        )


def _trained_on(config: LoraConfig) -> str:
    return f", trained on '{config.base_model_name_or_path}'," if config.base_model_name_or_path else ""


def warn_of_another_base(config: LoraConfig, folder: str, base: PreTrainedModel) -> None:
    """Log a warning where an adapter was trained on a model of another name; shapes do not tell fine-tunes apart."""
    trained_on, now = config.base_model_name_or_path, str(base.name_or_path)
    if trained_on and Path(trained_on).name != Path(now).name and trained_on != hub_name(now):
        _log.warning(
            "adapter '%s' was trained on '%s' and is put on '%s': figures are right only if both are one model",
            *(folder, trained_on, now),
        )


def settle_mode(model: nn.Module) -> None:
    """Put a model in evaluation mode for good, as far as that changes what it computes: it is the network that samples.

    Train mode draws dropout, experts and noise for routers. It stays on where it has another meaning: dropout of
    adapters; 4-bit layers, which bitsandbytes on CPUs repacks whenever the mode alternates; and layers that compute
    their activations again in the backward pass.
    """
    for name, module in model.named_modules():
        adapters = isinstance(module, nn.Dropout) and "lora_dropout" in name
        module.training = adapters or is_quantized(module) or getattr(module, "gradient_checkpointing", False) is True


def disable_dropout(model: nn.Module) -> None:
    """Switch a base model's dropout off, also where a layer that stays in train mode asks for it by its number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


FAILURES = (TypeError, ValueError, AttributeError, LookupError, RuntimeError, NotImplementedError, AssertionError)
"""What a forward pass raises that was asked for something it does not know."""


def reason_of(error: Exception) -> str:
    """Return one line of what a forward pass said, and let pass what has nothing to do with the model."""
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split()):.120}"


@contextmanager
def plain_pass(source: str) -> Iterator[None]:
    """Within the context, a model whose own forward pass fails on plain tokens is a :class:`UserError`."""
    try:
        yield
    except FAILURES as error:
        raise UserError(
            f"model '{source}': its forward pass fails on plain tokens ({reason_of(error)}); write another model"
        ) from error
