# SPDX-License-Identifier: Apache-2.0
"""Dense families (requirement R-MOD-22). Data only; the words are explained in `families`."""

from __future__ import annotations

from heretic.architectures.families import (
    DECODER,
    DECODER_ROOTS,
    GLU,
    LATENT,
    MLP,
    POST_NORM_STREAM,
    PRE_NORMS,
    QKV,
    Family,
    Layout,
    Refusal,
    Writer,
    attention,
    mlp,
)

_TRANSFORMER = ("transformer", "")
_GPT2 = Layout(_TRANSFORMER, blocks="h", embedding="wte", final_norm="ln_f", positions=("wpe",))
_BLOOM = Layout(
    _TRANSFORMER,
    blocks="h",
    embedding="word_embeddings",
    final_norm="ln_f",
    embedding_norm="word_embeddings_layernorm",
)
_NEOX_READERS = ("{attention,self_attention}.query_key_value", "mlp.dense_h_to_4h")

_LIKE_LLAMA = """
    llama mistral ministral ministral3 qwen2 qwen3 gemma vaultgemma phi3 olmo glm smollm3 cohere cohere2
    stablelm granite nemotron seed_oss ernie4_5 arcee bitnet helium internlm3 iquestcoder jais2 cwm
    qwen2_vl_text qwen2_5_vl_text qwen3_vl_text
"""

LLAMA = Family(
    name="llama",
    model_types=tuple(_LIKE_LLAMA.split()),
    layout=DECODER,
    writers=(attention(), mlp()),
    readers=(*QKV, *GLU, "self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
    norms=(*PRE_NORMS, "pre_feedforward_layernorm"),
)

DENSE: tuple[Family, ...] = (
    LLAMA,
    Family(
        name="hunyuan-dense",
        model_types=("hunyuan_v1_dense",),
        layout=DECODER,
        writers=(attention(), mlp()),
        readers=(*QKV, *GLU, "self_attn.{query,key}_layernorm"),
        norms=PRE_NORMS,
    ),
    Family(
        name="minicpm3",
        model_types=("minicpm3", "youtu"),
        layout=DECODER,
        writers=(attention(), mlp()),
        readers=(*QKV, *LATENT, *GLU),
        norms=PRE_NORMS,
    ),
    Family(
        name="apertus",
        model_types=("apertus",),
        layout=DECODER,
        writers=(attention(), mlp()),
        readers=(*QKV, *GLU, "mlp.act_fn.alpha_{p,n}"),
        norms=("{attention,feedforward}_layernorm",),
    ),
    Family(
        name="gemma-post-norm",
        model_types=("gemma2", "gemma3_text"),
        layout=DECODER,
        writers=(
            Writer("self_attn.o_proj", "attn.o_proj", "post_attention_layernorm", "one_plus_weight"),
            Writer("mlp.down_proj", MLP, "post_feedforward_layernorm", "one_plus_weight"),
        ),
        readers=(*QKV, *GLU),
        norms=("input_layernorm", "pre_feedforward_layernorm"),
    ),
    Family(
        name="gemma4",
        model_types=("gemma4_text",),
        layout=Layout(
            DECODER_ROOTS,
            blocks="layers",
            embedding="embed_tokens",
            final_norm="norm",
            extras=("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm"),
        ),
        writers=(
            attention(norm="post_attention_layernorm"),
            mlp(norm="post_feedforward_layernorm"),
            Writer("per_layer_projection", "per_layer.projection", "post_per_layer_input_norm"),
        ),
        readers=(*QKV, *GLU, "per_layer_input_gate"),
        norms=("input_layernorm", "pre_feedforward_layernorm"),
        stream_scale="layer_scalar",
    ),
    Family(
        name="olmo-post-norm",
        model_types=("olmo2", "olmo3", "exaone4"),
        layout=DECODER,
        writers=(
            attention(norm="post_attention_layernorm"),
            mlp(norm="post_feedforward_layernorm"),
        ),
        readers=(*QKV, *GLU),
        norms=(),
    ),
    Family(
        name="glm4",
        model_types=("glm4",),
        layout=DECODER,
        writers=(attention(norm="post_self_attn_layernorm"), mlp(norm="post_mlp_layernorm")),
        readers=(*QKV, *GLU),
        norms=PRE_NORMS,
    ),
    Family(
        name="phi",
        model_types=("phi",),
        layout=Layout(DECODER_ROOTS, blocks="layers", embedding="embed_tokens", final_norm="final_layernorm"),
        writers=(attention("self_attn.dense"), mlp("mlp.fc2")),
        readers=(*QKV, "mlp.fc1"),
        norms=("input_layernorm",),
    ),
    Family(
        name="starcoder2",
        model_types=("starcoder2",),
        layout=DECODER,
        writers=(attention(), mlp("mlp.c_proj")),
        readers=(*QKV, "mlp.c_fc"),
        norms=PRE_NORMS,
    ),
    Family(
        name="gpt2",
        model_types=("gpt2", "gpt_bigcode"),
        layout=_GPT2,
        writers=(attention("attn.c_proj"), mlp("mlp.c_proj")),
        readers=("attn.c_attn", "mlp.c_fc"),
        norms=("ln_{1,2}",),
    ),
    Family(
        name="gptj",
        model_types=("gptj", "codegen"),
        layout=_GPT2,
        writers=(attention("attn.out_proj"), mlp("mlp.fc_out")),
        readers=("attn.{q,k,v,qkv}_proj", "mlp.fc_in"),
        norms=("ln_1",),
    ),
    Family(
        name="gpt-neox",
        model_types=("gpt_neox",),
        layout=Layout(("gpt_neox", ""), blocks="layers", embedding="embed_in", final_norm="final_layer_norm"),
        writers=(attention("attention.dense"), mlp("mlp.dense_4h_to_h")),
        readers=_NEOX_READERS,
        norms=PRE_NORMS,
    ),
    Family(
        name="bloom",
        model_types=("bloom",),
        layout=_BLOOM,
        writers=(attention("self_attention.dense"), mlp("mlp.dense_4h_to_h")),
        readers=_NEOX_READERS,
        norms=PRE_NORMS,
        refusals=(Refusal(POST_NORM_STREAM, "apply_residual_connection_post_layernorm", True),),
    ),
    Family(
        name="falcon",
        model_types=("falcon",),
        layout=Layout(_TRANSFORMER, blocks="h", embedding="word_embeddings", final_norm="ln_f"),
        writers=(attention("self_attention.dense"), mlp("mlp.dense_4h_to_h")),
        readers=_NEOX_READERS,
        norms=(*PRE_NORMS, "ln_{attn,mlp}"),
    ),
    Family(
        name="mpt",
        model_types=("mpt",),
        layout=Layout(_TRANSFORMER, blocks="blocks", embedding="wte", final_norm="norm_f"),
        writers=(attention("attn.out_proj"), mlp("ffn.down_proj")),
        readers=("attn.Wqkv", "ffn.up_proj"),
        norms=("norm_{1,2}",),
    ),
    Family(
        name="opt",
        model_types=("opt",),
        layout=Layout(
            ("model.decoder", "decoder"),
            blocks="layers",
            embedding="embed_tokens",
            final_norm="final_layer_norm",
            positions=("embed_positions",),
        ),
        writers=(attention("self_attn.out_proj"), mlp("fc2")),
        readers=(*QKV, "fc1"),
        norms=("self_attn_layer_norm", "final_layer_norm"),
        refusals=(Refusal(POST_NORM_STREAM, "do_layer_norm_before", False),),
    ),
)
