"""What a base model and an adapter must be for the policy's log-probs to be right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lit_debias.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def read_adapter_config(folder: str, dropout: float) -> LoraConfig:
    """Return the configuration of a plain LoRA adapter, with another dropout.

    Raises:
        UserError: the adapter is of another kind, which the inference copy cannot sum; or reading it could run code:
            its weights are a pickle, or it names a module for PEFT to import (``megatron_core``).
    """
    from peft import LoraConfig, PeftConfig
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig):
        kind = type(config).__name__.removesuffix("Config")
        raise UserError(f"adapter '{folder}' is of the kind {kind}; name a plain LoRA adapter")
    for option in ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "megatron_config"):
        if getattr(config, option, None):
            raise UserError(f"adapter '{folder}' uses {option}; name a plain LoRA adapter")
    if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():  # PEFT would take a pickle instead
        raise UserError(
            f"adapter '{folder}': no {SAFETENSORS_WEIGHTS_NAME} there, and other files are not read, as they could run "
            "code; save it with save_pretrained of a current PEFT, where you trust it"
        )
    config.lora_dropout = dropout
    return config


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


def check_adapters(lm: PeftModel) -> None:
    """Raise :class:`UserError` where an adapter sits on the output layer, or on no linear layer."""
    from peft.tuners.lora import LoraLayer

    head = lm.get_base_model().get_output_embeddings()
    for name, layer in lm.named_modules():
        if isinstance(layer, LoraLayer) and (layer is head or not isinstance(layer.base_layer, nn.Linear)):
            raise UserError(f"policy: there is an adapter on '{name}'; targets must be linear layers of the decoder")
