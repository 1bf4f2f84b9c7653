"""How many positions a model has, where it keeps a table of them, or computes them for texts of one length alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lit_debias.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
"""What configurations call the longest text, by order."""
ORIGINAL = "original_max_position_embeddings"
KEPT_KEYS = ("index_topk", "keep_window_size")
"""How many keys sparse attention keeps."""
OFFSETS = range(9)
"""Rows that a table may have besides (OPT's has two)."""
FIXED, GROWING = ("mpt",), ("xglm",)
"""Kinds of models whose table is no tensor of theirs, and whose table grows with the text."""


def longest_text(config: Any) -> int | None:
    """Return the most tokens that a model was made for, as its configuration says."""
    found = [getattr(config, name, None) for name in LENGTHS]
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def positions_held(model: PreTrainedModel) -> int | None:
    """Return the most tokens of a text where positions come from a table or change; None where they are computed.

    Tables are learned positions (GPT-2, OPT, GPT-Neo), and rotations or ALiBi of a fixed length (GPT-J, MPT). Some
    networks change with the length of the text: beyond it a token that was sampled from a shorter text would be learned
    by another one.
    """
    longest, kind = longest_text(model.config), model.config.model_type
    unchanged = unchanged_length(model.config)
    if longest is None or kind in GROWING:
        return unchanged
    tables = [longest - unused for size, unused in _tables(model) if size - longest in OFFSETS]
    found = [longest] if kind in FIXED else tables
    return min(found if unchanged is None else [*found, unchanged], default=None)


def unchanged_length(config: Any) -> int | None:
    """Return up to how many tokens the network does not depend on the length of the text; None where it never does.

    ``dynamic`` frequencies of rotary positions grow with it, and ``longrope`` has a second set of them for longer
    texts. Sparse attention keeps the best keys of longer texts, and transformers chooses among later ones too.
    """
    text = config.get_text_config()
    kept = [getattr(text, name, None) for name in KEPT_KEYS]
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = all(isinstance(value, dict) for value in parameters.values())
    of_layers = list(parameters.values()) if nested else [parameters]
    lengths = [rotation.get(ORIGINAL) or text.max_position_embeddings for rotation in of_layers if _changes(rotation)]
    return min([int(length) for length in (*lengths, *kept) if length], default=None)


def _changes(rotation: dict[str, Any]) -> bool:
    return rotation.get("rope_type") in {"dynamic", "longrope"}


def _tables(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Yield the sizes of tensors whose names say that they are positions, and how many rows of each no text reaches."""
    for name, module in model.named_modules():
        held = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        held |= {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        padding = getattr(module, "padding_idx", None)  # RoBERTa counts from behind the padding's position
        for key, value in held.items():
            if value.dim() > 1 and any(word in f"{name.rpartition('.')[2]}.{key}" for word in ("pos", "wpe")):
                yield from ((size, 0 if padding is None else padding + 1) for size in value.shape)


def check_fits(tokens: int, held: int | None, source: str, remedy: str) -> None:
    """Raise :class:`UserError` where a text of so many tokens is longer than the positions that a model holds."""
    if held is not None and tokens > held:
        raise UserError(
            f"model '{source}' has {held} positions, and a text of {tokens} tokens needs more, which are not there, or "
            f"change with the length of the text; {remedy}"
        )
