# SPDX-License-Identifier: Apache-2.0
"""Total matching of one decoder block: every parameter is a writer, the bias of one, a reader or a norm, or
is left over.

The residual axis comes from the type of the module that holds the matrix, never from its shape, because
square matrices exist (requirement R-MOD-23).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from heretic.architectures.coverage import REACHABLE, unsupported
from heretic.architectures.families import Family, Writer, expand
from heretic.architectures.site import CoverageRow, Gain, Site

# Names that quantisers add beside the `weight` of a linear module; they belong to it.
_QUANTISER_LEAVES = re.compile(
    r"(weight_|input_|activation_)?(scales?|scale_inv|zeros?|zero_point|SCB|absmax)"
)
_FUSED_COMPANION = re.compile(r"_(scale_inv|scales|blocks|scale)$")


@dataclass(slots=True)
class BlockMatch:
    """What was found in one block: sites, coverage rows, and the parameters nothing explains (path ->
    reason)."""

    sites: list[Site] = field(default_factory=list)
    rows: list[CoverageRow] = field(default_factory=list)
    unexplained: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=512)
def _pattern(name: str) -> re.Pattern[str]:
    choices = (re.escape(choice).replace(r"\*", r"\d+") for choice in expand(name))
    return re.compile("|".join(choices))


def matches(name: str, path: str) -> bool:
    """Whether the relative `path` is one that `name` stands for (`{a,b}` alternatives, `*` for a number)."""
    return _pattern(name).fullmatch(path) is not None


def match_block(block: nn.Module, prefix: str, layer: int, family: Family) -> BlockMatch:
    """Explains every parameter of `block`, whose module path is `prefix`, by the data of `family`."""
    found = BlockMatch()
    modules: Mapping[str, nn.Module] = dict(block.named_modules(remove_duplicate=False))
    parameters = dict(block.named_parameters(remove_duplicate=False))
    gains = {name for writer in family.writers if writer.norm is not None for name in expand(writer.norm)}
    for relative, parameter in parameters.items():
        owner, _, leaf = relative.rpartition(".")
        stem = owner if leaf in ("weight", "bias") or _QUANTISER_LEAVES.fullmatch(leaf) else relative
        writer = _writer_of(family, relative, stem, leaf)
        if writer is not None:
            if leaf == "weight" or stem == relative:
                _add_site(found, _Place(modules, parameters, prefix, layer), relative, parameter, writer)
        elif not _is_known_reader(family, gains, relative, stem):
            found.unexplained[f"{prefix}.{relative}"] = (
                f"no rule of family {family.name} says whether it writes into the residual stream"
            )
    _add_packed(found, _Place(modules, parameters, prefix, layer), family)
    found.sites = _share_hooks(found.sites)
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    modules: Mapping[str, nn.Module]
    parameters: Mapping[str, Tensor]
    prefix: str
    layer: int

    def absolute(self, relative: str) -> str:
        return f"{self.prefix}.{relative}"


def _writer_of(family: Family, relative: str, stem: str, leaf: str) -> Writer | None:
    """The writer that a parameter belongs to, as its matrix, its bias or a quantiser's companion."""
    for writer in family.writers:
        if writer.fused_axis is None:
            if stem != relative and matches(writer.path, stem):
                return writer
        elif matches(writer.path, relative):
            return writer
    return None


def _is_known_reader(family: Family, gains: set[str], relative: str, stem: str) -> bool:
    plain = relative.removesuffix("_bias")
    bare = _FUSED_COMPANION.sub("", plain).removesuffix("_bias")
    fused = {
        path for writer in family.writers if writer.fused_axis is not None for path in expand(writer.path)
    }
    if bare in fused:
        return not relative.endswith("_blocks")  # MXFP4 slices that replaced the matrix itself
    names = {relative, stem, plain, bare}
    return stem in gains or any(
        matches(rule, name) for rule in (*family.readers, *family.norms) for name in names
    )


def _add_site(found: BlockMatch, place: _Place, relative: str, parameter: Tensor, writer: Writer) -> None:
    owner = relative if writer.fused_axis is not None else relative.rpartition(".")[0]
    path = place.absolute(relative)
    module = place.modules.get(owner)
    problem, axis, shape = _layout(module, parameter, writer)
    gain = None
    if writer.norm is not None:
        norm = place.modules.get(writer.norm)
        if norm is None:
            problem = f"its norm {writer.norm} is missing"
        else:
            kind: Literal["rms", "layer"] = "layer" if isinstance(norm, nn.LayerNorm) else "rms"
            gain = Gain(place.absolute(writer.norm), writer.norm_form, kind)
    bias = f"{relative}_bias" if writer.fused_axis is not None else f"{owner}.bias"
    has_bias = bias in place.parameters
    row = CoverageRow(
        path=path,
        layer=place.layer,
        component=writer.component,
        shape=shape,
        residual_axis=axis,
        status=REACHABLE if problem is None else unsupported(problem),
        bias=has_bias,
        gain=gain is not None,
    )
    found.rows.append(row)
    if problem is not None:
        found.unexplained[path] = problem
        return
    hook = owner if writer.hook is None else writer.hook
    found.sites.append(
        Site(
            path=path,
            layer=place.layer,
            component=writer.component,
            residual_axis=axis,
            hook=place.absolute(hook),
            experts=shape[0] if writer.fused_axis is not None else None,
            bias=place.absolute(bias) if has_bias else None,
            gain=gain,
        )
    )


def _layout(
    module: nn.Module | None, parameter: Tensor, writer: Writer
) -> tuple[str | None, Literal[0, 1], tuple[int, ...]]:
    """(problem, residual axis, shape) of a writer, by the type of the module that holds it."""
    shape = tuple(parameter.shape)
    if writer.fused_axis is not None:
        problem = None if len(shape) == 3 else f"a fused experts tensor has 3 axes, this one has {len(shape)}"
        return problem, writer.fused_axis, shape
    if isinstance(module, Conv1D):
        return None, 1, shape
    sizes = linear_sizes(module)
    if sizes is not None:
        return None, 0, sizes
    return f"the residual axis of a {type(module).__name__} is not known", 0, shape


def linear_sizes(module: nn.Module | None) -> tuple[int, int] | None:
    """(out, in) of a linear module, also of a quantised one, whose stored weight has another shape or no
    name."""
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def _add_packed(found: BlockMatch, place: _Place, family: Family) -> None:
    """Writers whose quantised module keeps its weight in buffers: the hook form works, the weight form does
    not."""
    known = {row.path for row in found.rows}
    for relative, module in place.modules.items():
        path = f"{relative}.weight"
        if linear_sizes(module) is None or place.absolute(path) in known:
            continue
        for writer in family.writers:
            if writer.fused_axis is None and matches(writer.path, relative):
                _add_site(found, place, path, torch.empty(0, 0), writer)


def _share_hooks(sites: list[Site]) -> list[Site]:
    """Where the experts of an MoE module have to be hooked at the module itself, all its writers share that
    hook.

    Its output is the sum of routed and shared experts, each once, so one edit covers each of them once.
    """
    wide = {site.hook for site in sites if site.hook != site.path.rpartition(".")[0]}
    result = []
    for site in sites:
        module = next((hook for hook in wide if site.path.startswith(f"{hook}.")), site.hook)
        result.append(replace(site, hook=module))
    return result
