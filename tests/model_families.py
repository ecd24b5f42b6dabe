"""Tiny models of the decoder families that transformers has, with random weights everywhere."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gvm_ray.learner.scratch_model import build_character_tokenizer

# By the names that configurations have for them; each family takes those that it knows.
_SIZES: dict[str, int] = {
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
    "audio_vocab_size": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "depth": 2,
    "num_kv_shared_layers": 0,
    "max_window_layers": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "hidden_size": 32,
    "d_model": 32,
    "lru_width": 32,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "dim_model_base": 16,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48,
    "shared_intermediate_size": 16,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "num_query_groups": 2,
    "head_dim": 8,
    "kv_channels": 8,
    "attention_head_dim": 16,
    "attention_hidden_size": 64,
    "rotary_dim": 4,
    "d_rel": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "adapter_rank": 4,
    "gated_norm_rank": 4,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 0,
    "moe_layer_end_index": 1,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "router_hidden_size": 16,
    # Latent and sparse attention.
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "o_lora_rank": 8,
    "o_groups": 2,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 64,
    "index_block_size": 4,
    # State spaces and linear attention.
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "n_mamba_heads": 8,
    "mamba_d_head": 8,
    "mamba_head_dim": 8,
    "mamba_headdim": 8,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "mamba_d_ssm": 64,
    "mamba_dt_rank": 4,
    "mamba_n_groups": 1,
    "mamba_ngroups": 1,
    "n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "linear_num_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# What the defaults of a family leave out or contradict.
_LATENT = {"head_dim": 4, "num_key_value_heads": 4}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "longcat_flash": _LATENT,
    "minicpm3": _LATENT,
    "youtu": _LATENT,
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"head_dim": 16},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "bamba": {"attn_layer_indices": [1]},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "dots1": {"n_shared_experts": 1},
    # Factors that do nothing by default.
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "granitemoe": {"logits_scaling": 6.0, "embedding_multiplier": 12.0},
    "falcon_h1": {"lm_head_multiplier": 0.04, "embedding_multiplier": 5.7},
}


def tiny_config(family: str, **changes: Any) -> Any:
    """A configuration with two layers of width 32, and everything else as the family has it by default."""
    return CONFIG_MAPPING[family](**(_sizes(CONFIG_MAPPING[family]) | _OF_FAMILY.get(family, {}) | changes))


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A causal LM of the family; biases and norms are random too."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        causal_lm = AutoModelForCausalLM.from_config(tiny_config(family, **changes), attn_implementation="sdpa").eval()
        for parameter in causal_lm.parameters():
            if parameter.is_floating_point():
                parameter += 0.1 * torch.randn(parameter.shape)
    return causal_lm


def build_family(folder: Path, family: str, **changes: Any) -> Path:
    """The folder of a tiny model with the character tokenizer."""
    tokenizer = build_character_tokenizer()
    tokenizer.save_pretrained(folder)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    tiny_model(family, **(ids | changes)).save_pretrained(folder)
    return folder


def _sizes(config_class: Any) -> dict[str, Any]:
    known = config_class().to_dict()
    numbers = {
        name: size
        for name, size in _SIZES.items()
        if name in known and (known[name] is None or isinstance(known[name], int))
    }
    return numbers | {
        name: _sizes(part) for name, part in config_class.sub_configs.items() if hasattr(part, "model_type")
    }
