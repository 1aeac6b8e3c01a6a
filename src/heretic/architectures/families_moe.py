# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts and hybrid families (requirement R-MOD-22). Data only; the words are explained in
`families`."""

from __future__ import annotations

from heretic.architectures.families import (
    DECODER,
    DECODER_ROOTS,
    DELTA_NET,
    GLU,
    LATENT,
    POST_NORM_STREAM,
    PRE_NORMS,
    QKV,
    Family,
    Layout,
    Refusal,
    attention,
    experts_readers,
    mamba_readers,
    mlp,
    routed,
)

_FINAL_LAYERNORM = Layout(
    DECODER_ROOTS, blocks="layers", embedding="embed_tokens", final_norm="final_layernorm"
)
_LFM2 = Layout(DECODER_ROOTS, blocks="layers", embedding="embed_tokens", final_norm="embedding_norm")
_MOE = experts_readers("mlp")
_GRANITE = "block_sparse_moe"

MIXTURES: tuple[Family, ...] = (
    Family(
        name="moe",
        model_types=(
            "mixtral",
            "phimoe",
            "minimax_m2",
            "olmoe",
            "qwen3_moe",
            "cohere2_moe",
            "mimo_v2_flash",
            "qwen3_vl_moe_text",
        ),
        layout=DECODER,
        writers=(attention(), mlp(), *routed("mlp")),
        readers=(*QKV, *GLU, *_MOE, "self_attn.sinks"),
        norms=PRE_NORMS,
    ),
    Family(
        name="flex-olmo",
        model_types=("flex_olmo",),
        layout=DECODER,
        writers=(
            attention(norm="post_attention_layernorm"),
            *routed("mlp", norm="post_feedforward_layernorm"),
        ),
        readers=(*QKV, *_MOE),
        norms=(),
    ),
    Family(
        name="afmoe",
        model_types=("afmoe",),
        layout=DECODER,
        writers=(
            attention(norm="post_attention_layernorm"),
            mlp(norm="post_mlp_layernorm"),
            mlp("mlp.shared_experts.down_proj", norm="post_mlp_layernorm"),
            *routed("mlp", norm="post_mlp_layernorm"),
        ),
        readers=(
            *QKV,
            *GLU,
            *_MOE,
            "self_attn.gate_proj",
            "mlp.expert_bias",
            "mlp.router.gate",
            "mlp.shared_experts.{gate,up}_proj",
        ),
        norms=("input_layernorm", "pre_mlp_layernorm"),
    ),
    Family(
        name="gpt-oss",
        model_types=("gpt_oss",),
        layout=DECODER,
        writers=(attention(), *routed("mlp", axis=1)),
        readers=(*QKV, *_MOE, "self_attn.sinks"),
        norms=PRE_NORMS,
    ),
    Family(
        name="llama4",
        model_types=("llama4_text",),
        layout=DECODER,
        writers=(
            attention(),
            mlp("feed_forward.down_proj"),
            mlp("feed_forward.shared_expert.down_proj"),
            *routed("feed_forward", axis=1, summed=False),
        ),
        readers=(
            *QKV,
            *experts_readers("feed_forward"),
            "feed_forward.{gate,up}_proj",
            "feed_forward.shared_expert.{gate,up}_proj",
        ),
        norms=PRE_NORMS,
    ),
    Family(
        name="qwen-shared-moe",
        model_types=("qwen2_moe", "qwen3_next", "qwen3_5_moe_text", "qwen3_5_text"),
        layout=DECODER,
        writers=(
            attention(),
            attention("linear_attn.out_proj"),
            mlp(),
            mlp("mlp.shared_expert.down_proj"),
            *routed("mlp"),
        ),
        readers=(
            *QKV,
            *GLU,
            *DELTA_NET,
            *_MOE,
            "mlp.shared_expert.{gate,up}_proj",
            "mlp.shared_expert_gate",
        ),
        norms=PRE_NORMS,
    ),
    Family(
        name="deepseek",
        model_types=(
            "deepseek_v2",
            "deepseek_v3",
            "glm4_moe",
            "glm4_moe_lite",
            "dots1",
            "ernie4_5_moe",
            "exaone_moe",
            "solar_open",
        ),  # fmt: skip
        layout=DECODER,
        writers=(attention(), mlp(), mlp("mlp.shared_experts.down_proj"), *routed("mlp")),
        readers=(
            *QKV,
            *LATENT,
            *GLU,
            *_MOE,
            "mlp.shared_experts.{gate,up}_proj",
            "mlp.gate.moe_statics.e_score_correction_bias",
        ),
        norms=PRE_NORMS,
    ),
    Family(
        name="hunyuan-moe",
        model_types=("hunyuan_v1_moe",),
        layout=DECODER,
        writers=(attention(), mlp(), mlp("mlp.shared_mlp.down_proj"), *routed("mlp")),
        readers=(
            *QKV,
            *GLU,
            *_MOE,
            "self_attn.{query,key}_layernorm",
            "mlp.gate.wg",
            "mlp.shared_mlp.{gate,up}_proj",
        ),
        norms=PRE_NORMS,
    ),
    Family(
        name="granite-moe",
        model_types=("granitemoe", "granitemoeshared", "granitemoehybrid"),
        layout=DECODER,
        writers=(
            attention(),
            attention("mamba.out_proj"),
            mlp("shared_mlp.output_linear"),
            *routed(_GRANITE),
        ),
        readers=(*QKV, *mamba_readers("mamba"), *experts_readers(_GRANITE), "shared_mlp.input_linear"),
        norms=PRE_NORMS,
    ),
    Family(
        name="minimax-text-01",
        model_types=("minimax",),
        layout=DECODER,
        writers=(attention(), attention("self_attn.out_proj"), *routed("mlp")),
        readers=(*QKV, *_MOE, "self_attn.{norm,output_gate}"),
        norms=PRE_NORMS,
        refusals=(Refusal(POST_NORM_STREAM),),
    ),
)

HYBRIDS: tuple[Family, ...] = (
    Family(
        name="lfm2",
        model_types=("lfm2", "lfm2_moe"),
        layout=_LFM2,
        writers=(
            attention("self_attn.out_proj"),
            attention("conv.out_proj"),
            mlp("feed_forward.w2"),
            *routed("feed_forward"),
        ),
        readers=(
            *QKV,
            *experts_readers("feed_forward"),
            "conv.{conv,in_proj}",
            "feed_forward.{w1,w3}",
        ),
        norms=("{operator,ffn}_norm",),
    ),
    Family(
        name="attention-mamba",
        model_types=("falcon_h1", "jamba", "bamba"),
        layout=_FINAL_LAYERNORM,
        writers=(
            attention(),
            attention("mamba.out_proj"),
            mlp("feed_forward.down_proj"),
            *routed("feed_forward"),
        ),
        readers=(
            *QKV,
            *mamba_readers("mamba"),
            *experts_readers("feed_forward"),
            "feed_forward.{gate,up}_proj",
        ),
        norms=("{input,pre_ff}_layernorm",),
    ),
    Family(
        name="nemotron-h",
        model_types=("nemotron_h",),
        layout=Layout(DECODER_ROOTS, blocks="layers", embedding="embeddings", final_norm="norm_f"),
        writers=(
            attention("mixer.out_proj"),
            attention("mixer.o_proj"),
            mlp("mixer.down_proj"),
            mlp("mixer.shared_experts.down_proj"),
            *routed("mixer"),
        ),
        readers=(
            "mixer.{q,k,v,up}_proj",
            *mamba_readers("mixer"),
            *experts_readers("mixer"),
            "mixer.experts.up_proj",
            "mixer.shared_experts.up_proj",
        ),
        norms=("norm",),
    ),
    Family(
        name="mamba",
        model_types=("mamba", "mamba2", "falcon_mamba"),
        layout=Layout(("backbone", ""), blocks="layers", embedding="embeddings", final_norm="norm_f"),
        writers=(attention("mixer.out_proj"),),
        readers=mamba_readers("mixer"),
        norms=("norm",),
    ),
    Family(
        name="recurrent-gemma",
        model_types=("recurrent_gemma",),
        layout=Layout(DECODER_ROOTS, blocks="layers", embedding="embed_tokens", final_norm="final_norm"),
        writers=(
            attention("temporal_block.linear_out"),
            attention("temporal_block.o_proj"),
            mlp("mlp_block.down_proj"),
        ),
        readers=(
            "temporal_block.{linear_x,linear_y,conv_1d}",
            "temporal_block.rg_lru.{recurrent_param,input_gate_weight,input_gate_bias}",
            "temporal_block.rg_lru.recurrent_gate_{weight,bias}",
            "temporal_block.{q,k,v}_proj",
            "mlp_block.{gate,up}_proj",
        ),
        norms=("{temporal,channel}_pre_norm",),
    ),
)
