"""Which adapters of PEFT are plain LoRA: read by name, so that an option of a PEFT to come is never trusted."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_debias.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHTS = "adapter_model.safetensors"
PLAIN = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("qalora_group_size", "megatron_core"),  # mean nothing without use_qalora and megatron_config
}
"""Options with which an adapter is still ``base + scale * B @ A`` of linear layers, whatever their values."""
UNCHANGED_BASE = {"true", "false", "gaussian", "eva", "orthogonal"}
"""Initialisations of the adapter that leave the base as it is; what they drew is in the file."""
OF_OTHERS = {"lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"}
"""Options of trainers, written beside PEFT's: type and learning rates while training."""


def read_adapter_config(folder: str, dropout: float) -> LoraConfig:
    """Return the configuration of a plain LoRA adapter, with another dropout.

    Raises:
        UserError: it cannot be read; the adapter is of another kind, which cannot be summed into one weight or moves
            the base; or reading it could run code: its weights are a pickle, or it names a module for PEFT to import
            (``megatron_core``).
    """
    from peft import LoraConfig, PeftConfig

    try:
        with warnings.catch_warnings():  # PEFT warns of options that it does not know; they are an error of ours
            warnings.filterwarnings("ignore", message="Unexpected keyword arguments")
            config = PeftConfig.from_pretrained(folder)
        written = json.loads((Path(folder) / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"adapter '{folder}': its adapter_config.json is not readable ({reason:.200}); write the folder of a PEFT "
            "adapter"
        ) from error
    if not isinstance(config, LoraConfig):
        kind = type(config).__name__.removesuffix("Config")
        raise UserError(f"adapter '{folder}' is of the kind {kind}; name a plain LoRA adapter")
    _check_initialisation(config, folder)
    for option, value in _unknown_options(config, written):
        raise UserError(f"adapter '{folder}' uses {option} ({value!r:.60}); name a plain LoRA adapter")
    if not (Path(folder) / WEIGHTS).is_file():  # PEFT would take a pickle instead
        raise UserError(
            f"adapter '{folder}': no {WEIGHTS} there, and other files are not read, as they could run "
            "code; save it with save_pretrained of a current PEFT, where you trust it"
        )
    config.lora_dropout = dropout
    config.init_lora_weights, config.eva_config = True, None  # the file's weights take the place of what is drawn
    return config


def _check_initialisation(config: LoraConfig, folder: str) -> None:
    """Raise :class:`UserError` for PiSSA and its like, which take a part out of the base when the adapter is made.

    PEFT does that again when it loads the adapter, so that the base without it would be another model.
    """
    kind = str(config.init_lora_weights).lower()
    if kind not in UNCHANGED_BASE:
        raise UserError(
            f"adapter '{folder}' uses init_lora_weights ('{kind}'), which moves the base, or freezes a part of the "
            "adapter; name a plain LoRA adapter: PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) "
            "converts those of PiSSA, OLoRA, CorDA and LoRA-GA"
        )


def _unknown_options(config: LoraConfig, written: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return options that are set and not known to be plain LoRA; those that PEFT does not know have no default."""
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    unset = type(config)()
    odd = [
        (name, value)
        for name, value in known.items()
        if name not in PLAIN | {"init_lora_weights", "eva_config", "task_type"}
        and value
        and value != getattr(unset, name)
    ]
    if str(getattr(config.task_type, "value", config.task_type)) not in ("None", "CAUSAL_LM"):
        odd.append(("task_type", config.task_type))
    return odd + [(name, value) for name, value in written.items() if name not in {*known, *OF_OTHERS} and value]
