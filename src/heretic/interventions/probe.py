# SPDX-License-Identifier: Apache-2.0
"""Proof by forward pass, at load, that the sites of an architecture are what they claim (algorithms 1.6).

Two statements are checked along one random unit direction r at strength 1, each against the unedited pass:

1. *Module.* For each distinct (module type, layout): the weight form of the edit removes r from the module's
output
   and changes nothing else. It catches transposed experts, Conv1D and wrong axes on square matrices, which no
   shape test can. Quantised and offloaded weights are skipped here.
2. *Stream.* With the hook form of the edit on all sites, no block changes the stream along r. It catches a
missed
   writer, a norm that was taken for an input norm, and a path that bypasses a hook.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from heretic.architectures.resolve import sites_by_hook, stream_scale
from heretic.architectures.site import Architecture, Site
from heretic.exceptions import UnsupportedArchitectureError
from heretic.interventions.edit import Edit
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.weights import edited_bias, edited_matrix
from heretic.interventions.writers import Writers

logger = logging.getLogger("heretic.interventions")

PROBE_TOKENS = 32
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Allowed share of the unedited component (algorithms 1.6)."""


@dataclass(frozen=True, slots=True)
class StreamChange:
    """Per layer: length of the change of the stream along r, and how much of it rounding of the stream
    explains."""

    along: tuple[float, ...]
    rounding: tuple[float, ...]
    dtypes: frozenset[torch.dtype]


@dataclass(slots=True)
class _Calls:
    """First call of each watched module: its arguments, to be replayed."""

    arguments: dict[str, tuple[tuple[object, ...], dict[str, object]]] = field(default_factory=dict)


def probe(network: nn.Module, architecture: Architecture, *, seed: int = 0) -> None:
    """Runs both checks; costs two forward passes over `PROBE_TOKENS` tokens and a few small products.

    Every weight is restored bit for bit, also after an error. Raises `UnsupportedArchitectureError` naming
    the site or the layer that fails, with the measured share.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(architecture.hidden_size, generator=generator)
    direction /= direction.norm()
    edits = edits_along(network, architecture.sites, direction)
    tokens = _tokens(network, architecture, generator)
    watched = {_owner(site) for site in architecture.sites if site.experts is not None}
    calls = _Calls()
    with torch.no_grad():
        with _recording(network, watched, calls):
            before = stream_change(network, architecture, direction, tokens)
        for site in _representatives(network, architecture.sites):
            try:
                _probe_module(network, site, edits[site], direction, calls, generator)
            except torch.OutOfMemoryError:
                logger.warning(
                    "no memory left to probe the weights of %s; its hook is still probed", site.path
                )
        with hooked(network, edits):
            after = stream_change(network, architecture, direction, tokens)
    _judge_stream(network, architecture, before, after)
    logger.debug("probe passed: %d sites, family %s", len(architecture.sites), architecture.family)


def edits_along(network: nn.Module, sites: Iterable[Site], direction: Tensor) -> Mapping[Site, Edit]:
    """Edits that remove the unit vector `direction` [d] at strength 1 from each site, norms taken into
    account."""
    rows = tuple(PlanRow(site, direction[None], torch.ones(1, dtype=direction.dtype)) for site in sites)
    return Plan(rows).edits(Writers(network, direction.dtype))


@contextmanager
def edited_weights(network: nn.Module, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Weight form of `edits` for the time of the context; the old storage is put back, so every bit
    returns."""
    kept: list[tuple[nn.Parameter, Tensor]] = []

    def change(path: str, compute: Callable[[Tensor], Tensor]) -> None:
        parameter = network.get_parameter(path)
        kept.append((parameter, parameter.data))
        parameter.data = compute(parameter.data).to(parameter.dtype)

    try:
        for site, edit in edits.items():
            local = edit.to(network.get_parameter(site.path).device)
            change(site.path, partial(_new_weight, edit=local, site=site))
            if site.bias is not None:
                change(site.bias, partial(edited_bias, edit=local))
        yield
    finally:
        for parameter, data in reversed(kept):
            parameter.data = data


def _new_weight(data: Tensor, *, edit: Edit, site: Site) -> Tensor:
    """`edited_parameter` in the stored dtype, slice by slice: experts of one layer may fill half a device."""
    if site.experts is None:
        return edited_matrix(data, edit, site)
    out = data.clone()
    for expert in range(site.experts):
        out[expert] = edited_matrix(data[expert], edit, site).to(data.dtype)
    return out


@contextmanager
def hooked(network: nn.Module, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Hook form of residual-side edits, once per hook (see `sites_by_hook`), for the time of the context."""
    with ExitStack() as stack:
        for hook, sites in sites_by_hook(edits).items():
            edit = edits[sites[0]]

            def apply(module: nn.Module, inputs: object, output: object, edit: Edit = edit) -> object:
                first = _first(output)
                assert edit.read is not None
                local = edit.to(first.device, torch.promote_types(first.dtype, torch.float32))
                assert local.read is not None
                wide = first.to(local.left.dtype)
                changed = (wide + (wide @ local.read) @ local.left.T).to(first.dtype)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            stack.callback(network.get_submodule(hook).register_forward_hook(apply).remove)
        yield


def stream_change(
    network: nn.Module, architecture: Architecture, direction: Tensor, tokens: Tensor
) -> StreamChange:
    """Length over all tokens of r^T (h_l - h_(l-1)) for each block, from hooks on the blocks (algorithms
    1.7)."""
    along: list[float] = []
    rounding: list[float] = []
    dtypes: set[torch.dtype] = set()
    scales = [stream_scale(network, architecture, layer) for layer in range(architecture.layers)]

    def record(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        entering = args[0] if args else kwargs["hidden_states"]
        assert isinstance(entering, Tensor)
        leaving = _first(output)
        unit = direction.to(leaving.device, torch.float64)
        kept = entering.to(leaving.device).double() * scales[len(along)]
        change = (leaving.double() - kept) @ unit
        dtypes.add(leaving.dtype)
        epsilon = torch.finfo(leaving.dtype).eps
        along.append(float(change.norm()))
        rounding.append(float((leaving.double() * unit).norm()) * epsilon)

    with ExitStack() as stack:
        for path in architecture.blocks:
            block = network.get_submodule(path)
            stack.callback(block.register_forward_hook(record, with_kwargs=True).remove)
        network(input_ids=tokens, use_cache=False)
    return StreamChange(tuple(along), tuple(rounding), frozenset(dtypes))


def _owner(site: Site) -> str:
    """Path of the module that holds the parameter of the site."""
    return site.path.rpartition(".")[0]


def _first(output: object) -> Tensor:
    first = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(first, Tensor)
    return first


def _tokens(network: nn.Module, architecture: Architecture, generator: torch.Generator) -> Tensor:
    """Two rows of ordinary tokens: special ones (images, padding) lie at the two ends of a vocabulary."""
    row = next(row for row in architecture.coverage if row.component == "embedding")
    size = row.shape[0]
    tokens = torch.randint(size // 4, size // 2, (2, PROBE_TOKENS // 2), generator=generator)
    device = network.get_parameter(row.path).device
    return tokens if device.type == "meta" else tokens.to(device)  # offloaded: its hook moves the input


@contextmanager
def _recording(network: nn.Module, paths: set[str], calls: _Calls) -> Iterator[None]:
    """Keeps the arguments of the first call of each module in `paths`."""
    with ExitStack() as stack:
        for path in paths:

            def keep(
                module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], path: str = path
            ) -> None:
                calls.arguments.setdefault(path, (args, kwargs))

            handle = network.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _representatives(network: nn.Module, sites: Iterable[Site]) -> list[Site]:
    """One site per distinct (module type, layout) whose weights can be changed in place."""
    chosen: dict[tuple[object, ...], Site] = {}
    for site in sites:
        module = network.get_submodule(_owner(site))
        parameter = dict(module.named_parameters(recurse=False)).get(site.path.rpartition(".")[2])
        if (
            parameter is None
            or not parameter.is_floating_point()
            or parameter.is_meta
            or parameter.element_size() < 2
        ):
            continue
        gain = None if site.gain is None else (site.gain.form, site.gain.kind)
        key = (type(module), site.residual_axis, site.experts is not None, site.bias is not None, gain)
        chosen.setdefault(key, site)
    return list(chosen.values())


def _probe_module(
    network: nn.Module, site: Site, edit: Edit, direction: Tensor, calls: _Calls, generator: torch.Generator
) -> None:
    """Compares the module's output before and after the weight form of the edit."""
    module = network.get_submodule(_owner(site))
    weight = network.get_parameter(site.path)
    if site.experts is not None:
        if _owner(site) not in calls.arguments:
            return  # this module was not reached by the probe tokens; the stream check still covers its hook
        arguments, keywords = calls.arguments[_owner(site)]
    else:
        width = weight.shape[1 - site.residual_axis]
        arguments, keywords = (torch.randn(PROBE_TOKENS, width, generator=generator).to(weight),), {}
    before = _first(module(*arguments, **keywords)).double()
    with edited_weights(network, {site: edit}):
        after = _first(module(*arguments, **keywords)).double()
    local = edit.to(before.device, torch.float64)
    assert local.read is not None
    wanted = before + (before @ local.read) @ local.left.T
    tolerance = TOLERANCE[weight.dtype]
    norm = None if site.gain is None else network.get_submodule(site.gain.path)
    along = direction.to(before.device, torch.float64)
    seen = [value if norm is None else norm(value.to(weight.dtype)).double() for value in (before, after)]
    leak = float((seen[1] @ along).abs().max()) / max(float((seen[0] @ along).abs().max()), 1e-30)
    error = float((after - wanted).norm()) / max(float(before.norm()), 1e-30)
    if not (leak <= tolerance and error <= tolerance):
        raise UnsupportedArchitectureError(
            f"The forward probe of {site.path} failed: {leak:.2g} of the removed direction is left and the "
            f"output is off by {error:.2g} (allowed {tolerance:g}), so its residual axis "
            f"{site.residual_axis} or its norm is wrong.",
            hint="The installed transformers may lay this model out differently; please report the model.",
        )


def _judge_stream(
    network: nn.Module, architecture: Architecture, before: StreamChange, after: StreamChange
) -> None:
    parameters = dict(network.named_parameters(remove_duplicate=False))
    dtypes = {
        parameters[site.path].dtype for site in architecture.sites if site.path in parameters
    } | after.dtypes
    # A quantised weight has an integer dtype; its module computes in half precision.
    tolerance = max(TOLERANCE.get(dtype, 2e-2) for dtype in dtypes)
    for layer, path in enumerate(architecture.blocks):
        # One rounding of a sum is uniform within half a unit: at most 0.29 of `rounding`, so 1.0 allows a
        # dozen.
        allowed = tolerance * before.along[layer] + after.rounding[layer]
        if not after.along[layer] <= allowed:
            raise UnsupportedArchitectureError(
                f"Block {path} still writes along a direction removed from all its known writers: "
                f"{after.along[layer] / max(before.along[layer], 1e-30):.2g} of the change is left.",
                hint="A writer, or a norm behind one, is missing from the family data; please report it.",
            )
