"""What the fields of configurations become in tiny models, what single model types need beside it, and variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH, INNER, HEADS, HEAD = 64, 96, 4, 16
WINDOW = 8
LONGEST = 96
"""Positions: more than any sequence of the sweep has, and fewer than a prompt packed with all of its completions."""


def _key_heads(value: Any, values: Mapping[str, Any]) -> int:
    return HEADS if value == values.get("num_attention_heads") else 2 if value > 1 else 1


def _at_most(limit: int) -> Any:
    return lambda value, _values: min(value, limit) if isinstance(value, int) else value


def _window(value: Any, _values: Mapping[str, Any]) -> Any:
    return WINDOW if isinstance(value, int) else value


TINY: dict[str, Any] = {
    "vocab_size": 320,
    "vocab_size_per_layer_input": 320,
    "unpadded_vocab_size": 320,
    "decoder_vocab_size": 320,
    # ids: the tokenizer's only special token is 0
    "eos_token_id": 0,
    "bos_token_id": 0,
    "pad_token_id": _at_most(1),
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 0,
    "cls_token_id": 0,
    "sep_token_id": 0,
    # widths
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim", "word_embed_proj_dim"], WIDTH),
    **dict.fromkeys(["lru_width", "attention_hidden_size", "embedding_size"], WIDTH),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff", "dff"], INNER),
    **dict.fromkeys(["d_inner", "intermediate_size_mlp", "dense_intermediate_size", "feed_forward_size"], INNER),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 48),
    **dict.fromkeys(["shared_intermediate_size", "moe_shared_expert_intermediate_size"], _at_most(48)),
    **dict.fromkeys(["prefix_dense_intermediate_size"], 48),
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "router_hidden_size": 16,
    # heads
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "attention_heads"], HEADS),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"], HEADS),
    **dict.fromkeys(["num_encoder_attention_heads", "num_decoder_attention_heads"], HEADS),
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads"], _key_heads),
    **dict.fromkeys(["head_dim", "global_head_dim", "swa_head_dim", "v_head_dim", "dim_head", "d_head"], HEAD),
    **dict.fromkeys(["kv_channels", "attention_head_size", "index_head_dim", "indexer_head_dim"], HEAD),
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": 8,
    "qk_head_dim": HEAD + 8,
    "rotary_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "o_lora_rank": 16,
    "index_n_heads": 2,
    "index_topk": WINDOW,
    "query_pre_attn_scalar": HEAD,
    # experts
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["zero_expert_num"], 2),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"], _at_most(2)),
    **dict.fromkeys(["num_shared_experts", "n_shared_experts", "moe_num_shared_experts"], _at_most(1)),
    **dict.fromkeys(["n_group", "num_expert_group"], _at_most(2)),
    "topk_group": _at_most(1),
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers"], _at_most(1)),
    # lengths
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"], LONGEST),
    **dict.fromkeys(["model_max_length", "max_target_positions", "seq_length"], LONGEST),
    "original_max_position_embeddings": 32,
    **dict.fromkeys(["sliding_window", "sliding_window_size", "attention_window_size", "window_size"], _window),
    **dict.fromkeys(["attention_chunk_size", "local_attention", "keep_window_size", "local_attention_window_len"], _window),
    **dict.fromkeys(["chunk_size", "mamba_chunk_size", "block_size", "rel_extent"], WINDOW),
    "floor_scale": 16,
    # recurrent layers
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads", "n_mamba_heads"], 8),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim", "mamba_headdim"], HEAD),
    **dict.fromkeys(["mamba_d_state", "state_size", "ssm_state_size"], 8),
    "mamba_d_ssm": 2 * WIDTH,
    **dict.fromkeys(["time_step_rank", "mamba_dt_rank"], 4),
    **dict.fromkeys(["n_groups", "mamba_n_groups", "mamba_ngroups"], _at_most(2)),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": HEAD,
    "linear_value_head_dim": HEAD,
    # spread of fresh weights, so that logits differ
    **dict.fromkeys(["initializer_range", "init_std", "embed_init_std", "embedding_initializer_range"], 0.2),
    # caps that bite at the logits of tiny models
    **dict.fromkeys(["final_logit_softcapping", "attn_logit_softcapping", "logits_soft_cap"], 4.0),
    "output_logit_soft_cap": 4.0,
    # parts that see or hear
    "image_size": 28,
    "patch_size": _at_most(14),
    "depth": 2,
    "out_hidden_size": WIDTH,
}
"""Field -> small value, or what makes one of the default and all other defaults; left alone where it is null."""

OVERRIDES: dict[str, dict[str, Any]] = {}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {}
