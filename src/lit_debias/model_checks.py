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

from lit_debias.adapter_config import WEIGHTS
from lit_debias.errors import UserError

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
            f"adapter '{folder}', trained on '{config.base_model_name_or_path}', does not fit the model '{source}' "
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
        base = lm.peft_config[lm.active_adapter].base_model_name_or_path
        raise UserError(
            f"adapter '{folder}', trained on '{base}', does not fit the model '{source}' ({len(odd)} weights are on "
            f"one side only, such as {min(odd)}); write the model that it was trained on, or another adapter"
        )


def warn_of_another_base(config: LoraConfig, folder: str, base: PreTrainedModel) -> None:
    """Log a warning where an adapter was trained on a model of another name; shapes do not tell fine-tunes apart."""
    trained_on = config.base_model_name_or_path
    if trained_on and Path(trained_on).name != Path(str(base.name_or_path)).name:
        _log.warning(
            "adapter '%s' was trained on '%s' and is put on '%s': figures are right only if both are one model",
            *(folder, trained_on, base.name_or_path),
        )


def disable_dropout(model: nn.Module) -> None:
    """Switch a model's dropout off for good: train mode must be the network that samples."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@torch.no_grad()
def check_head(model: PreTrainedModel, source: str) -> None:
    """Raise :class:`UserError` unless logits are the last hidden states times the output layer, no cap or scale."""
    head, ids = model.get_output_embeddings(), torch.arange(4, device=model.device)[None]
    decoder = getattr(model, model.base_model_prefix)
    expected = head(decoder(input_ids=ids, use_cache=False).last_hidden_state)
    difference = (model(input_ids=ids, use_cache=False).logits - expected).abs().max()
    if difference > 0.01 * expected.abs().max():
        raise UserError(
            f"policy: model '{source}' changes its logits after the output layer (a soft cap or a scale), so their "
            "log-probs would be wrong; write a model without, such as Llama, Qwen or SmolLM"
        )
