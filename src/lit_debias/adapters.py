"""LoRA adapters on a base model: a new one, or one to continue, with a frozen copy of it as the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_debias.errors import UserError
from lit_debias.model_checks import check_weights, fitting, read_adapter_config, warn_of_another_base

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

TRAINED, REFERENCE = "default", "reference"  # PEFT's names of the two adapters


def new_adapter(base: PreTrainedModel, source: str, config: LoraConfig) -> PeftModel:
    """Put a fresh adapter on the model ``source``.

    Raises:
        UserError: the configuration's ``target_modules`` match no linear layer.
    """
    from peft import get_peft_model

    try:
        return get_peft_model(base, config, adapter_name=TRAINED)
    except ValueError as error:
        raise UserError(f"policy: targets={config.target_modules!r} match no linear layer of '{source}'") from error


def continued_adapter(base: PreTrainedModel, source: str, config: LoraConfig, folder: str, copy: bool) -> PeftModel:
    """Put the adapter of a folder on the model ``source``, to train it on.

    Args:
        base: The model.
        source: Its name, for errors.
        config: The adapter's, by :func:`read_adapter_config`.
        folder: Of the PEFT adapter.
        copy: Whether to keep a frozen copy beside it.

    Raises:
        UserError: it does not fit the model.
    """
    from peft import PeftModel

    warn_of_another_base(config, folder, base)
    with fitting(folder, config, source):
        lm = PeftModel.from_pretrained(base, folder, adapter_name=TRAINED, is_trainable=True, config=config)
    check_weights(lm, folder, source)
    if copy:
        lm.add_adapter(REFERENCE, read_adapter_config(folder, dropout=0.0))
        lm.load_adapter(folder, adapter_name=REFERENCE)
        lm.set_adapter(TRAINED)
    return lm
