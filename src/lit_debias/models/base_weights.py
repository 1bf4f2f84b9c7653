"""Loads the policy's frozen base so that each weight is what it seems: numbers, or 4-bit codes that can be read.

The policy reads weights directly: it merges adapters into them, and multiplies by them without calling their layers.
What holds codes in another format would be read as numbers. So only plain weights and bitsandbytes' 4 bits are let in;
formats that transformers turns into plain weights exactly are turned so; all others are refused, by ``config.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from lit_debias.errors import UserError
from lit_debias.models.gguf_file import NO_CODE
from lit_debias.models.layers import base_weight, is_quantized
from lit_debias.models.loading import load_causal_lm, loading, nf4_config
from lit_debias.models.sources import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOUR_BIT = "bitsandbytes 4-bit"
EXACT = {"fp8", "mxfp4"}
"""Formats that transformers turns into plain weights at load: each value is a code times a scale."""
WEIGHT_TYPES = {"F64", "F32", "F16", "BF16"}
_log = logging.getLogger(__name__)


def load_base(
    source: str,
    quantization: str,
    dtype: torch.dtype,
    device: torch.device | str,
    load: Callable[..., PreTrainedModel] = load_causal_lm,
) -> PreTrainedModel:
    """Load the policy's base, frozen weights in ``dtype``, or in 4 bits computing in ``dtype``.

    Args:
        source: The model.
        quantization: ``nf4`` or ``none``, for weights that are stored as plain numbers; 4-bit weights stay as they are.
        dtype: Of plain weights, and of what 4-bit weights stand for.
        device: Where to load it.
        load: Loads it, see :func:`load_causal_lm`.

    Raises:
        UserError: its weights are stored in a format that the policy cannot read; or it cannot be loaded.
    """
    config = _config(source)
    stored = _stored_quantization(config)
    options: dict[str, Any] = {}
    if stored:
        options["config"] = config
        _prepare(stored, source, quantization, dtype)
    elif quantization == "nf4":
        options["quantization_config"] = nf4_config(dtype)
    model = load(source, dtype=dtype, device_map={"": device}, **options)
    if stored:
        _compute_in(model, dtype)
    else:
        _check_files(source)
    _check_weights(model, source)
    return model


def check_codes(source: str) -> None:
    """Raise :class:`UserError` where transformers itself would read codes as numbers, with a warning at most.

    It does so where ``config.json`` names a format that it does not know, or does not speak of one at all.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    stored = _stored_quantization(_config(source))
    if stored is None:
        _check_files(source)
    elif not _format(stored).startswith("bitsandbytes") and _format(stored) not in AUTO_QUANTIZER_MAPPING:
        raise UserError(
            f"model '{source}' is stored quantised ({_format(stored)}), which transformers does not know; write the "
            "model that it was made from"
        )


def _config(source: str) -> Any:
    from transformers import AutoConfig

    with loading(source):
        return AutoConfig.from_pretrained(resolve(source), **NO_CODE)


def _stored_quantization(config: Any) -> dict[str, Any] | None:
    """Return how ``config.json`` says that weights are stored, as transformers finds it, or None where plain."""
    for holder in (config, config.get_text_config(decoder=True)):
        for name in ("quantization_config", "compression_config"):
            found = getattr(holder, name, None)
            if found:
                stored: dict[str, Any] = found
                return stored
    return None


def _format(stored: dict[str, Any]) -> str:
    if stored.get("load_in_4bit"):
        return FOUR_BIT
    if stored.get("load_in_8bit"):
        return "bitsandbytes 8-bit"
    return str(stored.get("quant_method", "unknown"))


def _prepare(stored: dict[str, Any], source: str, quantization: str, dtype: torch.dtype) -> None:
    """Change how stored weights are loaded, in the configuration itself, or refuse them."""
    kind = _format(stored)
    if kind == FOUR_BIT:
        stored["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
        if quantization == "none":
            _log.info("Model '%s' is stored in 4 bits and stays so; quantization: none adds no other.", source)
    elif kind not in EXACT:
        raise UserError(
            f"policy: model '{source}' is stored quantised ({kind}), which would be read as plain numbers; write the "
            "model that it was made from, with quantization: nf4 for 4 bits"
        )
    elif quantization != "none":
        raise UserError(
            f"policy: model '{source}' is stored quantised ({kind}) and cannot be quantised again; write "
            f"quantization: none, which loads it as {str(dtype).removeprefix('torch.')}, or an unquantised model"
        )
    else:
        stored["dequantize"] = True
        _log.info("Model '%s' is stored in %s and is loaded as plain weights.", source, kind)


def _compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let 4-bit weights compute in ``dtype``, and have the others in it: the loader leaves them as they were saved."""
    kept = model._keep_in_fp32_modules_strict or ()
    for name, module in model.named_modules():
        if is_quantized(module):
            module.compute_dtype = dtype
            module.weight.quant_state.dtype = dtype
        if any(part in kept for part in name.split(".")):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
                parameter.data = parameter.data.to(dtype)
    head = model.get_output_embeddings()
    if is_quantized(head):  # log-probs read its weight in slices
        model.set_output_embeddings(_plain_linear(head, dtype))


def _plain_linear(layer: Any, dtype: torch.dtype) -> nn.Linear:
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(base_weight(layer).to(dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain


def _check_weights(model: PreTrainedModel, source: str) -> None:
    """Raise :class:`UserError` where a parameter holds anything but floats of 16 bits or more, or readable 4 bits."""
    for name, parameter in model.named_parameters():
        readable = getattr(parameter, "quant_state", None) is not None
        if not readable and not (parameter.is_floating_point() and parameter.element_size() > 1):
            raise UserError(
                f"policy: model '{source}': '{name}' holds codes ({parameter.dtype}), which would be read as plain "
                "numbers; write an unquantised model, with quantization: nf4 for 4 bits"
            )


def _check_files(source: str) -> None:
    """Raise :class:`UserError` where files hold codes that ``config.json`` does not speak of.

    The loader turns them into floats without their scales. Masks and positions, which old checkpoints hold too, are
    no weights.
    """
    for file in _weight_files(source):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # not a dictionary
                kind = weights.get_slice(name).get_dtype()
                if name.endswith("weight") and kind not in WEIGHT_TYPES:
                    raise UserError(
                        f"model '{source}': '{name}' is stored as {kind}, and its config.json does not say "
                        "what that stands for; write an unquantised model, with quantization: nf4 for 4 bits"
                    )


def _weight_files(source: str) -> Iterator[Path]:
    """Yield the model's safetensors, of a folder or of what is cached of a hub id."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        found = cached_file(resolve(source), name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        if found:
            yield from sorted(Path(found).parent.glob("*.safetensors"))
            return
