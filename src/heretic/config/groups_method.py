# SPDX-License-Identifier: Apache-2.0
"""Settings of requirements 3.5: detection, directions, interventions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from heretic.config.tables import LayerRange, ScorerSettings, check_ranges
from heretic.config.types import (
    FilePath,
    Fraction,
    Group,
    NonNegative,
    Pattern,
    Positive,
    PositiveFloat,
    Text,
    setting,
)
from heretic.constants import LAYER_RANGE_PROFILES

LayerRanges = Annotated[tuple[LayerRange, ...], AfterValidator(check_ranges)]
DEFAULT_RANGES = tuple(LayerRange(start=a, end=b, multiplier=c) for a, b, c in LAYER_RANGE_PROFILES)


class DetectionSettings(Group):
    """How a reply is judged."""

    title: ClassVar[str] = "Detection"

    refusal_markers: tuple[Pattern, ...] | None = setting(
        None, "core markers, replacing those of the behaviour; null = built-in, an empty list matches nothing"
    )
    soft_refusal_markers: tuple[Pattern, ...] | None = setting(None, "polite declines; null = built-in")
    evasive_patterns: tuple[Pattern, ...] | None = setting(None, "redirections; null = built-in")
    refusal_detection_mode: Literal["strict", "moderate", "lenient"] = setting(
        "lenient", "core / + soft / + evasive"
    )
    detect_soft_refusals: bool | None = setting(None, "null = as the mode says")
    detect_evasive_responses: bool | None = setting(None, "null = as the mode says")
    scorers: tuple[ScorerSettings, ...] | None = setting(None, "what is measured; null = from the behaviour")
    use_neural_refusal_detection: bool = setting(True, "judge replies no marker decides by a model (Phase 1)")
    neural_detection_model: Text = setting("facebook/bart-large-mnli", "sequence-pair NLI model")
    neural_detection_for_optuna: bool = setting(True, "use it in trials, not only in reports")
    neural_detection_threshold: Fraction = setting(0.5, "least probability of the top label")
    neural_detection_batch_size: Positive = setting(8, "replies per pass", score=False)


class DirectionSettings(Group):
    """How directions are found and protected."""

    title: ClassVar[str] = "Directions"

    residual_position: Literal["prompt_end", "response_mean"] = setting(
        "prompt_end", "token position of the residuals"
    )
    project_direction: bool = setting(True, "component 0 without its part along the benign mean")
    winsorization_quantile: Annotated[float, Field(ge=0.5, le=1)] = setting(
        1.0, "clamp outlier coordinates; 1 = off"
    )
    use_pca_extraction: bool = setting(True, "allow further components for strategies that use several")
    n_refusal_directions: Annotated[int, Field(ge=1, le=16)] = setting(3, "components kept")
    pca_alpha: NonNegative = setting(1.0, "weight of the benign second moment")
    use_eigenvalue_weights: bool = setting(True, "component strengths from singular shares")
    eigenvalue_weight_method: Literal["softmax", "proportional", "log_proportional"] = setting(
        "softmax", "how shares become strengths"
    )
    eigenvalue_weight_temperature: PositiveFloat = setting(1.0, "of the softmax, scale-invariant")
    direction_weights: tuple[NonNegative, ...] = setting(
        (1.0, 0.5, 0.25), "used when use_eigenvalue_weights is false"
    )
    use_covectors: bool = setting(
        True, "the difference measured by a co-vector as a candidate source: an oblique edit"
    )
    use_supervised_probing: bool = setting(False, "probe alone as a candidate source (Phase 2)")
    ensemble_probe_pca: bool = setting(False, "ensemble as a candidate source (Phase 2)")
    ensemble_weight_probe: NonNegative = setting(0.7, "share of the probe; the two sum to 1")
    ensemble_weight_pca: NonNegative = setting(0.3, "share of the components")
    min_probe_accuracy: Fraction = setting(0.65, "floor of the held-out balanced accuracy")
    orthogonalize_directions: bool = setting(False, "helpfulness protection")
    use_sacred_directions: bool = setting(False, "capability protection")
    n_sacred_directions: Positive = setting(5, "capability directions")
    sacred_overlap_threshold: Fraction = setting(0.3, "warn above this overlap", score=False)
    iterative_rounds: Annotated[int, Field(ge=1, le=5)] = setting(
        1, "rounds of re-extraction that build a fixed basis"
    )
    min_direction_magnitude: NonNegative = setting(
        0.1, "stop rounds below it, relative to the mean residual norm"
    )
    max_kl_per_round: PositiveFloat = setting(0.5, "stop rounds when the basis so far costs more KL")


class InterventionSettings(Group):
    """How strength is spread over the network, and special edits."""

    title: ClassVar[str] = "Interventions"

    enable_layer_profiles: bool = setting(True, "multiply strength by depth")
    layer_range_profiles: LayerRanges = setting(
        DEFAULT_RANGES, "start, end, multiplier over relative depth; gaps mean 1.0"
    )
    use_activation_calibration: bool = setting(False, "strength follows measured activations (Phase 3)")
    activation_target_percentile: Fraction = setting(0.75, "unit of an addition")
    activation_calibration_layer_frac: Fraction = setting(0.6, "reference depth")
    activation_calibration_min_factor: PositiveFloat = setting(0.5, "lower clamp, at most the upper")
    activation_calibration_max_factor: PositiveFloat = setting(2.0, "upper clamp")
    use_concept_cones: bool = setting(False, "directions per category; strategy cones (Phase 4)")
    n_concept_cones: Positive = setting(5, "cones")
    min_cone_size: Positive = setting(10, "prompts in a cone")
    directions_per_cone: Positive = setting(2, "directions of a cone")
    min_silhouette_score: Annotated[float, Field(ge=-1, le=1)] = setting(0.1, "floor of the clustering")
    use_caa: bool = setting(False, "contrastive activation addition; strategy caa (Phase 5)")
    caa_addition_strength: Fraction = setting(0.3, "in units of the calibrated scale")
    caa_max_overlap: Fraction = setting(0.5, "warn above this overlap", score=False)
    use_circuit_ablation: bool = setting(False, "edit chosen attention heads; strategy heads (Phase 6)")
    n_refusal_circuits: Positive = setting(20, "heads kept")
    circuit_importance_threshold: Fraction = setting(0.1, "share of the strongest head")
    circuit_cache_path: FilePath | None = setting(None, "cache file", score=False)
