"""What the fields of configurations become in tiny models, what single model types need beside it, and variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DROP = object()
"""Value of a field that is left out."""
WIDTH, INNER, HEADS, HEAD = 64, 96, 4, 16
WINDOW = 8
LONGEST = 96
"""Positions: more than any sequence of the sweep has, and fewer than a prompt packed with all of its completions."""


def _key_heads(value: Any, values: Mapping[str, Any]) -> int:
    return HEADS if value == values.get("num_attention_heads") else 2 if value > 1 else 1


def _head(value: Any, values: Mapping[str, Any]) -> int:
    return 8 if value == values.get("qk_rope_head_dim") else HEAD


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
    **dict.fromkeys(
        ["d_inner", "intermediate_size_mlp", "dense_intermediate_size", "feed_forward_size", "ffn_hidden_size"], INNER
    ),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 48),
    **dict.fromkeys(["shared_intermediate_size", "moe_shared_expert_intermediate_size"], _at_most(48)),
    **dict.fromkeys(["prefix_dense_intermediate_size"], 48),
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "router_hidden_size": 16,
    **dict.fromkeys(["hidden_size_global", "adapter_in_dim", "adapter_input_size", "adapter_out_dim"], WIDTH),
    **dict.fromkeys(["shared_experts_intermediate_size"], 48),
    # heads
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "attention_heads"], HEADS),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"], HEADS),
    **dict.fromkeys(["num_encoder_attention_heads", "num_decoder_attention_heads"], HEADS),
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads"], _key_heads),
    "head_dim": _head,
    **dict.fromkeys(["global_head_dim", "swa_head_dim", "v_head_dim", "dim_head", "d_head", "linear_head_dim"], HEAD),
    **dict.fromkeys(["kv_channels", "attention_head_size", "index_head_dim", "indexer_head_dim"], HEAD),
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": 8,
    "qk_head_dim": HEAD + 8,
    "linear_num_heads": HEADS,
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
    **dict.fromkeys(
        ["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"], _at_most(2)
    ),
    **dict.fromkeys(["num_shared_experts", "n_shared_experts", "moe_num_shared_experts"], _at_most(1)),
    **dict.fromkeys(["n_group", "num_expert_group"], _at_most(2)),
    "topk_group": _at_most(1),
    "num_kv_shared_layers": _at_most(2),
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers"], _at_most(1)),
    # lengths
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"], LONGEST),
    **dict.fromkeys(["model_max_length", "max_target_positions", "seq_length"], LONGEST),
    "original_max_position_embeddings": 32,
    **dict.fromkeys(["sliding_window", "sliding_window_size", "attention_window_size", "window_size"], _window),
    **dict.fromkeys(
        ["attention_chunk_size", "local_attention", "keep_window_size", "local_attention_window_len"], _window
    ),
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

ROPE = {"rope_type": "default", "rope_theta": 1e4}
MIXED = {"layer_types": ["linear_attention", "full_attention"] * 2, "num_hidden_layers": 4}
EXPERTS = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
LATENT = {
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "head_dim": HEAD + 8,
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": 8,
    "v_head_dim": HEAD,
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.1,
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3], "num_hidden_layers": 4},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "cohere2_moe": {"logit_scale": 0.25},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "rope_parameters": {
            kind: {**ROPE, "mrope_section": [4, 2, 2]} for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"clip_qkv": 2.0, "kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": EXPERTS,
    "dots1": EXPERTS,
    "dots3_note_text": {"per_layer_config": dict.fromkeys((1, 3), LATENT)},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "attention_layers": DROP},
    "granitemoehybrid": MIXED,
    "hrm_text": {"initializer_range": 0.1},  # its many cycles amplify rounding
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4, "full_attn_idxs": DROP},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "mamba2": {"num_heads": 8, "head_dim": HEAD},
    "ministral": {"head_dim": HEAD},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 16,
    },
    "recurrent_gemma": {"num_hidden_layers": 4},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 12],
        "axial_pos_embds_dim": [32, 32],
        "num_buckets": 4,
        "local_attn_chunk_length": WINDOW,
        "lsh_attn_chunk_length": WINDOW,
        "hash_seed": 0,
    },
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 48},
    "roc_bert": {
        "pronunciation_vocab_size": 320,
        "shape_vocab_size": 320,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 32, "n_mamba_heads": 2},
    "zamba2": {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 32},
}
"""Model type -> fields that shrinking gets wrong, and layers that published models mix though the defaults do not."""

UNBUILT = {
    "emu3": "AutoModelForCausalLM does not load what it saves; images need a tokenizer of their own",
    "gemma3n": "its vision tower needs the package timm; gemma3n_text is its language model",
    "gemma4_assistant": "drafts for another model, and reads that one's keys and values",
    "gemma4_unified_assistant": "drafts for another model, and reads that one's keys and values",
    "mllama": "AutoModelForCausalLM does not load what it saves; a language model that needs images",
    "musicgen": "needs a text encoder and an audio codec",
    "musicgen_melody": "needs a text encoder and an audio codec",
}
"""Model type -> why no tiny model is built."""

DECODER = {"decoder": {"is_decoder": True}}
WINDOWED = {
    "layer_types": ["full_attention", "sliding_attention"],
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "max_window_layers": 1,
}
LLAMA3 = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + index / 2 for index in range(8)],
    "original_max_position_embeddings": 32,
    "factor": 3.0,
}
WHOLE = {"all within the top k": {"index_topk": 2048}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(["axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4"], WHOLE),
    **dict.fromkeys(["bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"], DECODER),
    **dict.fromkeys(["megatron-bert", "prophetnet", "rembert", "roberta", "roberta-prelayernorm", "roc_bert"], DECODER),
    **dict.fromkeys(["roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"], DECODER),
    "biogpt": {"layerdrop": {"layerdrop": 0.3}},
    "bloom": {"slow but exact": {"slow_but_exact": True, "apply_residual_connection_post_layernorm": True}},
    "cohere": {"query-key norm, no scale": {"use_qk_norm": True, "logit_scale": 1.0}},
    "dots1": {"window": {key: value for key, value in WINDOWED.items() if key != "use_sliding_window"}},
    "falcon": {
        "ALiBi": {"alibi": True},
        "ALiBi, as RW": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2},
    },
    "gemma2": {
        "no caps": {"final_logit_softcapping": None, "attn_logit_softcapping": None},
        "small logits": {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "initializer_range": 0.02},
    },
    "gemma3_text": {
        "attends both ways": {"use_bidirectional_attention": True},
        "capped": {"final_logit_softcapping": 4.0},
    },
    "gpt2": {"scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}},
    "granite": {"multipliers": MULTIPLIERS},
    "granitemoe": {"multipliers": MULTIPLIERS},
    "granitemoehybrid": {"multipliers": {**MULTIPLIERS, **MIXED}},
    "llama": {
        "every bias, tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        "dynamic NTK": {
            "rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0},
            "max_position_embeddings": 32,
        },
        "longrope": {"rope_parameters": LONG_ROPE},
        "llama3 rope": {"rope_parameters": LLAMA3},
        "yarn": {
            "rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
        },
    },
    "mistral": {"no window": {"sliding_window": None}},
    "mixtral": {"window": {"sliding_window": WINDOW}, "router jitter": {"router_jitter_noise": 0.1}},
    "mpt": {"clipped": {"attn_config": {"clip_qkv": 1.0}}, "no ALiBi": {"attn_config": {"alibi": False}}},
    "olmo": {"clipped": {"clip_qkv": 1.0}},
    "opt": {
        "projected, norms after": {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
        "layerdrop": {"layerdrop": 0.3},
    },
    "phi": {"query-key norm": {"qk_layernorm": True}},
    "phi3": {"longrope": {"rope_parameters": LONG_ROPE}, "window": {"sliding_window": WINDOW}},
    "phimoe": {"router noise off": {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0}},
    "qwen2": {"window": WINDOWED},
    "qwen2_moe": {"window": WINDOWED, "dense layers between": {"decoder_sparse_step": 2}},
    "qwen3": {"window": WINDOWED},
    "smollm3": {"window": {**WINDOWED, "layer_types": ["full_attention", "sliding_attention"] * 2}},
    "stablelm": {
        "query-key norm, parallel": {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True}
    },
    "starcoder2": {"window": {"sliding_window": WINDOW}},
    "zaya": {"window": {"layer_types": ["hybrid", "hybrid_sliding"], "sliding_window": WINDOW}},
}
"""Model type -> what is special -> fields: options that published models of the type use."""

TARGETS = {
    "falcon_h1": ["q_proj", "up_proj"],
    "falcon_mamba": ["in_proj"],
    "mamba": ["in_proj"],
    "mamba2": ["in_proj"],
    "rwkv": ["key", "value"],
}
"""Model type -> layers to adapt in one more variant, where the default may find none."""
