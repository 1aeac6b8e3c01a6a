# SPDX-License-Identifier: Apache-2.0
"""Direction files against a model's configuration: what would be edited, known before a weight is loaded (R-CLI-06)."""

from __future__ import annotations

import hashlib
import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Final, Literal

import torch

from heretic.architectures.resolve import resolve_config_only
from heretic.architectures.site import Architecture
from heretic.config import Resolved, Settings, built_in_behaviours
from heretic.constants import STRENGTH_LIMIT
from heretic.directions.compose import EntryComparison, JointBasis, compare, joint_basis
from heretic.directions.file import DirectionFile, load_directions, require_fits
from heretic.directions.findings import Findings
from heretic.exceptions import AbliterationError, ConfigurationError, DirectionFileError, UnusedSettingError
from heretic.export.naming import REFUSAL, public_model_id
from heretic.interventions.placement import Parameters
from heretic.interventions.plan import Plan
from heretic.interventions.planners import STRATEGIES
from heretic.linalg.lowrank import orthonormal_columns
from heretic.model.loading import load_config
from heretic.model.source import ModelSource
from heretic.phases import loading, steps

Layer = Literal["best", "own"]
ONE_DIRECTION: Final = ("single", "oblique")
NOT_IN_FILES: Final = {
    "cones": "a file holds the directions of all categories as one span",
    "heads": "a direction file does not say which heads carry the behaviour",
    "caa": "a direction file does not hold what is added",
}
"""Why a strategy cannot work from direction files alone."""


def without_search(resolved: Resolved, **changes: object) -> Resolved:
    """The same settings without what only a search reads."""
    update = {"storage": None, "resume": "auto", "trial": None, **changes}
    return replace(resolved, settings=resolved.settings.model_copy(update=update))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A direction file that takes part. name: of the file, without its folder. sha256: of its bytes. scale: times the
    strength of its directions, above 0."""

    name: str
    file: DirectionFile
    sha256: str
    scale: float = 1.0


def load_parts(paths: Sequence[Path]) -> tuple[Part, ...]:
    """The files in order, read and checked; raises `DirectionFileError`."""
    parts = []
    for path in paths:
        file = load_directions(path)
        parts.append(Part(path.name, file, hashlib.sha256(path.read_bytes()).hexdigest()))
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class Strength:
    """How much is removed where (algorithms 5.1), the same in all components.

    peak: share removed, 0 to 2 (algorithms 4.8). position: depth of the peak. half_width: depth at which it has fallen
    to edge * peak, and beyond which nothing is removed. All but the peak are fractions of L - 1 or of the peak; None =
    not given, and the strength is the same at all depths.
    """

    peak: float = 1.0
    position: float | None = None
    edge: float | None = None
    half_width: float | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("peak-position", self.position),
            ("edge", self.edge),
            ("half-width", self.half_width),
        ):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigurationError(f"--{name} is {value:g}; it is a fraction.", hint="Use 0 to 1.")
        if self.position is not None and self.edge is None and self.half_width is None:
            raise UnusedSettingError(
                "--peak-position has no effect here: the strength is the same at all depths.",
                hint="Give --half-width or --edge as well, or leave it out.",
            )

    def kernel(self, component: str, peak: float, layers: int) -> dict[str, float]:
        """The parameters of one component's kernel, in layers."""
        last = layers - 1
        values = {
            "max_weight": peak,
            "max_weight_position": (1.0 if self.position is None else self.position) * last,
            "min_weight": 1.0 if self.edge is None else self.edge,
            "min_weight_distance": (1.0 if self.half_width is None else self.half_width) * last,
        }
        return {f"{component}.{name}": value for name, value in values.items()}

    def flags(self) -> list[str]:
        """The words of a command line that say the same."""
        given = {"peak-position": self.position, "edge": self.edge, "half-width": self.half_width}
        words = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return [f"--strength={self.peak}", *words]


@dataclass(frozen=True, slots=True, eq=False)
class Application:
    """What is applied to a model, checked against it. comparisons: of each pair of parts, by their places. plan: as far
    as it is known without weights. notes: what the user should know first. command: the command line in short."""

    resolved: Resolved
    parts: tuple[Part, ...]
    basis: JointBasis
    comparisons: tuple[tuple[int, int, tuple[EntryComparison, ...]], ...]
    findings: Findings
    parameters: Parameters
    plan: Plan
    notes: tuple[str, ...]
    command: str


def plan_application(
    resolved: Resolved, parts: Sequence[Part], strength: Strength, layer: Layer | float = "best"
) -> Application:
    """Check files, strategy and strength against the model's configuration; reads no weight.

    layer: whose directions are removed at all depths: those of one layer (a fractional index lies between two), of the
    `best` one, which has the largest mean effect size over the files, or at each depth its `own`.

    The strategy is `subspace` unless the user states another; layer profiles and max_strength hold, activation
    calibration does not: it is a prior of the search on where to edit, and here the user says where.

    Raises `DirectionFileError` for files of another size or of several models, `ConfigurationError` for a strategy
    that cannot work from files and for a strength out of range, `AbliterationError` where a file adds nothing to those
    before it, and what `loading.find_model` raises.
    """
    if not parts:
        raise ConfigurationError(
            "No direction file is named.", hint="Write: heretic apply MODEL NAME.direction.safetensors"
        )
    asked, strategy = resolved, _strategy(resolved)
    resolved = without_search(asked, auto_select=True, use_activation_calibration=False, strategy=strategy)
    settings = resolved.settings
    _require_scales(parts)
    source = loading.find_model(settings)
    config = load_config(source, trust_remote_code=settings.trust_remote_code)
    architecture = resolve_config_only(config, allow_partial=settings.allow_partial)
    for part in parts:
        require_model(part.file, architecture, source.basename)
    files = [part.file for part in parts]
    pairs = itertools.combinations(range(len(parts)), 2)
    comparisons = tuple((one, other, compare(files[one], files[other])) for one, other in pairs)
    basis = joint_basis(files, [part.scale for part in parts])
    _require_possible(strategy, parts, basis)
    index = _index(layer, files)
    largest = float((basis.weights if index is None else basis.weights[basis.bank.nearest(index)]).max())
    peak = _scaled(strength.peak, largest, settings.max_strength)
    findings = Findings(sources={"files": basis.bank}, weights=basis.weights / largest)
    parameters = _parameters(settings, architecture, basis, strength, peak, index)
    plan = STRATEGIES[strategy](parameters, steps.context_of(settings, architecture, findings))
    if not plan.rows and peak > 0.0:
        raise ConfigurationError(
            "No layer lies within the half-width, so nothing would be edited.",
            hint="Use a larger --half-width.",
        )
    return Application(
        resolved=resolved,
        parts=tuple(parts),
        basis=basis,
        comparisons=comparisons,
        findings=findings,
        parameters=parameters,
        plan=plan,
        notes=tuple(_notes(asked, strategy, parts, source)),
        command=_command(settings, source, parts, strength, index),
    )


def _strategy(resolved: Resolved) -> str:
    chosen = resolved.settings.strategy
    return "subspace" if chosen == "single" and "strategy" not in resolved.explicit else chosen


def _index(layer: Layer | float, files: Sequence[DirectionFile]) -> float | None:
    """The layer whose directions are used at all depths; None where each has its own."""
    if layer == "own":
        return None
    layers = files[0].bank.layers
    if layer == "best":
        known = [
            [size for size in sizes if size is not None]
            for sizes in zip(*(f.effect_size for f in files), strict=True)
        ]
        means = {number: fmean(sizes) for number, sizes in enumerate(known) if sizes}
        if not means:
            raise ConfigurationError(
                "None of the files says how well each layer separates the classes.",
                hint="Name the layer whose directions are used with --direction-layer, or use --direction-layer own.",
            )
        index = float(max(means, key=lambda number: means[number]))
    else:
        index = float(layer)
    if not 0.0 <= index <= layers - 1:
        raise ConfigurationError(
            f"--direction-layer is {index:g}.", hint=f"Use best, own, or 0 to {layers - 1}."
        )
    _require_each_adds(files, index)
    return index


def _require_each_adds(files: Sequence[DirectionFile], index: float) -> None:
    """Raise `AbliterationError` for a file whose directions at one layer lie within those of the files before it."""
    nearest = files[0].bank.nearest(index)
    _, used = orthonormal_columns(torch.cat([file.bank.directions[nearest] for file in files]).double().T)
    place = 0
    for file in files:
        own = range(place, place + file.bank.components)
        place = own.stop
        if not any(row in own for row in used.tolist()):
            raise AbliterationError(
                f"The directions {file.name!r} lie within those of the files before it at layer {nearest}, whose "
                "directions are used.",
                hint="Leave one of these files out, or name another layer with --direction-layer.",
            )


def _require_scales(parts: Sequence[Part]) -> None:
    for part in parts:
        if not (math.isfinite(part.scale) and part.scale > 0.0):
            raise ConfigurationError(
                f"The scale of {part.name} is {part.scale:g}.",
                hint="Scales are above 0: leave a file out to leave its directions in place, and strengthen with "
                "--goal induce.",
            )
        if min(part.file.component_weights) < 0.0 or max(part.file.component_weights) == 0.0:
            raise DirectionFileError(
                f"{part.name} has the component weights "
                f"{', '.join(f'{weight:g}' for weight in part.file.component_weights)}; none may be negative, and one "
                "must be above 0.",
                hint="Extract the directions again.",
            )


def require_model(file: DirectionFile, architecture: Architecture, model_name: str) -> None:
    """`require_fits` with the sizes of an architecture."""
    require_fits(
        file, hidden_size=architecture.hidden_size, layers=architecture.layers, model_name=model_name
    )


def _require_possible(strategy: str, parts: Sequence[Part], basis: JointBasis) -> None:
    """Raise `ConfigurationError` with the reason when these files are not enough for a strategy."""
    reason = NOT_IN_FILES.get(strategy)
    reads = basis.bank.covectors is not None
    if strategy in ONE_DIRECTION and len(parts) > 1:
        reason = f"it removes one direction, and {len(parts)} files were named"
    elif strategy == "oblique" and not reads:
        reason = "the file has no vectors of its own to read (covectors)"
    elif strategy == "norm_preserving" and reads:
        reason = "keeping lengths rescales whole columns, and what the files do not read would change"
    if reason is not None:
        raise ConfigurationError(
            f"strategy = {strategy} does not work from these files: {reason}.",
            hint="Use --strategy subspace, which removes all directions of the files at once.",
        )


def _scaled(peak: float, largest: float, cap: float) -> float:
    """Strength of the component with the largest weight, for which the cap of the settings holds."""
    applied = peak * largest
    if not 0.0 <= applied <= cap:
        detail = (
            ""
            if largest == 1.0
            else f" (--strength {peak:g} times {largest:g} by scale and component weight)"
        )
        raise ConfigurationError(
            f"The strength is {applied:g}{detail}; allowed is 0 to {cap:g} (max_strength).",
            hint=f"0 leaves all, 1 removes all, above 1 reverses; --max-strength may be up to {STRENGTH_LIMIT:g}. "
            "--goal induce strengthens.",
        )
    return applied


def _parameters(
    settings: Settings,
    architecture: Architecture,
    basis: JointBasis,
    strength: Strength,
    peak: float,
    index: float | None,
) -> Parameters:
    """What a trial of the same edit would have as its parameters."""
    found: dict[str, float | int | str | None] = {"direction_scope": "per_layer"}
    if index is not None:
        found = {"direction_scope": "global", "direction_index": index}
    for component in architecture.components:
        found |= strength.kernel(component, peak, architecture.layers)
    if settings.strategy in ("subspace", "norm_preserving"):
        found["n_components"] = basis.bank.components
    if settings.strategy == "norm_preserving":
        found["norm_mode"] = (settings.search_space.norm_mode or ("column",))[0]
    if settings.goal == "induce":
        found["amplification"] = 1.0
    return found


def _notes(asked: Resolved, strategy: str, parts: Sequence[Part], source: ModelSource) -> Iterator[str]:
    """Sentences on files that were not made for this model, or not for what is measured, and on settings without
    effect."""
    model, measured = public_model_id(source.name), asked.behaviour.name
    if "use_activation_calibration" in asked.explicit and asked.settings.use_activation_calibration:
        yield "use_activation_calibration has no effect here: the command line says how strong the edit is where."
    for part in parts:
        file = part.file
        the_directions = f"The directions {file.name!r}"
        if file.model.rsplit("/", 1)[-1] != model.rsplit("/", 1)[-1]:
            yield (
                f"{the_directions} were extracted from {file.model}, not from {model}; they mean something there only "
                "if one was made from the other."
            )
        elif None not in (file.revision, source.commit) and file.revision != source.commit:
            yield f"{the_directions} were extracted from another revision of {file.model}."
        if measured not in file.behaviour.split(" + "):
            yield f"{the_directions} are those of {file.behaviour}, the behaviour that is measured is {measured}."
        if strategy in ONE_DIRECTION and file.bank.components > 1:
            yield f"{strategy} uses the first of the {file.bank.components} directions of {file.name!r}."


def _command(
    settings: Settings, source: ModelSource, parts: Sequence[Part], strength: Strength, index: float | None
) -> str:
    words = ["heretic", "apply", source.basename, *(part.name for part in parts), *strength.flags()]
    words.append(f"--direction-layer={'own' if index is None else format(index, 'g')}")
    words += [f"--scale={part.name}={part.scale}" for part in parts if part.scale != 1.0]
    words += [] if settings.strategy == "subspace" else [f"--strategy={settings.strategy}"]
    words += [] if settings.goal == "suppress" else [f"--goal={settings.goal}"]
    if settings.behaviour in built_in_behaviours() and settings.behaviour != REFUSAL:
        words.append(f"--behaviour={settings.behaviour}")
    return shlex.join(words)
