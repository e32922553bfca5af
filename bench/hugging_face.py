"""Architectures of the transformers package, small and with random weights, for `bench.zoo`.

Every size that an architecture's config names is made small; of its classes the first that can be built
serves: image, text or audio classification, a language model, or the bare network.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("encoder_hidden_size", "decoder_hidden_size"), 32),
    **dict.fromkeys(("embedding_size", "projection_dim", "q_lora_rank", "kv_lora_rank", "num_mel_bins"), 16),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("n_inner", "hidden_dim", "d_inner", "vocab_size", "entity_vocab_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "attn_layer_period", "type_vocab_size"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "n_mamba_heads"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "mamba_num_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "state_size", "rotary_dim"), 4),
    **dict.fromkeys(("time_step_rank", "qk_nope_head_dim", "num_conv_pos_embedding_groups"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "qk_rope_head_dim", "v_head_dim", "patch_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions"), 64),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "attn_layer_offset"), 1),
    "image_size": 32,
    "max_source_positions": 32,
    "moe_intermediate_size": 24,
    "mamba_d_head": "auto",
    "num_conv_pos_embeddings": 16,
    "sliding_window": 16,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_labels": 5,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "use_cache": False,
}
_CONVNEXT = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "num_labels": 5}
_TEXT = {
    "use_cache": False, "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_LATENT = {
    **_TEXT, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
_EXPERTS = {
    "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_SERIES = {
    "prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3], "num_time_features": 2,
    "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2, "use_cache": False,
}  # fmt: skip
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_VIDEO = {
    "image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 5,
}  # fmt: skip
# whole configs, where sizes depend on one another
_WHOLE: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {**_LATENT, **_EXPERTS},
    "deepseek_v3": {**_LATENT, **_EXPERTS},
    "minicpm3": _LATENT,
    "informer": _SERIES,
    "autoformer": _SERIES,
    "time_series_transformer": _SERIES,
    "timesformer": _VIDEO,
    "videomae": _VIDEO,
    "vivit": {**_VIDEO, "tubelet_size": [2, 8, 8]},
    "speech_to_text": {
        "vocab_size": 48,
        "d_model": 32,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "conv_channels": 24,
        "input_feat_per_channel": 16,
        "use_cache": False,
    },
    "speecht5": {
        "vocab_size": 48,
        "hidden_size": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_layers": 2,
        "decoder_ffn_dim": 48,
        "decoder_attention_heads": 4,
        "use_cache": False,
    },
    "layoutlmv3": {
        **_TEXT,
        "coordinate_size": 6,
        "shape_size": 4,
        "input_size": 32,
        "patch_size": 8,
        "num_labels": 5,
        "max_2d_position_embeddings": 64,
        "rel_pos_bins": 8,
        "rel_2d_pos_bins": 8,
        "max_rel_pos": 16,
        "max_rel_2d_pos": 16,
    },
    "gpt_neo": {
        "vocab_size": 48,
        "max_position_embeddings": 64,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "use_cache": False,
        "pad_token_id": 0,
    },
    "t5": {
        "vocab_size": 48,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "use_cache": False,
        "decoder_start_token_id": 0,
        "eos_token_id": 2,
    },
    "gemma3n_text": {
        **_TEXT,
        "intermediate_size": [48, 48, 48, 48],
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size_per_layer_input": 48,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "sliding_window": 8,
    },
    "gemma4_text": {
        **_TEXT,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size_per_layer_input": 48,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
        "per_layer_config": {"1": {"head_dim": 16}},
    },
    "qwen2_vl_text": {
        **_TEXT,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    },
    "nemotron_h": {
        **_TEXT,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    },
    "qwen3_next": {
        **_TEXT,
        **_DELTA,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "num_experts_per_tok": 2,
        "num_experts": 4,
    },
    "qwen3_5_text": {**_TEXT, **_DELTA, "num_key_value_heads": 2, "head_dim": 8},
    "olmo_hybrid": {**_TEXT, **_DELTA, "linear_num_key_heads": 4, "num_key_value_heads": 2},
    "granitemoehybrid": {
        **_TEXT,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "led": {
        "vocab_size": 48,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
        "encoder_layers": 2,
        "encoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_layers": 2,
        "decoder_ffn_dim": 48,
        "decoder_attention_heads": 4,
        "d_model": 32,
        "attention_window": 8,
        "use_cache": False,
        "pad_token_id": 0,
    },
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "bit": {
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_groups": 8,
        "num_labels": 5,
    },
    "mamba2": {
        "use_cache": False,
        "num_heads": 8,
        "head_dim": 8,
        "hidden_size": 32,
        "n_groups": 1,
        "chunk_size": 8,
        "vocab_size": 48,
        "num_hidden_layers": 2,
    },
    "efficientnet": {"num_labels": 5, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
}
_IMAGE_SIZES = {"default": 32} | dict.fromkeys(
    ("bit", "cvt", "efficientnet", "levit", "mobilevit", "pvt_v2", "regnet", "resnet", "segformer"), 64
)
_SOUNDS = {
    "audio-spectrogram-transformer": (2, 1024, 16),
    "encodec": (2, 1, 4000),
    "dac": (2, 1, 4000),
    "whisper": (2, 16, 64),
    "univnet": (2, 64, 16),
    "speech_to_text": (2, 64, 16),
    "speecht5": (2, 20, 32),
}
_HEADS = (
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)


def build(name: str) -> nn.Module:
    """A small network of this architecture, by its model type (``"bert"``)."""
    import transformers
    from transformers.models.auto import configuration_auto, modeling_auto

    transformers.logging.set_verbosity_error()
    kind = configuration_auto.CONFIG_MAPPING[name]
    config = kind(**_WHOLE[name]) if name in _WHOLE else kind(**_small(kind()))
    tables = [getattr(modeling_auto, head) for head in _HEADS]
    found = [table[name] for table in tables if name in table]
    for each in found[:-1]:
        try:
            return _class(transformers, each)(config)  # type: ignore[no-any-return]
        except (TypeError, ValueError):  # not a class for this config: the next one may be
            continue
    return _class(transformers, found[-1])(config)  # type: ignore[no-any-return]


def _class(package: Any, name: str | tuple[str, ...]) -> Any:
    return getattr(package, name if isinstance(name, str) else name[0])


def _small(config: Any) -> dict[str, Any]:
    """Small values of what a config has; of the configs inside it too."""
    small: dict[str, Any] = {}
    for key, value in _SIZES.items():
        if not hasattr(config, key) or isinstance(getattr(type(config), key, None), property):
            continue
        own = getattr(config, key)
        if key == "image_size" and isinstance(own, list | tuple):
            small[key] = type(own)((value, value))
        elif isinstance(own, list | tuple) == isinstance(value, list | tuple):
            small[key] = value
    for key in ("text_config", "vision_config"):
        if getattr(config, key, None) is not None:
            small[key] = _small(getattr(config, key))
    return small


def inputs(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Two samples for every input the network's forward names."""
    draw = torch.Generator().manual_seed(1)
    wanted = inspect.signature(model.forward).parameters
    side = _IMAGE_SIZES.get(name, _IMAGE_SIZES["default"])
    tokens = torch.randint(3, 40, (2, 16), generator=draw)
    tokens[:, -1] = 2  # the end
    clips = {"timesformer", "videomae", "vivit"}
    series = (2, getattr(model.config, "context_length", 32), getattr(model.config, "num_input_channels", 1))
    made = {
        "input_ids": tokens,
        "decoder_input_ids": torch.randint(3, 40, (2, 6), generator=draw),
        "pixel_values": torch.randn(2, *((4,) if name in clips else ()), 3, side, side, generator=draw),
        "input_values": torch.randn(_SOUNDS.get(name, (2, 4000)), generator=draw),
        "input_features": torch.randn(_SOUNDS.get(name, (2, 64, 160)), generator=draw),
        "past_values": torch.randn(series, generator=draw),
    }
    if "lags_sequence" in _WHOLE.get(name, {}):
        past, ahead = 19, 4  # the context and its longest lag; what is foretold
        made |= {
            "past_values": torch.randn(2, past, generator=draw),
            "past_time_features": torch.randn(2, past, 2, generator=draw),
            "past_observed_mask": torch.ones(2, past),
            "future_values": torch.randn(2, ahead, generator=draw),
            "future_time_features": torch.randn(2, ahead, 2, generator=draw),
        }
    if name == "layoutlmv3":
        made["bbox"] = torch.randint(0, 30, (2, 16, 2), generator=draw).repeat(1, 1, 2)
        made["bbox"][..., 2:] += 8  # right of and below the left upper corner
    if name == "speecht5":
        made["decoder_input_values"] = torch.randn(2, 6, 32, generator=draw)
    if "SequenceClassification" in type(model).__name__:
        del made["decoder_input_ids"]  # these classes make their own
    return {key: value for key, value in made.items() if key in wanted}
