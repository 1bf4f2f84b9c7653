"""A tiny model, and the log-probs of each sequence alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


def tiny(family: str, attention: str) -> nn.Module:
    config_class, model_class = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[
        family
    ]
    config = config_class(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    return model_class(config).double()


def alone(model: nn.Module, prompt: Tensor, completion: Tensor) -> Tensor:
    ids = torch.cat([prompt, completion])[None]
    logp = model(ids).logits[0].log_softmax(-1)
    return logp[len(prompt) - 1 : -1].gather(1, completion[:, None]).squeeze(1)
