# SPDX-License-Identifier: Apache-2.0
"""The search space: from dimensions and a point of the unit cube to parameters (algorithms 5.2 and 8).

Dimensions are resolved in declared order. A dimension that is inactive is stored as None and not sampled, so
that equal edits have equal keys (requirements R-SEA-04).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from heretic.constants import DISTANCE_FRACTION, INDEX_RANGE, POSITION_FLOOR, STRENGTH_LIMIT
from heretic.exceptions import ConfigurationError, UnknownSettingError
from heretic.study.types import Dimension, Json, Value

MAX_WEIGHT_RANGE: Final = (-0.25, 1.5)
"""Below 0 is clamped to 0: one draw in seven switches the component off (algorithms 5.2)."""

GLOBAL_SCOPE: Final = "global"
SCOPES: Final = (GLOBAL_SCOPE, "per_layer")
_BLOCK: Final = 256


def resolve(space: Sequence[Dimension], value_of: Callable[[Dimension], Value]) -> dict[str, Value]:
    """Parameters by asking `value_of` for each active dimension in declared order, clamped; inactive ones are
    None.
    """
    parameters: dict[str, Value] = {}
    for dimension in space:
        if dimension.active is not None and not dimension.active(parameters):
            parameters[dimension.name] = None
        else:
            parameters[dimension.name] = clamped(dimension, value_of(dimension))
    return parameters


def clamped(dimension: Dimension, value: Value) -> Value:
    """The value raised to the dimension's clamp, if it has one; never -0.0, which would make a second key of
    zero.
    """
    if isinstance(value, str) or value is None:
        return value
    raised = value if dimension.clamp is None else max(value, dimension.clamp)
    return raised + 0.0 if isinstance(raised, float) else raised


def value_at(dimension: Dimension, unit: float) -> Value:
    """The raw value (before the clamp) at `unit` in [0, 1)."""
    if dimension.kind == "categorical":
        return dimension.choices[min(int(unit * len(dimension.choices)), len(dimension.choices) - 1)]
    if dimension.kind == "int":
        low, high = int(dimension.low), int(dimension.high)
        return min(low + int(unit * (high - low + 1)), high)
    return min(dimension.low + unit * (dimension.high - dimension.low), dimension.high)


def nearest_legal(dimension: Dimension, value: Value, fallback: Value) -> Value:
    """A given value (a warm start) made legal: in range, of the right type; else `fallback`."""
    if dimension.kind == "categorical":
        return value if value in dimension.choices else fallback
    if isinstance(value, str) or value is None or not math.isfinite(value):
        return fallback
    inside = min(max(float(value), dimension.low), dimension.high)
    return round(inside) if dimension.kind == "int" else inside


@lru_cache(maxsize=8)
def _sobol_block(dimensions: int, seed: int, block: int) -> tuple[tuple[float, ...], ...]:
    from heretic.study.sobol import sobol_units  # here: it needs numpy, which a list of studies does not

    points = sobol_units(dimensions, seed, block * _BLOCK, _BLOCK)
    return tuple(tuple(point) for point in points.tolist())


def sobol_point(space: Sequence[Dimension], seed: int, index: int) -> dict[str, Value]:
    """Raw values of point `index` of the scrambled Sobol sequence over the declared space, for every
    dimension.

    A pure function of its arguments: a resumed run meets the same points (algorithms section 8).
    """
    point = _sobol_block(len(space), seed, index // _BLOCK)[index % _BLOCK]
    return {dimension.name: value_at(dimension, unit) for dimension, unit in zip(space, point, strict=True)}


def canonical_key(parameters: Mapping[str, Value]) -> str:
    """One string per edit: parameters that lead to the same edit have the same key (algorithms 5.2).

    Inactive parameters are left out. Where no weight is above 0 nothing is edited whatever the direction, so
    the choice of direction does not count either.
    """
    kept = {name: value for name, value in parameters.items() if value is not None}
    weighted = any(name.endswith(".max_weight") for name in kept)
    if weighted and not any(value for name, value in kept.items() if not name.startswith("direction_")):
        kept = {name: value for name, value in kept.items() if not name.startswith("direction_")}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"))


def describe_space(space: Sequence[Dimension]) -> Json:
    """The space as JSON, for the fingerprint: any changed range makes old trials incomparable (reliability
    A05).
    """
    return {
        dimension.name: {
            "kind": dimension.kind,
            "low": dimension.low,
            "high": dimension.high,
            "choices": list(dimension.choices),
            "clamp": dimension.clamp,
        }
        for dimension in space
    }


def default_space(
    components: Sequence[str],
    layers: int,
    *,
    overrides: Mapping[str, tuple[float, float]] | None = None,
    scopes: Sequence[str] = SCOPES,
) -> tuple[Dimension, ...]:
    """The space that all strategies share: where the direction is from, one kernel per component (requirements 7.2).

    components: names such as `attn.o_proj`; layers: L >= 1, all ranges adapt to P = L - 1. overrides:
    "direction_index", "<component>.<parameter>", or "<parameter>" for all components, to (low, high). Raises
    `UnknownSettingError` for another key, `ConfigurationError` for an impossible range.
    """
    assert layers >= 1 and components
    last = float(layers - 1)
    ranges = {
        "max_weight": MAX_WEIGHT_RANGE,
        "max_weight_position": (POSITION_FLOOR * last, last),
        # In a single layer there is only the peak.
        "min_weight": (0.0, 1.0) if layers > 1 else (1.0, 1.0),
        "min_weight_distance": (1.0, max(1.0, DISTANCE_FRACTION * last)),
    }
    limits = {
        "direction_index": (0.0, last),
        "max_weight": (-STRENGTH_LIMIT, STRENGTH_LIMIT),
        "max_weight_position": (0.0, last),
        "min_weight": (0.0, 1.0),
        # A half-width of 0 divides by zero in the kernel (algorithms 5.1).
        "min_weight_distance": (1e-3, math.inf),
    }
    chosen = {
        f"{component}.{parameter}": default
        for component in components
        for parameter, default in ranges.items()
    }
    chosen["direction_index"] = (INDEX_RANGE[0] * last, INDEX_RANGE[1] * last)
    _apply_overrides(chosen, overrides or {}, tuple(ranges), limits)
    choices = tuple(scope for scope in SCOPES if scope in scopes) if layers > 1 else (GLOBAL_SCOPE,)
    space = [Dimension("direction_scope", "categorical", choices=choices)]
    if GLOBAL_SCOPE in choices:
        space.append(
            Dimension("direction_index", "float", *chosen["direction_index"], active=_scope_is_global)
        )
    for component in components:
        weight = f"{component}.max_weight"
        space.append(Dimension(weight, "float", *chosen[weight], clamp=0.0))
        space.extend(
            Dimension(name, "float", *chosen[name], active=_is_positive(weight))
            for name in (f"{component}.{parameter}" for parameter in ranges if parameter != "max_weight")
        )
    return tuple(space)


def reached(space: Sequence[Dimension], component: str, layers: Sequence[int]) -> bool:
    """Whether any kernel of the space can edit one of these layers: |l - p| < w for some position and half-width.

    False for a component all of whose writers lie below the deepest reach, e.g. in the first layer alone.
    """
    ranges = {dimension.name: (dimension.low, dimension.high) for dimension in space}
    first, last = ranges[f"{component}.max_weight_position"]
    width = ranges[f"{component}.min_weight_distance"][1]
    return any(first - width < layer < last + width for layer in layers)


def _scope_is_global(parameters: Mapping[str, Value]) -> bool:
    return parameters["direction_scope"] == GLOBAL_SCOPE


def _is_positive(weight: str) -> Callable[[Mapping[str, Value]], bool]:
    def active(parameters: Mapping[str, Value]) -> bool:
        value = parameters[weight]
        return isinstance(value, (int, float)) and value > 0

    return active


def _apply_overrides(
    chosen: dict[str, tuple[float, float]],
    overrides: Mapping[str, tuple[float, float]],
    parameters: tuple[str, ...],
    limits: Mapping[str, tuple[float, float]],
) -> None:
    """Puts the overrides into `chosen`, the general ones first, so that one for a component wins."""
    for key in sorted(overrides, key=lambda name: (name not in parameters, name)):
        targets = [name for name in chosen if name == key or (key in parameters and name.endswith(f".{key}"))]
        if not targets:
            near = difflib.get_close_matches(key, [*parameters, *chosen], n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join([*parameters, *chosen])}."
            raise UnknownSettingError(f"The search space has no range called {key!r}.", hint=hint)
        low, high = (float(bound) for bound in overrides[key])
        bottom, top = limits[key if key in limits else key.rsplit(".", 1)[-1]]
        if not (bottom <= low <= high <= top and math.isfinite(high)):
            raise ConfigurationError(
                f"The range of {key!r} is [{low:g}, {high:g}], which is not inside [{bottom:g}, {top:g}].",
                hint="Give low and high, low first, within these limits.",
            )
        for name in targets:
            chosen[name] = (low, high)
