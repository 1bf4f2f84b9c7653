"""LoRA adapters on a base model: a new one, or one to continue, with a frozen copy of it as the reference."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from lit_debias.errors import UserError
from lit_debias.models.adapter_config import read_adapter_config
from lit_debias.models.checks import check_weights, fitting, warn_of_another_base
from lit_debias.models.targets import called_layers, choose_targets, is_linear, kind_of

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

TRAINED, REFERENCE = "default", "reference"  # PEFT's names of the two adapters


def new_adapter(base: PreTrainedModel, source: str, config: LoraConfig) -> PeftModel:
    """Put a fresh adapter on the model ``source``.

    Raises:
        UserError: the configuration's ``target_modules`` match no linear layer, or not linear layers alone; or one of
            them is never called, so that its adapter would do nothing.
    """
    from peft import get_peft_model

    called = called_layers(base, source)
    choose_targets(base, source, config, called)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets what the layer needs
            lm: PeftModel = get_peft_model(base, config, adapter_name=TRAINED)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"policy: PEFT cannot put adapters on the targets in '{source}' ({reason:.300}); write linear layers of "
            f"its decoder, such as {_examples(called)}"
        ) from error
    _check_layers(lm, called, "policy")
    return lm


def continued_adapter(base: PreTrainedModel, source: str, config: LoraConfig, folder: str, copy: bool) -> PeftModel:
    """Put the adapter of a folder on the model ``source``, to train it on.

    Args:
        base: The model.
        source: Its name, for errors.
        config: The adapter's, by :func:`read_adapter_config`.
        folder: Of the PEFT adapter.
        copy: Whether to keep a frozen copy beside it.

    Raises:
        UserError: it does not fit the model, or sits on something else than linear layers that are called.
    """
    from peft import PeftModel

    called = called_layers(base, source)
    warn_of_another_base(config, folder, base)
    with fitting(folder, config, source), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        lm = PeftModel.from_pretrained(base, folder, adapter_name=TRAINED, is_trainable=True, config=config)
        _check_layers(lm, called, f"adapter '{folder}'")
        check_weights(lm, folder, source)
        if copy:
            lm.add_adapter(REFERENCE, read_adapter_config(folder, dropout=0.0))
            lm.load_adapter(folder, adapter_name=REFERENCE)
            lm.set_adapter(TRAINED)
    return lm


def _check_layers(lm: PeftModel, called: set[str], where: str) -> None:
    """Raise :class:`UserError` unless every adapter is plain LoRA in fp32 on a linear layer of the decoder."""
    from peft.tuners.lora import LoraLayer

    base = lm.get_base_model()
    head = base.get_output_embeddings()
    for name, layer in base.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if layer is head or not is_linear(layer.base_layer):
            raise UserError(
                f"{where}: there is an adapter on '{name}' ({type(layer.base_layer).__name__}); targets must be linear "
                "layers of the decoder"
            )
        if layer.lora_variant or any(layer.lora_bias.values()):
            raise UserError(f"{where}: the adapter on '{name}' is more than plain LoRA; name a plain LoRA adapter")
        if kind_of(name) not in called:
            raise UserError(
                f"{where}: no text calls the layer '{name}' (it is for images or sound, or a kernel reads its weight), "
                "or no gradient comes to it, so that its adapter would learn nothing; targets must be linear layers of "
                f"the decoder, such as {_examples(called)}"
            )


def _examples(called: set[str]) -> list[str]:
    return sorted({kind.rpartition(".")[2] for kind in called} - {"lm_head"})
