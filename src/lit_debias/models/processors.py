"""Loads processors, which turn pictures and texts into a model's inputs, without the part for videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_debias.errors import UserError
from lit_debias.models.gguf_file import NO_CODE
from lit_debias.models.loading import loading
from lit_debias.models.sources import resolve

if TYPE_CHECKING:
    from transformers import ProcessorMixin

VIDEOS = "video_processor"
NAMING = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that may name a model's class of processors, in the order in which transformers looks."""


def load_processor(source: str) -> ProcessorMixin:
    """Load a processor as ``AutoProcessor`` does; of one that reads videos too, the part without them.

    Raises:
        UserError: there is none, it cannot be reached, or something that it needs is not installed.
    """
    with loading(source):
        place = resolve(source)
        kind = _without_videos(_class_of(place, source))
        try:
            processor: ProcessorMixin = kind.from_pretrained(place, **NO_CODE)
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"model '{source}': {reason:.200}; pip install what it names") from error
    if getattr(processor, "image_processor", None) is None:
        raise UserError(f"model '{source}' has a processor without pictures; write a model that reads some")
    return processor


def _class_of(place: str, source: str) -> Any:
    """Return the class of processors that a model's files name, or else that of its architecture."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

    config = AutoConfig.from_pretrained(place, **NO_CODE)
    named = processor_class_from_name(_named(place) or "")
    if named is None and type(config) not in PROCESSOR_MAPPING:
        raise UserError(
            f"model '{source}' ({config.model_type}) reads no pictures; write one that does, such as SmolVLM or "
            "Qwen2.5-VL, or class_path: QLoRAPolicy"
        )
    return named or PROCESSOR_MAPPING[type(config)]


def _named(place: str) -> str | None:
    from transformers.utils.hub import cached_file

    for name in NAMING:
        file = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
        found = json.loads(Path(file).read_text("utf-8")).get("processor_class") if file else None
        if isinstance(found, str):
            return found
    return None


def _without_videos(kind: Any) -> Any:
    """Return a class of processors that does not load the part for videos, which needs packages of its own."""
    parts = list(kind.get_attributes())
    if VIDEOS not in parts:
        return kind
    left = [name for name in parts if name != VIDEOS]

    def loaded(own: Any, *arguments: Any, **options: Any) -> list[Any]:
        found = list(super(blind, own)._get_arguments_from_pretrained(*arguments, **options))
        return [*found[: parts.index(VIDEOS)], None, *found[parts.index(VIDEOS) :]]

    def attributes(_own: Any) -> list[str]:
        return left

    own = {"get_attributes": classmethod(attributes), "_get_arguments_from_pretrained": classmethod(loaded)}
    blind: Any = type(kind.__name__, (kind,), own)
    return blind
