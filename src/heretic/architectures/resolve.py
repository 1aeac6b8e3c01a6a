# SPDX-License-Identifier: Apache-2.0
"""From a loaded network to its `Architecture`, or a refusal that names the parameter (algorithms 1.1 to 1.5).

Matching is total and every layer is resolved on its own, so hybrids and leading dense layers need no special
case (requirements R-MOD-20 to R-MOD-30).

For consumers of `Site.hook`: the output of the hooked module, or its first element if it is a tuple, is the
written vector before any norm, [rows, positions, d] or flattened [rows * positions, d] (row-major). Several
sites may share one hook: experts in a list, and all experts of a Llama 4 layer, are hooked at the module that
returns their sum. They then have one layer, component and gain, and the edit is applied once per hook:
`sites_by_hook`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

from heretic.architectures.coverage import REACHABLE, excluded, unsupported
from heretic.architectures.families import Family, Refusal
from heretic.architectures.families_table import FAMILIES, FAMILY_OF
from heretic.architectures.matching import BlockMatch, match_block
from heretic.architectures.site import EMBEDDING_LAYER, Architecture, CoverageRow, Site
from heretic.exceptions import UnsupportedArchitectureError

Prove = Callable[[nn.Module, Architecture], None]
"""Raises `UnsupportedArchitectureError` when a forward pass contradicts the architecture (algorithms 1.6)."""

PARTIAL_HINT = (
    "Pass --allow-partial to go on without it; the uncovered share is recorded and nothing is guaranteed."
)


def resolve(network: nn.Module, *, allow_partial: bool = False, prove: Prove | None = None) -> Architecture:
    """The architecture of a loaded transformers model (or of one on the meta device).

    allow_partial: parameters without an explanation become coverage rows `unsupported: reason` instead of an
    error.
    prove: forward proof for a `model_type` that no family lists; without it such a model is refused.
    Raises `UnsupportedArchitectureError` naming the parameters that nothing explains, or why the family is
    refused.
    """
    config = text_config(network)
    model_type = str(getattr(config, "model_type", ""))
    family = FAMILY_OF.get(model_type)
    if family is not None:
        return _resolve_as(network, config, family, allow_partial=allow_partial)
    return _resolve_unknown(network, config, model_type, allow_partial=allow_partial, prove=prove)


def resolve_config_only(config: PretrainedConfig, *, allow_partial: bool = False) -> Architecture:
    """The architecture a configuration describes, without weights: the network is built on the meta device.

    A `model_type` outside the table is accepted with a note that the proof is still to come (at load).
    Raises as `resolve`, and when transformers has no causal language model for the configuration.
    """
    with torch.device("meta"):
        for loader in (AutoModelForCausalLM, AutoModelForImageTextToText):
            if type(config) in loader._model_mapping:
                network: nn.Module = loader.from_config(config)  # type: ignore[no-untyped-call]  # library
                return resolve(network, allow_partial=allow_partial, prove=lambda network, architecture: None)
    raise UnsupportedArchitectureError(
        f"transformers has no language model class for the configuration {type(config).__name__}.",
        hint="Give a text model or a multimodal model with a text part.",
    )


def text_config(network: nn.Module) -> PretrainedConfig:
    """The configuration of the language part; raises `UnsupportedArchitectureError` for a module without
    one."""
    config = getattr(network, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise UnsupportedArchitectureError(
            f"A {type(network).__name__} has no configuration, so its family is unknown.",
            hint="Load the model with transformers.",
        )
    return config.get_text_config(decoder=True)


def gain_vector(network: nn.Module, site: Site) -> Tensor | None:
    """gamma [d] of the norm behind a site in float32 on the norm's device; None where no norm follows."""
    if site.gain is None:
        return None
    norm = network.get_submodule(site.gain.path)
    with align_module_device(norm):  # offloaded weights are fetched for the time of the context
        weight = norm.get_parameter("weight").detach().float().clone()
    return weight + 1.0 if site.gain.form == "one_plus_weight" else weight


def stream_scale(network: nn.Module, architecture: Architecture, layer: int) -> float:
    """The scalar by which block `layer` multiplies the stream it received; 1 but for Gemma 4."""
    name = architecture.family.removeprefix("generic:")
    buffer = next(family.stream_scale for family in FAMILIES if family.name == name)
    return 1.0 if buffer is None else float(network.get_buffer(f"{architecture.blocks[layer]}.{buffer}"))


def sites_by_hook(sites: Iterable[Site]) -> dict[str, tuple[Site, ...]]:
    """Hook path -> its sites, in order. The activation form applies one edit per hook, whatever the number of
    sites."""
    groups: dict[str, tuple[Site, ...]] = {}
    for site in sites:
        groups[site.hook] = (*groups.get(site.hook, ()), site)
    for hook, members in groups.items():
        assert len({(site.layer, site.component, site.gain) for site in members}) == 1, hook
    return groups


def _resolve_unknown(
    network: nn.Module, config: PretrainedConfig, model_type: str, *, allow_partial: bool, prove: Prove | None
) -> Architecture:
    """Tries every known layout; one is taken only if it explains all parameters and `prove` confirms it."""
    failures: list[tuple[int, Family, UnsupportedArchitectureError]] = []
    for family in FAMILIES:
        found = None
        try:
            found = _resolve_as(network, config, family, allow_partial=False)
            if prove is None:
                raise UnsupportedArchitectureError(
                    f"The layout of family {family.name} would fit, but no forward pass has proven it."
                )
            prove(network, found)
            return _as_generic(found, model_type, "explains every parameter")
        except UnsupportedArchitectureError as error:
            # A layout that fits and fails the proof is the nearest; one without blocks is the farthest.
            distance = 0 if found is not None else len(error.details) or 10**6
            failures.append((distance, family, error))
    distance, closest, nearest = min(failures, key=lambda failure: failure[0])
    if allow_partial:
        partial = _as_generic(
            _resolve_as(network, config, closest, allow_partial=True), model_type, nearest.message
        )
        # Without the proof not even the matched writers are known to be all: nothing counts as covered.
        unproven = tuple(replace(row, status=unsupported("not proven")) for row in partial.coverage)
        return replace(partial, coverage=unproven) if distance == 0 else partial
    raise UnsupportedArchitectureError(
        f"The model_type {model_type!r} is not known and no known layout fits it. Nearest: {nearest.message}",
        hint=PARTIAL_HINT,
        details=nearest.details,
    )


def _as_generic(found: Architecture, model_type: str, remark: str) -> Architecture:
    note = f"model_type {model_type!r} is not in the table; layout {found.family}: {remark}"
    return replace(found, family=f"generic:{found.family}", notes=(*found.notes, note))


@dataclass(frozen=True, slots=True)
class _Outside:
    """What lies around the blocks: the embedding as a site, coverage rows, unexplained parameters, notes."""

    embedding: Site | None
    rows: tuple[CoverageRow, ...]
    unexplained: dict[str, str]
    notes: tuple[str, ...]


def _resolve_as(
    network: nn.Module, config: PretrainedConfig, family: Family, *, allow_partial: bool
) -> Architecture:
    refusal = next((item for item in family.refusals if _applies(item, config)), None)
    if refusal is not None and not allow_partial:
        raise UnsupportedArchitectureError(
            f"The model_type {config.model_type!r} cannot be edited at all writers: {refusal.reason}.",
            hint=PARTIAL_HINT,
        )
    root = _find_root(network, family)
    blocks = tuple(
        _join(root, family.layout.blocks, str(index)) for index in range(_depth(network, root, family))
    )
    matches = [match_block(network.get_submodule(path), path, i, family) for i, path in enumerate(blocks)]
    head = _head_path(network)
    outside = _around(network, root, head, family)
    unexplained = {
        key: why for match in matches for key, why in match.unexplained.items()
    } | outside.unexplained
    unexplained |= _silent_blocks(blocks, matches) | _shared_parameters(network, matches)
    if unexplained and not allow_partial:
        raise _unexplained_error(config, unexplained)
    rows = [row for match in matches for row in match.rows] + list(outside.rows)
    rows += _unsupported_rows(network, blocks, unexplained, {row.path for row in rows})
    notes = outside.notes
    if refusal is not None:
        rows = [replace(row, status=unsupported(refusal.reason)) for row in rows]
        notes = (*notes, f"no statement about all writers is possible: {refusal.reason}")
    return Architecture(
        family=family.name,
        hidden_size=int(config.hidden_size),
        blocks=blocks,
        sites=tuple(site for match in matches for site in match.sites),
        embedding=outside.embedding,
        final_norm=_join(root, family.layout.final_norm),
        head=head,
        tied=_tied(network, head),
        coverage=tuple(rows),
        notes=notes,
    )


def _applies(refusal: Refusal, config: PretrainedConfig) -> bool:
    return refusal.attribute is None or getattr(config, refusal.attribute, None) == refusal.value


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _module(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def _find_root(network: nn.Module, family: Family) -> str:
    """The module path that holds the blocks; wrappers of multimodal models are followed."""
    for root in family.layout.roots:
        blocks = _module(network, _join(root, family.layout.blocks))
        embedding = _module(network, _join(root, family.layout.embedding))
        if isinstance(blocks, nn.ModuleList) and embedding is not None:
            return root
    raise UnsupportedArchitectureError(
        f"No decoder blocks of family {family.name} were found in {type(network).__name__}: "
        f"looked for {family.layout.blocks!r} beside {family.layout.embedding!r} "
        f"under {', '.join(root or 'the top' for root in family.layout.roots)}.",
        hint="The model may need a newer version of transformers, or is not a decoder.",
    )


def _depth(network: nn.Module, root: str, family: Family) -> int:
    blocks = network.get_submodule(_join(root, family.layout.blocks))
    assert isinstance(blocks, nn.ModuleList)
    return len(blocks)


def _head_path(network: nn.Module) -> str:
    """Module path of the language-model head; empty for a bare decoder."""
    output = getattr(network, "get_output_embeddings", lambda: None)()
    return next(
        (name for name, module in network.named_modules() if output is not None and module is output), ""
    )


def _tied(network: nn.Module, head: str) -> bool:
    inputs = getattr(network, "get_input_embeddings", lambda: None)()
    output = _module(network, head) if head else None
    weights = getattr(inputs, "weight", None), getattr(output, "weight", None)
    return weights[0] is not None and weights[0] is weights[1]


def _around(network: nn.Module, root: str, head: str, family: Family) -> _Outside:
    """Accounts for the parameters of the root that lie in no block: embeddings, positions, final norm."""
    layout = family.layout
    holder = network.get_submodule(root) if root else network
    known = {layout.embedding, layout.final_norm, layout.embedding_norm, *layout.positions, *layout.extras}
    rows: list[CoverageRow] = []
    unexplained: dict[str, str] = {}
    for relative, parameter in holder.named_parameters(remove_duplicate=False):
        owner = relative.rpartition(".")[0]
        path = _join(root, relative)
        if relative.startswith(f"{layout.blocks}.") or (head and path.startswith(f"{head}.")):
            continue
        if not root and relative.partition(".")[0] not in {name.partition(".")[0] for name in known if name}:
            continue  # a bare decoder: what lies beside it is not part of the language model
        if owner in layout.positions:
            shape = tuple(parameter.shape)
            status = excluded("position embedding")
            rows.append(CoverageRow(path, EMBEDDING_LAYER, "position_embedding", shape, 1, status))
        elif owner not in known:
            unexplained[path] = f"it lies outside the blocks and family {family.name} does not know it"
    embedding, row, notes = _embedding(network, root, head, family)
    foreign = _foreign_towers(network, root, head)
    if foreign:
        notes = (*notes, f"left alone, outside the language model: {', '.join(foreign)}")
    return _Outside(embedding, (row, *rows), unexplained, notes)


def _embedding(
    network: nn.Module, root: str, head: str, family: Family
) -> tuple[Site | None, CoverageRow, tuple[str, ...]]:
    path = _join(root, family.layout.embedding)
    module = network.get_submodule(path)
    weight = f"{path}.weight"
    shape = tuple(network.get_parameter(weight).shape)
    reason = None
    if _tied(network, head):
        reason = "tied to the head, editing it would change the logits directly"
    elif family.layout.embedding_norm is not None:
        reason = f"a norm ({family.layout.embedding_norm}) lies between it and the stream"
    elif not isinstance(module, nn.Embedding):
        reason = f"a {type(module).__name__} is not a plain table"
    status = REACHABLE if reason is None else excluded(reason)
    row = CoverageRow(weight, EMBEDDING_LAYER, "embedding", shape, 1, status)
    if reason is not None:
        return None, row, (f"token embedding {status}",)
    return Site(weight, EMBEDDING_LAYER, "embedding", residual_axis=1, hook=path), row, ()


def _foreign_towers(network: nn.Module, root: str, head: str) -> list[str]:
    """Top modules with parameters outside root and head: vision and audio towers, projectors (R-MOD-28)."""
    if not root:
        return []
    names = {
        ".".join(path.split(".")[:2]) if path.startswith("model.") else path.partition(".")[0]
        for path, _ in network.named_parameters()
        if not path.startswith(f"{root}.") and not (head and path.startswith(f"{head}."))
    }
    return sorted(names)


def _silent_blocks(blocks: tuple[str, ...], matches: list[BlockMatch]) -> dict[str, str]:
    pairs = zip(blocks, matches, strict=True)
    return {path: "no writer was found in this block" for path, match in pairs if not match.rows}


def _shared_parameters(network: nn.Module, matches: list[BlockMatch]) -> dict[str, str]:
    """Writers that are one tensor under two names would be edited twice."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for site in (site for match in matches for site in match.sites):
        parameter = parameters.get(site.path)
        if parameter is None:
            continue
        earlier = first.setdefault(id(parameter), site.path)
        if earlier != site.path:
            shared[site.path] = f"it is the same tensor as {earlier}, one edit per layer is impossible"
    return shared


def _unsupported_rows(
    network: nn.Module, blocks: tuple[str, ...], unexplained: dict[str, str], present: set[str]
) -> list[CoverageRow]:
    """Rows for parameters nobody explains; outside the blocks they count with layer 0, where they act
    first."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    rows = []
    for path, why in unexplained.items():
        if path in present or path not in parameters:
            continue
        layer = next((i for i, block in enumerate(blocks) if path.startswith(f"{block}.")), 0)
        rows.append(CoverageRow(path, layer, "unknown", tuple(parameters[path].shape), 0, unsupported(why)))
    return rows


def _unexplained_error(config: PretrainedConfig, unexplained: dict[str, str]) -> UnsupportedArchitectureError:
    path, why = next(iter(unexplained.items()))
    more = f" and {len(unexplained) - 1} more" if len(unexplained) > 1 else ""
    return UnsupportedArchitectureError(
        f"The parameter {path}{more} of model_type {config.model_type!r} could not be placed: {why}.",
        hint=PARTIAL_HINT,
        details=tuple(f"{name}: {reason}" for name, reason in unexplained.items()),
    )
