# SPDX-License-Identifier: Apache-2.0
"""Families as data: which matrices of a decoder block write into the stream, and what every other parameter
is.

A family names modules and parameters relative to one decoder block. A name may hold `{a,b}` alternatives and
`*` for one path part (the number of an expert in a list). `heretic.architectures.resolve` matches these names
against a loaded network and refuses it if one parameter is left over, so nothing here needs to be complete to
be safe, only to be true (requirements R-MOD-20, R-MOD-21; algorithms 1.3).
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal

ATTENTION = "attn.o_proj"
MLP = "mlp.down_proj"


@dataclass(frozen=True, slots=True)
class Writer:
    """One kind of writer: a module (its `weight` and `bias`) or a fused 3-D parameter of an experts module.

    path: relative to the block. component: the word the search knows it by.
    norm: relative path of the norm between the writer and the stream (algorithms 1.4), `norm_form` its
    storage.
    fused_axis: residual axis of one slice of a fused parameter; None for a module, whose type decides the
    axis.
    hook: relative path of the module whose output holds the written vector, where that is not the writer
    itself: the experts module of a fused parameter; the whole MoE module where the experts see or return only
    parts (experts in a list, Llama 4).
    """

    path: str
    component: str
    norm: str | None = None
    norm_form: Literal["weight", "one_plus_weight"] = "weight"
    fused_axis: Literal[0, 1] | None = None
    hook: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts lie around the blocks; every path but `roots` is relative to the root that holds the
    blocks.

    positions: embeddings that also write to the stream and are never edited. embedding_norm: a norm between
    the token embedding and the stream. extras: other parameters at the root that are known not to write
    inside the blocks.
    """

    roots: tuple[str, ...]
    blocks: str
    embedding: str
    final_norm: str
    positions: tuple[str, ...] = ()
    embedding_norm: str | None = None
    extras: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A variant for which no statement about all writers is possible: the reason, and the setting that
    selects it."""

    reason: str
    attribute: str | None = None
    value: object = None


@dataclass(frozen=True, slots=True)
class Family:
    """One family: the `model_type`s of its text configuration and the meaning of each parameter of a block.

    stream_scale: a scalar buffer of the block that multiplies the whole stream at its end. It commutes with
    every edit, but what a block adds is then h_l - scale * h_(l-1).
    """

    name: str
    model_types: tuple[str, ...]
    layout: Layout
    writers: tuple[Writer, ...]
    readers: tuple[str, ...]
    norms: tuple[str, ...]
    refusals: tuple[Refusal, ...] = ()
    stream_scale: str | None = None


DECODER_ROOTS = (
    "model",
    "model.language_model",
    "language_model.model",
    "model.text_model",
    "language_model",
    "",
)
"""Bare text models first, then the wrappers of multimodal ones (requirement R-MOD-28)."""

DECODER = Layout(DECODER_ROOTS, blocks="layers", embedding="embed_tokens", final_norm="norm")
POST_NORM_STREAM = (
    "it normalises the stream itself after each addition, so what one writer adds is rescaled by the rest"
)


def expand(name: str) -> tuple[str, ...]:
    """All names that `{a,b}` alternatives stand for: `mlp.{gate,up}_proj` -> two names."""
    parts = re.split(r"\{([^}]*)\}", name)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return tuple("".join(choice) for choice in itertools.product(*choices))


def attention(path: str = "self_attn.o_proj", norm: str | None = None) -> Writer:
    """The output projection of a token mixer."""
    return Writer(path, ATTENTION, norm=norm)


def mlp(path: str = "mlp.down_proj", norm: str | None = None) -> Writer:
    """The output projection of a dense or shared MLP."""
    return Writer(path, MLP, norm=norm)


def routed(
    module: str, axis: Literal[0, 1] = 0, norm: str | None = None, *, summed: bool = True
) -> tuple[Writer, Writer]:
    """Routed experts of the MoE module `module`: fused as one 3-D parameter, or as a list of MLPs.

    summed: whether the experts module returns the routed sum, one line per token.
    """
    experts = f"{module}.experts"
    hook = experts if summed else module
    return (
        Writer(f"{experts}.down_proj", MLP, norm=norm, fused_axis=axis, hook=hook),
        Writer(f"{experts}.*.{{down_proj,w2}}", MLP, norm=norm, hook=module),
    )


def experts_readers(module: str) -> tuple[str, ...]:
    """What reads the stream inside an MoE module: the experts' inner projections and the router."""
    return (
        f"{module}.experts.gate_up_proj",
        f"{module}.experts.*.{{gate_proj,up_proj,w1,w3}}",
        f"{module}.{{gate,router}}",
        f"{module}.{{gate,router}}.e_score_correction_bias",
        f"{module}.e_score_correction_bias",
    )


QKV = ("self_attn.{q,k,v}_proj", "self_attn.{q,k}_norm", "self_attn.{q,k}_layernorm", "self_attn.qkv_proj")
LATENT = (
    "self_attn.{q_a,q_b,kv_a,kv_b}_proj",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.{q_a,kv_a}_layernorm",
)
GLU = ("mlp.{gate,up}_proj", "mlp.gate_up_proj")
DELTA_NET = (
    "linear_attn.in_proj_{qkvz,qkv,ba,z,b,a}",
    "linear_attn.{dt_bias,A_log,conv1d,norm}",
)
MAMBA_INSIDE = ("{A_log,D,dt_bias,conv1d,in_proj,x_proj,dt_proj,norm}", "{dt,b,c}_layernorm")
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")


def mamba_readers(module: str) -> tuple[str, ...]:
    """Everything inside a state-space mixer that comes before its output projection."""
    return tuple(f"{module}.{name}" for name in MAMBA_INSIDE)
