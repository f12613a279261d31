"""How the configuration of each architecture is made tiny, and which of its classes are built.

A field is set by its name, wherever a configuration has it; the rest are exceptions by model class.
"""

from typing import Any

__all__ = ["EXCEPTIONS", "EXPERTS", "MODELS", "SMALL", "TOP_K", "VARIANTS"]

EXPERTS, TOP_K = 8, 2

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "unpadded_vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "dense_intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "shared_expert_intermediate_size": 24,
    "shared_experts_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "share_expert_dim": 24,
    "prefix_dense_intermediate_size": 48,
    "expert_ffn_hidden_size": 24,
    "ffn_hidden_size": 48,
    "moe_hidden_size": 24,
    "moe_latent_size": 24,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "d_ff": 48,
    "num_hidden_layers": 3,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "swa_num_attention_heads": 4,
    "num_sliding_attention_heads": 4,
    "num_key_value_heads": 2,
    "swa_num_key_value_heads": 2,
    "head_dim": 8,
    "swa_head_dim": 8,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "kv_channels": 8,
    "d_kv": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 8,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_topk": TOP_K,
    "moe_k": TOP_K,
    "moe_top_k": TOP_K,
    "top_k_experts": TOP_K,
    "zero_expert_num": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "decoder_sparse_step": 1,
    "encoder_sparse_step": 1,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "enable_moe_block": True,
    "is_moe": True,
    "rms_norm_eps": 1e-6,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_chunk_size": 8,
    "mamba_dt_rank": 4,
    "ssm_state_size": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "chunk_size": 8,
    "block_size": 8,
    "use_mamba_kernels": False,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64,
    "router_hidden_size": 16,
}
"""What a field of a configuration is set to, wherever a configuration has it."""

_MIXED = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "BailingHybridForCausalLM": _MIXED,
    "DbrxForCausalLM": {
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": EXPERTS, "moe_top_k": TOP_K},
    },
    "DeepseekOcr2TextModel": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    # The first layer chooses by token id, the others by score.
    "DeepseekV4ForCausalLM": {"mlp_layer_types": ["hash_moe", "moe", "moe"]},
    "Dots3NoteVisionModel": {
        "adapter_in_dim": 32,
        "adapter_out_dim": 32,
        "patch_size": 2,
        # As in the real model, the number of experts differs from layer to layer.
        "per_layer_config": {
            1: {"num_local_experts": 4, "num_experts_per_tok": 2},
            2: {"num_local_experts": 8, "num_experts_per_tok": 2},
        },
    },
    "DiffusionGemmaForBlockDiffusion": {
        "text_config": {"num_experts": EXPERTS, "top_k_experts": TOP_K},
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
        },
        "canvas_length": 12,
    },
    "Ernie4_5_VLMoeTextModel": {
        "moe_intermediate_size": [24, 24],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 2],
        },
    },
    "Glm4vMoeTextModel": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
            "mrope_section": [1, 1, 2],
        },
    },
    # The attention of this one takes no rotary embedding.
    "Glm5NextTextModel": {
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
        "num_key_value_heads": 4,
        "index_kpool": 4,
        "qk_rope_head_dim": 0,
    },
    "GraniteMoeHybridForCausalLM": _MIXED,
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "KimiLinearForCausalLM": _MIXED,
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention", "conv"]},
    "Qwen3_5MoeForCausalLM": _MIXED,
    "Qwen3NextForCausalLM": _MIXED,
    "Qwen3OmniMoeTalkerModel": {"shared_expert_intermediate_size": 24},
    "Qwen4ExpForCausalLM": {
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "VitPoseBackbone": {
        "image_size": (32, 32),
        "patch_size": (16, 16),
        "part_features": 8,
        "num_experts": 4,
    },
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
}
"""What an architecture needs beyond `SMALL`, by the name of its model class."""

MODELS: dict[str, tuple[str, ...]] = {
    "dbrx": ("DbrxForCausalLM",),
    "dots3_note": ("Dots3NoteForCausalLM", "Dots3NoteVisionModel"),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerTextModel", "Qwen3OmniMoeTalkerModel"),
    "diffusion_gemma": ("DiffusionGemmaForBlockDiffusion",),
    "vitpose_backbone": ("VitPoseBackbone",),
}
"""The model classes that hold the experts, where the first language model of a folder is not it."""

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "cohere2_moe": ({"expert_selection_fn": "sigmoid"},),
    "deepseek_v2": ({"topk_method": "group_limited_greedy"},),
    "laguna": ({"moe_router_logit_softcapping": 2.0},),
    "nllb_moe": (
        {"expert_capacity": 4},
        {"expert_capacity": 4, "second_expert_policy": "random"},
    ),
    "phimoe": ({"router_jitter_noise": 0.1, "input_jitter_noise": 0.1},),
    "switch_transformers": ({"expert_capacity": 2},),
}
"""Settings that change how an architecture chooses: each is built and run once more."""
