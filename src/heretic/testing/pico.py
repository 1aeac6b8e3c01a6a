# SPDX-License-Identifier: Apache-2.0
"""Pico models: a few thousand random parameters in the exact layout of a real family (reliability T1).

Every model is built from the configuration class of the installed transformers, never downloaded. All weights
are random, gains and biases too, so that nothing is 0 or 1 by initialisation and a forgotten gain or bias
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

HIDDEN_SIZE: Final = 40
VOCABULARY: Final = 320

_COMMON: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_GROUPED: Final = {"num_key_value_heads": 2}
_HEAD: Final = {"head_dim": "head"}
_DENSE: Final = {**_GROUPED, "intermediate_size": "inner"}
_HEADED: Final = {**_DENSE, **_HEAD}
_MOE: Final = {**_DENSE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": "expert"}
_LOCAL_MOE: Final = {**_DENSE, "num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED: Final = {
    **_DENSE,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": "expert",
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT: Final = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": "head",
}
_DELTA: Final = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": "head",
}
_QWEN_SHARED: Final = {
    **_HEADED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": "expert",
    "shared_expert_intermediate_size": "shared",
}
_MAMBA: Final = {
    "mamba_expand": 1,
    "mamba_d_ssm": 40,
    "mamba_n_heads": 4,
    "mamba_d_head": 10,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}

# name -> (model_type, arguments). The words "inner", "expert", "shared" and "head" stand for widths, see
# `_WIDTHS`.
_RECIPES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("llama", {**_HEADED, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {**_HEADED, "tie_word_embeddings": True}),
    "mistral": ("mistral", _HEADED),
    "ministral": ("ministral", _HEADED),
    "ministral3": ("ministral3", _HEADED),
    "qwen2": ("qwen2", _DENSE),
    "qwen3": ("qwen3", _HEADED),
    "qwen3_5": ("qwen3_5_text", {**_HEADED, **_DELTA}),
    "gemma": ("gemma", _HEADED),
    "gemma2": ("gemma2", {**_HEADED, "query_pre_attn_scalar": 12}),
    "gemma3": ("gemma3_text", {**_HEADED, "query_pre_attn_scalar": 12}),
    "vaultgemma": ("vaultgemma", {**_HEADED, "query_pre_attn_scalar": 12}),
    "gemma4": (
        "gemma4_text",
        {
            **_HEADED,
            "global_head_dim": 12,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 0,
        },
    ),
    "phi": ("phi", {**_DENSE, "partial_rotary_factor": 0.4}),
    "phi3": ("phi3", _DENSE),
    "olmo": ("olmo", _DENSE),
    "olmo2": ("olmo2", _DENSE),
    "olmo3": ("olmo3", _DENSE),
    "gpt2": ("gpt2", {"n_inner": "inner"}),
    "gpt_bigcode": ("gpt_bigcode", {"n_inner": "inner"}),
    "gptj": ("gptj", {"n_inner": "inner", "rotary_dim": 4}),
    "codegen": ("codegen", {"n_inner": "inner", "rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", {"intermediate_size": "inner"}),
    "bloom": ("bloom", {"n_head": 4}),
    "mpt": ("mpt", {"expansion_ratio": "ratio", "max_seq_len": 256}),
    "opt": ("opt", {"ffn_dim": "inner", "word_embed_proj_dim": HIDDEN_SIZE}),
    "falcon": ("falcon", {"ffn_hidden_size": "inner", "bias": True}),
    "falcon-new": (
        "falcon",
        {"ffn_hidden_size": "inner", "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "stablelm": ("stablelm", {**_DENSE, "use_qkv_bias": True}),
    "smollm3": ("smollm3", _DENSE),
    "starcoder2": ("starcoder2", _DENSE),
    "cohere": ("cohere", {**_DENSE, "use_qk_norm": True}),
    "cohere2": ("cohere2", _HEADED),
    "granite": ("granite", {**_DENSE, "residual_multiplier": 0.6, "attention_bias": True}),
    "exaone4": ("exaone4", {**_HEADED, "sliding_window_pattern": 2}),
    "glm": ("glm", _HEADED),
    "glm4": ("glm4", _HEADED),
    "nemotron": ("nemotron", _HEADED),
    "seed_oss": ("seed_oss", _HEADED),
    "ernie4_5": ("ernie4_5", _HEADED),
    "hunyuan_dense": ("hunyuan_v1_dense", _HEADED),
    "arcee": ("arcee", _HEADED),
    "apertus": ("apertus", _DENSE),
    "bitnet": ("bitnet", _DENSE),
    "helium": ("helium", {**_DENSE, "head_dim": 10}),
    "internlm3": ("internlm3", _HEADED),
    "iquestcoder": ("iquestcoder", _HEADED),
    "jais2": ("jais2", _DENSE),
    "cwm": ("cwm", _HEADED),
    "youtu": ("youtu", {**_DENSE, **_LATENT}),
    "minicpm3": ("minicpm3", {**_DENSE, **_LATENT, "scale_depth": 1.4}),
    "mixtral": ("mixtral", {**_LOCAL_MOE, **_HEAD}),
    "phimoe": ("phimoe", {**_LOCAL_MOE, "attention_bias": True}),
    "minimax_m2": ("minimax_m2", {**_LOCAL_MOE, **_HEAD, "rotary_dim": 4}),
    "gpt_oss": ("gpt_oss", {**_LOCAL_MOE, **_HEAD}),
    "llama4": (
        "llama4_text",
        {**_LOCAL_MOE, **_HEAD, "intermediate_size_mlp": "shared", "interleave_moe_layer_step": 2},
    ),
    "granitemoe": ("granitemoe", _LOCAL_MOE),
    "granitemoeshared": ("granitemoeshared", {**_LOCAL_MOE, "shared_intermediate_size": "shared"}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**_LOCAL_MOE, **_MAMBA, "shared_intermediate_size": "shared", "layer_types": ["mamba", "attention"]},
    ),
    "mimo_v2_flash": ("mimo_v2_flash", {**_ROUTED, **_HEAD, "v_head_dim": "head", "swa_v_head_dim": "head"}),
    "flex_olmo": ("flex_olmo", _MOE),
    "afmoe": ("afmoe", {**_MOE, **_HEAD, "num_shared_experts": 1, "num_dense_layers": 1}),
    "olmoe": ("olmoe", _MOE),
    "qwen2_moe": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": "shared", "mlp_only_layers": [0]}),
    "qwen3_moe": ("qwen3_moe", {**_MOE, **_HEAD, "mlp_only_layers": [0]}),
    "qwen3_next": ("qwen3_next", {**_QWEN_SHARED, **_DELTA}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {**_QWEN_SHARED, **_DELTA}),
    "deepseek_v2": ("deepseek_v2", {**_ROUTED, **_LATENT, "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", {**_ROUTED, **_LATENT}),
    "glm4_moe": ("glm4_moe", {**_ROUTED, **_HEAD}),
    "glm4_moe_lite": ("glm4_moe_lite", {**_ROUTED, **_LATENT}),
    "exaone_moe": ("exaone_moe", {**_ROUTED, **_HEAD}),
    "solar_open": ("solar_open", {**_ROUTED, **_HEAD}),
    "cohere2_moe": ("cohere2_moe", {**_MOE, **_HEAD}),
    "dots1": ("dots1", {**_ROUTED, **_HEAD}),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            **_DENSE,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": "expert",
            "moe_layer_start_index": 1,
        },
    ),
    "hunyuan_moe": ("hunyuan_v1_moe", {**_HEADED, "num_experts": 4, "moe_topk": 2, "num_shared_expert": 1}),
    "lfm2": ("lfm2", {**_DENSE, "layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": ("lfm2_moe", {**_MOE, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "falcon_h1": ("falcon_h1", {**_HEADED, **_MAMBA, "attention_out_multiplier": 0.7}),
    "jamba": (
        "jamba",
        {
            **_DENSE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **_HEADED,
            "mamba_num_heads": 4,
            "mamba_head_dim": 10,
            "ssm_state_size": 8,
            "n_groups": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": "expert",
            "moe_shared_expert_intermediate_size": "shared",
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "attention", "mlp", "moe"],
        },
    ),
    "bamba": ("bamba", {**_DENSE, **_MAMBA, "attn_layer_indices": [1]}),
    "mamba": ("mamba", {"state_size": 8, "time_step_rank": 4}),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 10, "state_size": 8, "n_groups": 1}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8, "time_step_rank": 4}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**_HEADED, "block_types": ["recurrent", "attention"], "lru_width": 40},
    ),
}
_WIDTHS: Final = {"inner": 56, "expert": 24, "shared": 32, "head": 12, "ratio": 2}
_EQUAL: Final = {"inner": HIDDEN_SIZE, "expert": HIDDEN_SIZE, "shared": HIDDEN_SIZE, "head": 10, "ratio": 1}

# Variants that normalise the stream itself: resolving them is an error, so they are not among the families.
_REFUSED: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "minimax": ("minimax", {**_LOCAL_MOE, **_HEAD}),
    "opt-post-norm": (
        "opt",
        {"ffn_dim": "inner", "word_embed_proj_dim": HIDDEN_SIZE, "do_layer_norm_before": False},
    ),
}
_SIGLIP: Final = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_VISUAL: Final = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": HIDDEN_SIZE,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}
_QWEN2_VISUAL: Final = {
    "depth": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "patch_size": 8,
    "hidden_size": HIDDEN_SIZE,
}
_LLAMA4_VISION: Final = {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
# name -> (model_type, pico family of the text part, vision arguments). Rotary sections are set where images
# need them.
_WRAPPERS: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "gemma3-vision": ("gemma3", "gemma3", _SIGLIP),
    "mistral3-vision": ("mistral3", "mistral", {**_SIGLIP, "model_type": "pixtral"}),
    "llava": ("llava", "llama", {**_SIGLIP, "model_type": "clip_vision_model"}),
    "llama4-vision": ("llama4", "llama4", {**_SIGLIP, **_LLAMA4_VISION}),
    "qwen2-vl": ("qwen2_vl", "qwen2", _QWEN2_VISUAL),
    "qwen2_5-vl": ("qwen2_5_vl", "qwen2", _VISUAL),
    "qwen3-vl": ("qwen3_vl", "qwen3", _VISUAL),
    "qwen3-vl-moe": ("qwen3_vl_moe", "qwen3_moe", _VISUAL),
    "qwen3_5-vision": ("qwen3_5", "qwen3_5", _VISUAL),
    "qwen3_5-moe-vision": ("qwen3_5_moe", "qwen3_5_moe", _VISUAL),
}
_SECTIONED: Final = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"}

PICO_FAMILIES: Final[tuple[str, ...]] = tuple(_RECIPES)
"""Text families; each can be resolved and edited at all writers."""

PICO_REFUSED: Final[tuple[str, ...]] = tuple(_REFUSED)
# transformers 5.24.0 fails on text alone: Llama4ForConditionalGeneration asks for image outputs that it does not make.
_BROKEN: Final = ("llama4-vision",) if transformers.__version__ == "5.24.0" else ()
PICO_WRAPPERS: Final[tuple[str, ...]] = tuple(name for name in _WRAPPERS if name not in _BROKEN)
"""Multimodal models around a text family; build them with `pico_model` like the others."""


def pico_config(
    name: str, *, equal_widths: bool = False, changes: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The configuration of the pico model `name`; `changes` override single arguments of the text part.

    equal_widths: every inner width equals the hidden size, so that no shape test can tell the axes apart.
    """
    if name in _WRAPPERS:
        return _wrapper_config(name, equal_widths, changes)
    model_type, arguments = {**_RECIPES, **_REFUSED}[name]
    widths = _EQUAL if equal_widths else _WIDTHS
    filled = {
        key: widths[value] if isinstance(value, str) and value in widths else value
        for key, value in {**_COMMON, **arguments, **(changes or {})}.items()
    }
    return _configuration(model_type, filled)


def _wrapper_config(name: str, equal_widths: bool, changes: Mapping[str, Any] | None) -> PreTrainedConfig:
    model_type, text, vision = _WRAPPERS[name]
    arguments = pico_config(text, equal_widths=equal_widths, changes=changes).to_dict()
    if model_type in _SECTIONED:
        half = arguments.get("head_dim", HIDDEN_SIZE // 4) // 2
        sections = [half - 2 * (half // 3), half // 3, half // 3]
        arguments["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
        del arguments["model_type"]
        arguments.pop("layer_types", None)
    parts = {"text_config": arguments, "vision_config": dict(vision), "tie_word_embeddings": False}
    return _configuration(model_type, parts)


def _configuration(model_type: str, arguments: dict[str, Any]) -> PreTrainedConfig:
    factory: Callable[..., PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return factory(**arguments)


def pico_model(
    name: str,
    *,
    seed: int = 0,
    equal_widths: bool = False,
    dtype: torch.dtype = torch.float32,
    changes: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A random model called `name` (see the three tuples above) in evaluation mode on the CPU.

    The same name and seed give the same bits. Raises KeyError for an unknown name.
    """
    config = pico_config(name, equal_widths=equal_widths, changes=changes)
    loader = AutoModelForImageTextToText if name in _WRAPPERS else AutoModelForCausalLM
    build: Callable[..., PreTrainedModel] = loader.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config, attn_implementation="eager")
        randomise(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # buffers keep their type: rotary tables may be complex
    model.train(False)
    return model


def randomise(model: nn.Module) -> None:
    """Spreads gains, biases and other vectors around what they are; matrices get a scale that keeps
    signals."""
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not path.endswith(("bias", "A_log")):
                fan = min(parameter.shape[-2:])
                parameter.copy_(torch.randn_like(parameter) * fan**-0.5)
            elif path.endswith("A_log"):
                parameter.add_(0.1 * torch.rand_like(parameter))
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for path, buffer in model.named_buffers():
            if path.endswith("layer_scalar"):
                buffer.mul_(0.8)
