# SPDX-License-Identifier: Apache-2.0
"""Step 6 of the flow: residuals of both classes become directions, with figures on how much they can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.calibration import layer_factors
from heretic.directions.components import component_weights, components
from heretic.directions.cones import cones
from heretic.directions.contrast import Contrast
from heretic.directions.difference import difference
from heretic.directions.findings import Findings
from heretic.directions.preserve import Protection, inseparable, protected_contrast
from heretic.exceptions import ExtractionError
from heretic.linalg.robust import winsorised
from heretic.linalg.separation import cross_fitted_separation, split_half_accuracy
from heretic.phases.additions import with_shifts
from heretic.phases.captures import Captures
from heretic.phases.circuits import with_heads
from heretic.phases.dataset_loading import DatasetBundle
from heretic.phases.iteration import Rounds, refined
from heretic.phases.protection import apply_helpfulness_orthogonalization, extract_sacred_directions
from heretic.phases.sources import SourceOptions, candidate_sources, read_by_covectors

STABLE = 0.8
"""Estimated cosine between this direction and the one of infinitely many prompts (algorithms 3.12)."""

SEPARABLE = 0.65
"""Least cross-fitted AUROC of the best layer."""

Strategy = Literal["single", "subspace", "cones", "heads", "caa", "oblique", "norm_preserving"]


@dataclass(frozen=True, slots=True)
class ExtractionOptions:
    """How directions are found; the fields are the settings of the same names (requirements 3.5).

    weights: method of component weights, or None for `direction_weights`. explicit: names the user stated, whose
    failure is an error and no degradation (R-GEN-08).
    """

    strategy: Strategy = "single"
    goal: Literal["suppress", "induce"] = "suppress"
    project: bool = True
    winsorization_quantile: float = 1.0
    count: int = 1
    alpha: float = 1.0
    weights: Literal["softmax", "proportional", "log_proportional"] | None = "softmax"
    temperature: float = 1.0
    direction_weights: tuple[float, ...] = ()
    sources: SourceOptions = field(default_factory=SourceOptions)
    sacred: int = 0
    sacred_overlap: float = 0.3
    calibrate: bool = False
    percentile: float = 0.75
    layer_frac: float = 0.6
    min_factor: float = 0.5
    max_factor: float = 2.0
    cone_count: int = 5
    cone_minimum: int = 10
    cone_directions: int = 2
    cone_floor: float = 0.1
    shrinkage: float | None = None
    rounds: Rounds = field(default_factory=Rounds)
    caa_overlap: float = 0.5
    head_count: int = 20
    head_threshold: float = 0.1
    circuit_cache: Path | None = None
    seed: int = 0
    explicit: frozenset[str] = frozenset()

    @property
    def several(self) -> bool:
        """The strategy uses several components."""
        return self.strategy in ("subspace", "norm_preserving")


@dataclass(frozen=True, slots=True, eq=False)
class DirectionExtractionResult:
    """findings: what planners work with. stability, auroc, effect_size: per layer, cross-fitted (algorithms 3.12,
    3.13). warnings: verdicts on the directions. degradations: features that could not work here."""

    findings: Findings
    stability: tuple[float, ...]
    auroc: tuple[float, ...]
    effect_size: tuple[float, ...]
    warnings: tuple[str, ...] = ()
    degradations: tuple[str, ...] = ()

    @property
    def bank(self) -> DirectionBank:
        """The directions of the default source."""
        return self.findings.bank

    @property
    def best_layer(self) -> int:
        """The layer with the largest cross-fitted effect size."""
        return max(range(len(self.effect_size)), key=lambda layer: self.effect_size[layer])


@dataclass(slots=True, eq=False)
class Extraction:
    """The work in progress: what was captured, what is protected, and what could not be had."""

    captures: Captures
    bundle: DatasetBundle
    options: ExtractionOptions
    contrast: Contrast
    warnings: list[str] = field(default_factory=list)
    degradations: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)

    def attempt(self, switch: str, make: Callable[[], DirectionBank]) -> DirectionBank | None:
        """The result of an optional method; its failure is an error where the user asked for it (R-DIR-10)."""
        try:
            return make()
        except ExtractionError as error:
            if switch in self.options.explicit:
                raise
            self.degradations.append(f"{switch} is off: {error.message}")
            return None


def extract_refusal_directions(
    captures: Captures, bundle: DatasetBundle, options: ExtractionOptions
) -> DirectionExtractionResult:
    """Directions of every layer from the direction prompts; each prompt passes the model once.

    Raises `ExtractionError` and its leaves when the classes do not differ or an explicit method fails,
    `NonFiniteError`, `BatchSizeError`.
    """
    target, control = captures.residuals(bundle.bad.prompts), captures.residuals(bundle.good.prompts)
    if options.winsorization_quantile < 1.0:
        target, control = winsorised(target, control, options.winsorization_quantile, "channel")
    work = Extraction(captures, bundle, options, Contrast(target, control))
    auroc, effect_size, stability = judged(work)
    work.contrast = _protected(work)
    best = max(range(len(effect_size)), key=lambda layer: effect_size[layer])
    bank = main_bank(work)
    if options.several:
        bank = refined(work, bank, best, options.rounds)
    findings = Findings(
        sources=candidate_sources(work, bank, best),
        factors=calibration(work, effect_size),
        weights=weights_of(bank, options),
        protected=work.contrast.protected,
        notes=work.notes,
    )
    findings = with_shifts(work, with_heads(work, findings))
    return DirectionExtractionResult(
        findings=findings,
        stability=stability,
        auroc=auroc,
        effect_size=effect_size,
        warnings=tuple(work.warnings),
        degradations=tuple(work.degradations),
    )


def judged(work: Extraction) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """(AUROC, d', split-half accuracy) of every layer, cross-fitted; verdicts go to the warnings (R-DIR-08)."""
    generator = torch.Generator().manual_seed(work.options.seed)
    stability: list[float] = []
    figures: list[tuple[float, float]] = []
    for layer in range(work.contrast.layers):
        positive, negative = work.contrast.target[:, layer], work.contrast.control[:, layer]
        stability.append(split_half_accuracy(positive, negative, generator))
        figures.append(cross_fitted_separation(positive, negative, generator))
    best = max(range(len(figures)), key=lambda layer: figures[layer][1])
    if stability[best] < STABLE:
        work.warnings.append(
            f"The direction is uncertain: its estimated accuracy at layer {best} is {stability[best]:.2f} (below "
            f"{STABLE}). More prompts than {len(work.contrast.target)} + {len(work.contrast.control)} would make it "
            "reliable."
        )
    if figures[best][0] < SEPARABLE:
        work.warnings.append(
            f"The two classes are hardly separable: cross-fitted AUROC {figures[best][0]:.2f} at best (layer {best})."
        )
    return tuple(f[0] for f in figures), tuple(f[1] for f in figures), tuple(stability)


def _protected(work: Extraction) -> Contrast:
    """The contrast with what no direction may contain (requirements 5.9, 5.10)."""
    found: list[Protection] = []
    helpful = apply_helpfulness_orthogonalization(work.captures, work.bundle, work.contrast)
    if helpful is not None:
        reason = inseparable(helpful)
        if reason is None:
            found.append(helpful)
        else:
            work.degradations.append(f"orthogonalize_directions is off: {reason}")
    if work.options.sacred:
        sacred = extract_sacred_directions(
            work.captures, work.bundle, work.contrast, count=work.options.sacred
        )
        found += [] if sacred is None else [sacred]
    for protection in found:
        assert protection.overlap is not None
        overlap = [round(float(value), 6) for value in protection.overlap]
        work.notes[protection.name] = {**protection.provenance, "overlap": overlap}
        if protection.name == "capability" and max(overlap) > work.options.sacred_overlap:
            work.warnings.append(
                f"The capability directions hold up to {max(overlap):.0%} of the behaviour's direction (layer "
                f"{overlap.index(max(overlap))}); that part stays in place."
            )
    return protected_contrast(work.contrast, *found, project=work.options.project) if found else work.contrast


def main_bank(work: Extraction) -> DirectionBank:
    """The bank of the strategy: one direction, several, cones, or one with its co-vector."""
    options, contrast = work.options, work.contrast
    provenance = {"bad": work.bundle.bad.content_hash, "good": work.bundle.good.content_hash}
    if options.strategy == "cones":
        bank = cones(
            contrast,
            count=options.cone_count,
            minimum=options.cone_minimum,
            per_cone=options.cone_directions,
            floor=options.cone_floor,
            seed=options.seed,
            categories=_categories(work.bundle),
            strict=True,
            project=options.project,
        )
    elif options.several and options.count > 1:
        bank = components(contrast, count=options.count, alpha=options.alpha, project=options.project)
    else:
        bank = difference(contrast, project=options.project)
    if options.strategy == "oblique":
        bank = read_by_covectors(work, bank)
    return replace(bank, provenance={**bank.provenance, **provenance})


def _categories(bundle: DatasetBundle) -> list[str] | None:
    """The prompts' own categories, where each has one."""
    names = [prompt.category for prompt in bundle.bad.prompts]
    return [str(name) for name in names] if all(name is not None for name in names) else None


def weights_of(bank: DirectionBank, options: ExtractionOptions) -> Tensor | None:
    """[L, k] strength of each component relative to the first; None where all are alike."""
    if not options.several or bank.components == 1:
        return None
    if options.weights is None:
        row = torch.tensor(options.direction_weights[: bank.components])
        return row.expand(bank.layers, -1) * (bank.spread > 0)
    return component_weights(bank.spread, method=options.weights, temperature=options.temperature)


def calibration(work: Extraction, effect_size: tuple[float, ...]) -> tuple[float, ...]:
    """Factor of each layer on the strength kernel; empty where calibration is off or has nothing to go by."""
    options = work.options
    if not options.calibrate:
        return ()
    found = layer_factors(
        effect_size,
        percentile=options.percentile,
        layer_frac=options.layer_frac,
        min_factor=options.min_factor,
        max_factor=options.max_factor,
        samples=min(len(work.contrast.target), len(work.contrast.control)),
    )
    if found.reason:
        work.degradations.append(f"use_activation_calibration: {found.reason}")
    if set(found.factors) == {1.0}:
        return ()
    work.notes["calibration"] = list(found.factors)
    return tuple(found.factors)
