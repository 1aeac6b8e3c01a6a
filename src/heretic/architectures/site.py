# SPDX-License-Identifier: Apache-2.0
"""What a network is made of, as data: the matrices that write into the residual stream.

A *site* is one parameter whose output is added to the residual stream, perhaps after a scalar, a gate or a
norm (algorithms section 1). An architecture adapter's whole output is a tuple of sites plus a coverage
report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

EMBEDDING_LAYER = -1


@dataclass(frozen=True, slots=True)
class Gain:
    """A norm with gain between a writer and the stream (Gemma 2/3, OLMo 2): y = gamma * v / rms(v).

    `path` is the module path of the norm; `form` says how the gain is stored: `weight` (gamma = weight) or
    `one_plus_weight` (gamma = 1 + weight); `kind` is the normalisation.
    """

    path: str
    form: Literal["weight", "one_plus_weight"]
    kind: Literal["rms", "layer"] = "rms"


@dataclass(frozen=True, slots=True)
class Site:
    """One matrix that writes into the residual stream.

    path: parameter path in the loaded model, e.g. `model.layers.3.self_attn.o_proj.weight`.
    layer: 0-based index of the decoder block; -1 for the embedding.
    component: `attn.o_proj` (any token mixer), `mlp.down_proj` (dense, expert, shared expert), `embedding`,
    ...
    residual_axis: axis of ONE matrix (the fused expert axis not counted) that indexes the stream: 0 for a
    Linear
        [d, m], 1 for Conv1D [m, d], embeddings [V, d] and transposed experts [E, m, d].
    hook: module path whose output is the written vector before any norm: the Linear itself; for routed
    experts the
        module that returns the routed sum, where one edit for all experts is exact (algorithms 1.2).
    experts: number of fused slices of a 3-D parameter [E, ., .]; None for a plain matrix.
    bias: parameter path of the bias ([d], or [E, d] for experts); None where there is none.
    gain: the norm that follows the writer, if any.
    """

    path: str
    layer: int
    component: str
    residual_axis: Literal[0, 1]
    hook: str
    experts: int | None = None
    bias: str | None = None
    gain: Gain | None = None


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """One writer in the coverage report (algorithms 1.5). status: `reachable`, `excluded: why`, `unsupported:
    why`."""

    path: str
    layer: int
    component: str
    shape: tuple[int, ...]
    residual_axis: int
    status: str
    bias: bool = False
    gain: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """The resolved structure of one loaded model.

    blocks: module paths of the decoder blocks in order (layer l is `blocks[l]`); their output is the stream.
    sites: every writer inside the blocks. embedding: the token embedding as a site, or None when tied use or
    layout forbids it. final_norm: module path of the norm before the head. tied: embedding and head share one
    tensor.
    """

    family: str
    hidden_size: int
    blocks: tuple[str, ...]
    sites: tuple[Site, ...]
    embedding: Site | None
    final_norm: str
    head: str
    tied: bool
    coverage: tuple[CoverageRow, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def layers(self) -> int:
        """Number of decoder blocks, L."""
        return len(self.blocks)

    @property
    def components(self) -> tuple[str, ...]:
        """Component names present, in order of first appearance."""
        return tuple(dict.fromkeys(site.component for site in self.sites))

    def covered_share(self) -> float:
        """Share of residual-writing parameters (by count of elements) that are reachable; 1.0 = complete.

        Over the decoder blocks; embedding rows (layer -1) are listed apart (algorithms 1.5).
        """
        total = reachable = 0
        for row in self.coverage:
            if row.layer == EMBEDDING_LAYER:
                continue
            size = 1
            for length in row.shape:
                size *= length
            total += size
            reachable += size if row.status == "reachable" else 0
        return reachable / total if total else 1.0
