"""Where models come from: a local folder, a hub id, or a file inside an installed Python package.

``pkg://PACKAGE/PATH`` names a file or folder inside an installed package. A GGUF file is converted once
to safetensors in the cache (``LIT_DEBIAS_CACHE``, by default ``~/.cache/lit-debias``).

Loading a model runs nothing that came with it: weights are read from safetensors (or GGUF) alone, since other formats
are pickles, and Python files in its folder or repository are left alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lit_debias.errors import UserError
from lit_debias.gguf_file import CONVERTER, NO_CODE, convert

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGE_SCHEME = "pkg://"
NO_PICKLE: dict[str, Any] = {**NO_CODE, "use_safetensors": True}


def cache_dir() -> Path:
    """Return the folder that holds converted models."""
    return Path(os.environ.get("LIT_DEBIAS_CACHE", Path.home() / ".cache" / "lit-debias"))


def check_model(source: str) -> None:
    """Raise :class:`UserError` where ``source`` clearly names nothing; loads no weights and asks no network."""
    locate(source)


def locate(source: str) -> str:
    """Return a local path, or ``source`` itself where it can only be a hub id.

    Raises:
        UserError: the package is not installed, the file is not in it, or a local path does not exist.
    """
    if source.startswith(PACKAGE_SCHEME):
        return str(_locate_in_package(source))
    if source and Path(source).expanduser().is_dir():
        return str(Path(source).expanduser())
    is_gguf = source.endswith(".gguf")
    if is_gguf and Path(source).expanduser().is_file():
        return str(Path(source).expanduser())
    if is_gguf or source.count("/") > 1 or source.startswith((".", "~", "/")) or not source:
        raise UserError(
            f"model '{source}': no such file or folder; write one that exists, a hub id like "
            "'Qwen/Qwen2.5-1.5B-Instruct', or pkg://PACKAGE/PATH"
        )
    return source


def _locate_in_package(source: str) -> Path:
    package, _, path = source.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model '{source}': the Python package '{package}' is not installed; pip install it first")
    found = Path(spec.submodule_search_locations[0]) / path
    if not found.exists():
        raise UserError(f"model '{source}': the package '{package}' holds no '{path}'")
    return found


def resolve(source: str) -> str:
    """Return what ``from_pretrained`` takes: a folder with safetensors, or a hub id.

    Converts a GGUF file on its first use; safe against a second process doing the same.
    """
    located = locate(source)
    return str(_convert_gguf(Path(located))) if located.endswith(".gguf") else located


def _convert_gguf(path: Path) -> Path:
    target = cache_dir() / f"{path.stem}-{_digest(path, path.stat().st_mtime_ns)[:12]}-{CONVERTER}"
    if target.is_dir():
        return target
    if find_spec("gguf") is None:
        raise UserError(f"model '{path}' is a GGUF file; pip install 'lit-debias[embedded]' to read it")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".convert-"))
    try:
        convert(path, work)
        os.replace(work, target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


@lru_cache(maxsize=8)
def _digest(path: Path, modified: int) -> str:  # noqa: ARG001  # the time makes the cache forget a changed file
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve(source), **NO_CODE, **kwargs)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"model '{source}': its tokenizer has neither a pad nor an end-of-sequence token; name one in its "
                'tokenizer_config.json: "eos_token": "..."'
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(source: str, *, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """Load a causal language model in evaluation mode; further arguments go to ``from_pretrained``.

    Raises:
        UserError: there is none, it cannot be reached, or only by running code that comes with it; or its files lack
            weights, which transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM

    with loading(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            resolve(source), dtype=dtype, output_loading_info=True, **NO_PICKLE, **kwargs
        )
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise UserError(
            f"model '{source}': its files lack {len(missing)} weights, such as {missing[0]}; write a whole causal "
            "language model, whose config.json goes with its weights"
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


def load_encoder(source: str, **kwargs: Any) -> PreTrainedModel:
    """Load a model without a head in fp32 and evaluation mode; otherwise as :func:`load_causal_lm`."""
    from transformers import AutoModel

    with loading(source):
        model: PreTrainedModel = AutoModel.from_pretrained(resolve(source), dtype=torch.float32, **NO_PICKLE, **kwargs)
    return model
