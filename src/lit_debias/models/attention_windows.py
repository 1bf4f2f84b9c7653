"""What a model's configuration says of how far its attention reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FULL = "full_attention"


class Reach(NamedTuple):
    """How far back a token of a layer may look."""

    window: int | None = None
    """It sees the last so many tokens, itself included."""
    chunk: int | None = None
    """It sees its own chunk of so many tokens, up to itself."""


def reaches(config: PretrainedConfig) -> dict[str, Reach]:
    """Return the reach of each kind of attention layer, by its name in ``layer_types``.

    Models without ``layer_types`` have one kind, under the name of full attention. Kinds that are no attention
    (convolutions, recurrent states) have no reach, and are not in it.
    """
    text = config.get_text_config()
    window, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    known = {FULL: Reach(), "sliding_attention": Reach(window), "chunked_attention": Reach(chunk=chunk)}
    kinds = getattr(text, "layer_types", None)
    if not kinds:
        return {FULL: Reach(window)}
    return {kind: known[kind] for kind in dict.fromkeys(kinds) if kind in known}


def other_layers(config: PretrainedConfig) -> list[str]:
    """Return the kinds of layers that are no attention, such as ``linear_attention`` or ``conv``."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    return [kind for kind in dict.fromkeys(kinds) if kind not in {FULL, "sliding_attention", "chunked_attention"}]


def longest_window(config: PretrainedConfig) -> int:
    """Return the longest window, chunk or local neighbourhood that any entry of the configuration names, or 0."""
    entries: dict[str, Any] = config.get_text_config().to_dict()
    windows = [value for name, value in entries.items() if type(value) is int and _is_window(name)]
    return max(windows, default=0)


def _is_window(name: str) -> bool:
    layers = name.endswith(("_pattern", "_layers"))
    return not layers and ("window" in name or "local_attention" in name or name == "attention_chunk_size")
