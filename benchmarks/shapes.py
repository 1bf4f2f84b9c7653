"""Models of Qwen2.5's and SmolLM2's shapes with random weights: right for speed and memory, meaningless for quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2Tokenizer

END = "<|endoftext|>"
SPACE = "Ġ"  # how byte-level tokens write a space


def _smollm2(thirds: int) -> dict[str, Any]:
    """Return SmolLM2-135M's shape, each width and the number of layers times ``thirds / 3``; the vocabulary stays."""
    return {
        "vocab_size": 49152,
        "hidden_size": 192 * thirds,
        "intermediate_size": 512 * thirds,
        "num_hidden_layers": 10 * thirds,
        "num_attention_heads": 3 * thirds,
        "num_key_value_heads": thirds,
        "tie_word_embeddings": True,
    }


# The config.json of Qwen2.5-{0.5B,1.5B,7B}, and scaled copies of SmolLM2-135M's with Qwen2's biases; the tiny one is
# for tests.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "13m": _smollm2(1),
    "50m": _smollm2(2),
    "135m": _smollm2(3),
    "289m": _smollm2(4),
    "0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "1.5b": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}


def save_model(shape: str, folder: Path, device: str) -> Path:
    """Write a random bf16 model of ``shape`` with a tokenizer to ``folder``, the same for equal torch and device.

    Args:
        shape: A key of :data:`SHAPES`.
        folder: Gets about 2 bytes for each parameter (15 GB for ``7b``).
        device: Where the weights are drawn.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = random_model(shape)
    model.save_pretrained(folder)
    word_tokenizer(model.config.vocab_size).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # the processes of arms need the GPU's memory; nothing where there is no GPU
    return folder


def random_model(shape: str) -> PreTrainedModel:
    """Return a bf16 model of ``shape``, initialised as transformers does, on torch's default device."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config(shape), dtype=torch.bfloat16)
    return model


def model_config(shape: str) -> Qwen2Config:
    """Return the configuration of a key of :data:`SHAPES`."""
    return Qwen2Config(
        **SHAPES[shape],
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def word_tokenizer(size: int) -> Qwen2Tokenizer:
    """Return a tokenizer of ``size`` > 256 tokens that reads bytes, and writes the id after ``w`` for all other tokens.

    So every sampled id decodes to text, as the rewards expect; nothing has to be trained or downloaded.
    """
    tokens = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"{SPACE}w{index}" for index in range(len(tokens), size)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token=END, eos_token=END, pad_token=END)
