"""How pictures go into the forward pass of one sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_debias.types import PictureInputs

Shown = tuple[Tensor, dict[str, Tensor]]
"""Ids [L] of a sequence, and the arguments of a forward pass beside them."""


SHIFT = "rope_deltas"
"""What parts of a model remember beside its cache: how far the latest prompt's pictures shift the positions that
follow."""


def shifted_parts(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model that remember such a shift."""
    return [module for module in model.modules() if hasattr(module, SHIFT)]


def forget_shifts(model: nn.Module) -> None:
    """Let a model forget what the pictures of the latest prompt have shifted, before another one is read."""
    for module in shifted_parts(model):
        setattr(module, SHIFT, None)


@contextmanager
def showing(model: PreTrainedModel, ids: Tensor, prompt_tokens: int, pictures: PictureInputs | None) -> Iterator[Shown]:
    """Yield what a model is given of a sequence with the pictures of its prompt.

    A policy may sample the token that stands for a part of a picture. Models look for parts of pictures wherever it
    stands, and have none for it; while sampling it is a token like any other, and so it is here: within the context
    the embedding layer gives its embedding, and its id is another one.

    Args:
        model: Hugging Face model.
        ids: [L] int64.
        prompt_tokens: How many of them are of the prompt.
        pictures: Of the prompt.
    """
    if pictures is None:
        yield ids, {}
        return
    sampled = ids.eq(pictures.placeholder)
    sampled[:prompt_tokens] = False
    options = pictures.beside(ids, prompt_tokens)
    if not options or not bool(sampled.any()):
        yield ids, options
        return

    def embedded(layer: Any, _inputs: Any, _output: Any) -> Any:
        return layer.forward(ids[None])  # past this hook

    layer: Any = model.get_input_embeddings()
    hook = layer.register_forward_hook(embedded, prepend=True)
    try:
        yield ids.masked_fill(sampled, 0 if pictures.placeholder else 1), options
    finally:
        hook.remove()
