"""Converts a GGUF file to safetensors, with what transformers' own reader leaves behind: rope scaling and others.

The reader of transformers knows a list of metadata for each architecture and forgets the rest, and it forgets tensors
that its model has no place for. Here what it forgets is put into the configuration, or the file is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lit_debias.errors import UserError
from lit_debias.support.text import counted

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PretrainedConfig

CONVERTER = 2
"""Counts the ways of converting; a file converted in another way is converted anew."""
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""Without it transformers asks in the terminal whether to run a model's own code."""
LLAMA_3 = tuple((factor, 1.0, 4.0) for factor in (8.0, 32.0, 16.0, 4.0, 2.0))
"""Factor, low and high frequency factor of Llama 3.1 (8), 3.2 (32) and others that scale like them."""
ORIGINAL = (8192, 4096, 2048, 16384, 32768, *(2**power for power in range(4, 11)))
"""Lengths that a model may have been trained on before its rotations were scaled, likeliest first."""
SPELLED = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
"""GGUF's name of an architecture -> transformers'."""
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
NAMES: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": EPSILONS,
    "attention.layer_norm_epsilon": EPSILONS,
    "attention.sliding_window": ("sliding_window",),
    "attention.sliding_window_pattern": ("sliding_window_pattern", "_sliding_window_pattern"),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logit_scale", "logits_scaling"),
}
"""Metadata after the architecture's name -> what transformers may call it."""
SAID_ELSEWHERE = {
    "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "tensor_data_layout", "attention.causal",
    "expert_gating_func", "use_parallel_residual", "shortconv.l_cache",
}  # fmt: skip
"""Metadata that need no look: read below, or the same for every model of the architecture."""


def convert(path: Path, target: Path) -> None:
    """Write the model and the tokenizer of a GGUF file to a folder, in bfloat16.

    Raises:
        UserError: the file scales rotations in a way that is not known, or holds metadata or weights that transformers'
            model has no place for; or lacks weights.
    """
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    reader = GGUFReader(path)
    where = {"gguf_file": path.name, **NO_CODE}
    AutoTokenizer.from_pretrained(path.parent, **where).save_pretrained(target)
    config = AutoConfig.from_pretrained(path.parent, **where)
    complete(config, reader, str(path))
    dequantize = GgufConfig(dequantize=True, gguf_file=path.name)
    options = {"config": config, "quantization_config": dequantize, "dtype": torch.bfloat16}
    loaded: Any = AutoModelForCausalLM.from_pretrained(path.parent, output_loading_info=True, **where, **options)
    model, information = loaded
    check_tensors(model, reader, str(path))
    if missing := sorted(information["missing_keys"]):
        raise UserError(
            f"model '{path}' lacks {counted(len(missing), 'weight')}, such as {missing[0]}; write a whole GGUF file"
        )
    model.should_save_on_this_rank = lambda *_: True  # the first rank may be on a machine with another cache
    model.save_pretrained(target)


def complete(config: PretrainedConfig, reader: GGUFReader, source: str) -> None:
    """Put metadata that transformers' reader forgets into a configuration.

    Raises:
        UserError: it has no place for them.
    """
    architecture = str(metadata(reader)["general.architecture"])
    said = {
        name.removeprefix(f"{architecture}."): value
        for name, value in metadata(reader).items()
        if name.startswith(f"{architecture}.")
    }
    scaling = {name: said.pop(name) for name in list(said) if name.startswith("rope.scaling.")}
    if said.get("attention.key_length") != said.get("attention.value_length"):
        raise refusal(source, f"{architecture}.attention.value_length other than its key_length")
    read = _read_by_transformers(architecture)
    for name, value in said.items():
        if name in read:
            continue
        if name in NAMES:
            _put(config, name, value, source)
        elif name not in NAMES and name not in SAID_ELSEWHERE:
            raise refusal(source, f"{architecture}.{name} = {value!r:.40}")
    _put_rotation(config, said, source)
    scaled = rope_scaling(scaling, reader, config, source)
    if scaled is not None:
        parameters = getattr(config, "rope_parameters", None) or {}
        if "full_attention" in parameters:  # of each kind of layer
            raise refusal(source, f"{architecture}.rope.scaling")
        config.rope_parameters = {**parameters, **scaled}


def _read_by_transformers(architecture: str) -> set[str]:
    """Return the names that transformers' reader puts into the configuration by itself."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    mappings: Any = GGUF_CONFIG_MAPPING
    mapping = mappings.get(SPELLED.get(architecture, architecture), {})
    places = {name for name, place in mapping.items() if place is not None}
    return places - {"context_length"}  # for GPT-2 it goes where nothing reads it


def _put(config: PretrainedConfig, name: str, value: Any, source: str) -> None:
    places = [place for place in NAMES[name] if _has(config, place)]
    if not places:
        trivial = name in {"vocab_size", "context_length"} or _is_trivial(config, name, value)
        if not trivial:
            raise refusal(source, f"{name} = {value!r:.40}")
        return
    if name == "logit_scale" or name.startswith("feed_forward"):  # read by transformers where they are the same
        return
    now = getattr(config, places[0])
    if now is None or not _equal(now, value):
        setattr(config, places[0], value)


def _has(config: PretrainedConfig, place: str) -> bool:
    return place in config.to_dict() or place in type(config).attribute_map


def _is_trivial(config: PretrainedConfig, name: str, value: Any) -> bool:
    """Return whether a model that has no such setting computes as if it had this value."""
    heads = getattr(config, "num_attention_heads", 0)
    if name in {"attention.key_length", "attention.value_length"}:
        return bool(value * heads == config.hidden_size)
    if name == "attention.head_count_kv":
        return bool(value == heads)
    return name in {"expert_count", "expert_used_count"} and value == 0


def _equal(one: Any, other: Any) -> bool:
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-6)
    except (TypeError, ValueError):
        return bool(one == other)


def _put_rotation(config: PretrainedConfig, said: dict[str, Any], source: str) -> None:
    """Compare base and width of the rotations with the configuration, and put them right."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return
    if "full_attention" in parameters:  # Gemma 3 rotates its two kinds of layers differently
        bases = {"full_attention": said.get("rope.freq_base"), "sliding_attention": said.get("rope.freq_base_swa")}
        config.rope_parameters = {
            kind: {**of_kind, **({"rope_theta": float(base)} if (base := bases.get(kind)) else {})}
            for kind, of_kind in parameters.items()
        }
        return
    base, width = said.get("rope.freq_base"), said.get("rope.dimension_count")
    changed = dict(parameters)
    if base is not None and not _equal(parameters.get("rope_theta"), base):
        changed["rope_theta"] = float(base)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    if width is not None and int(head * share) != width:
        if "partial_rotary_factor" not in parameters and not hasattr(config, "partial_rotary_factor"):
            raise refusal(source, f"rope.dimension_count = {width} of {head}")
        changed["partial_rotary_factor"] = width / head
    config.rope_parameters = changed


# -------------------------------------------------------------------- rope scaling


def rope_scaling(
    said: dict[str, Any], reader: GGUFReader, config: PretrainedConfig, source: str
) -> dict[str, Any] | None:
    """Return how a file scales rotations, in the words of transformers; None where it does not.

    Args:
        said: Metadata ``rope.scaling.*``.
        reader: The file; Llama 3 keeps its scaling in a tensor.
        config: Of the model.
        source: The file's name, for errors.

    Raises:
        UserError: in a way that is not known here, or that the numbers in the file do not follow.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if name in tensors:
            raise refusal(source, name)
    kind = said.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in tensors:
        factors = np.asarray(tensors["rope_freqs.weight"].data, dtype=np.float64).reshape(-1)
        return None if np.allclose(factors, 1.0) else _like_llama_3(factors, config, source)
    factor = float(said.get("rope.scaling.factor", 1.0))
    if kind == "none" or (factor == 1.0 and kind == "linear"):
        return None
    if kind == "linear" and set(said) <= {f"rope.scaling.{name}" for name in ("type", "factor", "finetuned")}:
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(said, factor, source)
    raise refusal(source, f"rope.scaling.type = {kind!r}")


def _yarn(said: dict[str, Any], factor: float, source: str) -> dict[str, Any]:
    names = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
    known = {"type", "factor", "finetuned", "original_context_length"}
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    for key, value in said.items():
        name = key.removeprefix("rope.scaling.")
        if name == "original_context_length":
            found["original_max_position_embeddings"] = int(value)
        elif name in names:
            found[names[name]] = float(value)
        elif name not in known:
            raise refusal(source, f"{key} = {value!r:.40}")
    if "original_max_position_embeddings" not in found:
        raise refusal(source, "rope.scaling.type = 'yarn' without rope.scaling.original_context_length")
    return found


def _like_llama_3(factors: np.ndarray, config: PretrainedConfig, source: str) -> dict[str, Any]:
    """Return the parameters of Llama 3's scaling that give these factors [D / 2] of the rotations' periods."""
    base = float((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0))
    for original in ORIGINAL:
        for factor, low, high in LLAMA_3:
            expected = llama_3_factors(len(factors), base, factor, low, high, original)
            if np.allclose(factors, expected, rtol=1e-4):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise refusal(source, "rope_freqs.weight, whose factors are not those of Llama 3")


def llama_3_factors(count: int, base: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """Return by what Llama 3.1 divides each of ``count`` frequencies.

    Periods shorter than ``original / high`` stay, those longer than ``original / low`` grow by ``factor``, and between
    them the frequency goes from one to the other.
    """
    periods = 2 * np.pi * base ** (np.arange(count) / count)
    share = np.clip((original / periods - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - share) / factor + share))


# -------------------------------------------------------------------- tensors


def check_tensors(model: Any, reader: GGUFReader, source: str) -> None:
    """Raise :class:`UserError` where the file has more biases than the model, so that some would be left out.

    Those of experts are not counted: transformers has several of them in one.
    """
    held = [name for name in model.state_dict() if name.endswith("bias") and "expert" not in name]
    there = [tensor.name for tensor in reader.tensors if tensor.name.endswith(".bias") and "_exps" not in tensor.name]
    if len(there) > len(held):
        raise refusal(source, f"{counted(len(there), 'bias', 'biases')}, such as {there[0]}")


def metadata(reader: GGUFReader) -> dict[str, Any]:
    """Return the values of a file by name, but for the lists of its tokenizer."""
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.ggml.t")}


def refusal(source: str, what: str) -> UserError:
    """Return what to raise where a file holds something that would be lost."""
    return UserError(
        f"model '{source}' has {what}, which transformers' model would be loaded without; write the model's folder of "
        "safetensors instead of its GGUF file"
    )
