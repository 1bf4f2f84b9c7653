"""A tiny random model of every causal architecture in the installed transformers, with the peculiarities that it has.

A configuration is shrunk field by field: widths, depths and numbers of experts become small; attention windows, chunks
and original lengths become shorter than the prompts of :mod:`benchmarks.architecture_checks`, and the longest text a
little longer than those. The rest stays as the architecture has it by default: scales, dropout, kinds of layers, tied
heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.shapes import word_tokenizer
from benchmarks.tiny_fields import DROP, OVERRIDES, TARGETS, TINY, VARIANTS

VOCABULARY = 320
ENDINGS = range(0, VOCABULARY, 20)
"""Ids that end a completion, so that the rows of a random model end at different times."""
LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_blocks",
)


@dataclass(frozen=True)
class Architecture:
    """One model of the sweep."""

    name: str
    """Its model type, and what is special about this variant."""
    model_type: str
    """Key of transformers' table of causal language models."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its configuration beside the shrunk ones."""
    targets: str | list[str] = "all-linear"
    """The policy's ``targets``."""


def architectures() -> Iterator[Architecture]:
    """Yield every type of transformers' table of causal language models, each followed by its variants."""
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        yield Architecture(model_type, model_type)
        for what, options in VARIANTS.get(model_type, {}).items():
            yield Architecture(f"{model_type}, {what}", model_type, options)
        if model_type in TARGETS:
            yield Architecture(f"{model_type}, targets", model_type, targets=TARGETS[model_type])


def save(architecture: Architecture, folder: Path) -> Path:
    """Write the model with a tokenizer to ``folder``, the same for equal versions of torch and transformers."""
    config = tiny_config(CONFIG_MAPPING[architecture.model_type], architecture.options)
    torch.manual_seed(0)
    model = jittered(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    if model.generation_config is not None:
        model.generation_config.eos_token_id = list(ENDINGS)
    model.save_pretrained(folder)
    word_tokenizer(VOCABULARY).save_pretrained(folder)
    return folder


@torch.no_grad()
def jittered(model: PreTrainedModel, scale: float = 0.1) -> PreTrainedModel:
    """Move norms, biases and other vectors off their fresh values, which would hide that they are left out."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


# ---------------------------------------------------------------- configurations


def tiny_config(kind: type[PretrainedConfig], options: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """Return a small configuration of a class; ``options`` and those of its model type replace shrunk fields."""
    overrides = {**OVERRIDES.get(kind.model_type, {}), **(options or {})}
    default = _default(kind, overrides)
    fields = {**shrunk(default), **overrides}
    return kind(**{name: value for name, value in fields.items() if value is not DROP})


def _default(kind: type[PretrainedConfig], overrides: Mapping[str, Any]) -> PretrainedConfig:
    try:
        return kind()
    except Exception:  # some have no default that is valid
        return kind(**overrides)


def shrunk(default: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a default configuration that must change to make it tiny."""
    fields: dict[str, Any] = {}
    values = {**default.to_dict(), **vars(default)}
    deep = next((values[name] for name in LAYER_COUNTS if isinstance(values.get(name), int)), None)
    lists = {name: value for name, value in values.items() if _per_layer(value, deep)}
    layers = 4 if any(len(set(map(str, value))) > 1 for value in lists.values()) else 2
    for name, value in values.items():
        if name in LAYER_COUNTS and isinstance(value, int):
            fields[name] = layers
        elif isinstance(value, PretrainedConfig):
            fields[name] = _tiny_part(value)
        elif name in lists:
            fields[name] = [TINY[name]] * layers if name in TINY else _mixed(value, layers)
        elif name == "rope_parameters" and value is not None:
            fields[name] = shorter_rope(value)
        elif name in TINY and value is not None and not isinstance(value, bool):
            small = TINY[name]
            fields[name] = small(value, values) if callable(small) else small
    return {name: value for name, value in fields.items() if value is not None}


def _tiny_part(part: PretrainedConfig) -> dict[str, Any]:
    return {**tiny_config(type(part)).to_dict(), "model_type": part.model_type}


def _per_layer(value: Any, deep: int | None) -> bool:
    return isinstance(value, list) and deep is not None and len(value) == deep > 1


def _mixed(values: list[Any], layers: int) -> list[Any]:
    """Return so many of the kinds of layers, in turn, in the order of their first appearance."""
    kinds = list({str(value): value for value in values}.values())[:layers]
    return [kinds[index % len(kinds)] for index in range(layers)]


def shorter_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary parameters, for all layers or by kind of layer, whose original length the prompts exceed."""
    return {
        name: shorter_rope(value) if isinstance(value, Mapping) else 32 if name.startswith("original_max") else value
        for name, value in parameters.items()
    }
