"""Loads tokenizers and models.

Loading a model runs nothing that came with it: weights are read from safetensors (or GGUF) alone, since other formats
are pickles, and Python files in its folder or repository are left alone.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from lit_debias.errors import UserError
from lit_debias.models.gguf_file import NO_CODE
from lit_debias.models.sources import resolve
from lit_debias.support.text import counted

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase


NO_PICKLE: dict[str, Any] = {**NO_CODE, "use_safetensors": True}


@contextmanager
def loading(source: str) -> Iterator[None]:
    """Within the context, a model that is missing, damaged, unknown or unsafe is a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError, struct.error) as error:
        if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):  # nothing is wrong with the model
            raise
        raise UserError(f"model '{source}' {_why_not_loaded(error)}") from error


def _why_not_loaded(error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason:
        return "comes with Python code of its own, which is never run; write one whose architecture transformers has"
    if "safetensors" in reason and isinstance(error, (OSError, ValueError)):
        return (
            "has no weights in safetensors, and other files are not read, as they could run code; save it with "
            "save_pretrained of a current transformers, where you trust it"
        )
    if kind := re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", reason):
        return f"is of a kind ({kind[1]}) that is not read here; where it reads pictures, write class_path: VLMPolicy"
    if "ignore_mismatched_sizes" in reason:  # transformers' words for programmers
        reason = "its weights have other sizes than its config.json says"
    return f"cannot be loaded ({reason:.200}); without a network write a whole local folder, or pkg://PACKAGE/PATH"


def load_tokenizer(source: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads; the end-of-sequence token stands in for a missing pad token.

    Further arguments go to ``from_pretrained``.

    Raises:
        UserError: there is none, it cannot be reached, it needs code of its own, or it has neither a pad nor an
            end-of-sequence token.
    """
    from transformers import AutoTokenizer

    with loading(source):
        place = resolve(source)
        if _lacks_tokenizer(place):
            raise UserError(
                f"model '{source}' has no tokenizer, such as tokenizer.json; save it there too: "
                "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER), NAME being the model that it was made of"
            )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, **NO_CODE, **kwargs)
    return padded(tokenizer, source)


def padded(tokenizer: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer that pads; the end-of-sequence token stands in for a missing pad token.

    Raises:
        UserError: it has neither.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"model '{source}': its tokenizer has neither a pad nor an end-of-sequence token; name one in its "
                'tokenizer_config.json: "eos_token": "..."'
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


TOKENIZER_FILE = re.compile("token|vocab|merges|spiece|sentencepiece|spm|bpe|dict")
"""Names of the files that hold a tokenizer, of whichever kind."""


def _lacks_tokenizer(place: str) -> bool:
    """Return whether a local folder has no file of a tokenizer; transformers may make an empty one of nothing."""
    return os.path.isdir(place) and not any(map(TOKENIZER_FILE.search, os.listdir(place)))


def load_causal_lm(source: str, *, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """Load a causal language model in evaluation mode; further arguments go to ``from_pretrained``.

    Raises:
        UserError: there is none, it cannot be reached, or only by running code that comes with it; or its files lack
            weights, which transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM

    return _load_whole(AutoModelForCausalLM, source, dtype=dtype, **kwargs)


def load_seeing_lm(source: str, *, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """Load a language model that reads pictures; as :func:`load_causal_lm`."""
    from transformers import AutoModelForImageTextToText

    return _load_whole(AutoModelForImageTextToText, source, dtype=dtype, **kwargs)


def _load_whole(kind: Any, source: str, **kwargs: Any) -> PreTrainedModel:
    with loading(source):
        loaded: Any = kind.from_pretrained(resolve(source), output_loading_info=True, **NO_PICKLE, **kwargs)
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise UserError(
            f"model '{source}': its files lack {counted(len(missing), 'weight')}, such as {missing[0]}; write a whole "
            "causal language model, whose config.json goes with its weights"
        )
    return model


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return what loads 4-bit weights as QLoRA has them: NormalFloat, quantised twice, computing in ``dtype``."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def set_checkpointing(model: PreTrainedModel, on: bool) -> None:
    """Switch the recomputation of activations, under the name that this version of transformers has for it."""
    verb = "enable" if on else "disable"
    name = f"activation_checkpointing_{verb}"
    switch = getattr(model, name if hasattr(model, name) else f"gradient_checkpointing_{verb}")
    switch()


def recomputes(model: nn.Module) -> bool:
    """Return whether a model computes activations again in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())


def load_encoder(source: str, **kwargs: Any) -> PreTrainedModel:
    """Load a model without a head in fp32 and evaluation mode; otherwise as :func:`load_causal_lm`."""
    from transformers import AutoModel

    with loading(source):
        model: PreTrainedModel = AutoModel.from_pretrained(resolve(source), dtype=torch.float32, **NO_PICKLE, **kwargs)
    return model


def end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return every id that ends a completion: all of ``generation_config.eos_token_id``, and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    several = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*several, tokenizer.eos_token_id] if i is not None}))
