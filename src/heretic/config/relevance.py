# SPDX-License-Identifier: Apache-2.0
"""Which settings the effective configuration reads (R-CFG-06), as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from heretic.config.settings import Settings


@dataclass(frozen=True, slots=True)
class ReadWhen:
    """Settings that are read only under a condition; `reason` completes "has no effect here: ..."."""

    settings: tuple[str, ...]
    condition: Callable[[Settings], bool]
    reason: str


def _several(settings: Settings) -> bool:
    return settings.strategy in ("subspace", "norm_preserving")


def _one(settings: Settings) -> bool:
    return settings.strategy in ("single", "heads", "caa")


def _covectors(settings: Settings) -> bool:
    return _one(settings) and settings.goal == "suppress"


def _probes(settings: Settings) -> bool:
    return _one(settings) and (settings.ensemble_probe_pca or settings.use_supervised_probing)


def _shifts(settings: Settings) -> bool:
    return settings.strategy == "caa" or settings.goal == "induce"


def _soft(settings: Settings) -> bool:
    by_mode = settings.refusal_detection_mode in ("moderate", "lenient")
    return by_mode if settings.detect_soft_refusals is None else settings.detect_soft_refusals


def _evasive(settings: Settings) -> bool:
    by_mode = settings.refusal_detection_mode == "lenient"
    return by_mode if settings.detect_evasive_responses is None else settings.detect_evasive_responses


RULES: Final = (
    ReadWhen(("thinking_tokens",), lambda s: s.thinking != "off", "thinking is off"),
    ReadWhen(("max_batch_size",), lambda s: s.batch_size == 0, "batch_size is given"),
    ReadWhen(("reuse_budget",), lambda s: s.reuse_lower_layers, "reuse_lower_layers is off"),
    ReadWhen(("racing",), lambda s: s.early_stop_trials, "early_stop_trials is off"),
    ReadWhen(("racing_prompts",), lambda s: s.racing and s.early_stop_trials, "racing is off"),
    ReadWhen(
        ("model_family", "warm_start_n_trials"),
        lambda s: s.use_warm_start_params,
        "use_warm_start_params is off",
    ),
    ReadWhen(
        ("hf_private", "hf_upload_manifest"), lambda s: s.hf_upload is not None, "hf_upload is not given"
    ),
    ReadWhen(
        (
            "neural_detection_model",
            "neural_detection_for_optuna",
            "neural_detection_threshold",
            "neural_detection_batch_size",
        ),
        lambda s: s.use_neural_refusal_detection,
        "use_neural_refusal_detection is off",
    ),
    ReadWhen(("soft_refusal_markers",), _soft, "soft refusals are not counted in this mode"),
    ReadWhen(("evasive_patterns",), _evasive, "evasive replies are not counted in this mode"),
    ReadWhen(
        ("use_pca_extraction", "n_refusal_directions", "use_eigenvalue_weights"),
        _several,
        "the strategy uses one direction",
    ),
    ReadWhen(("pca_alpha", "iterative_rounds"), _several, "no further components are computed"),
    ReadWhen(
        ("use_covectors",), _covectors, "the strategy does not choose among ways to remove one direction"
    ),
    ReadWhen(
        ("use_supervised_probing", "ensemble_probe_pca"),
        _one,
        "the strategy does not choose among sources of one direction",
    ),
    ReadWhen(
        ("eigenvalue_weight_method", "eigenvalue_weight_temperature"),
        lambda s: _several(s) and s.use_eigenvalue_weights,
        "no component weights are computed",
    ),
    ReadWhen(
        ("direction_weights",),
        lambda s: _several(s) and not s.use_eigenvalue_weights,
        "component weights are not taken from a list",
    ),
    ReadWhen(
        ("ensemble_weight_probe", "ensemble_weight_pca"),
        lambda s: _one(s) and s.ensemble_probe_pca,
        "no ensemble is made",
    ),
    ReadWhen(("min_probe_accuracy",), _probes, "no probe is trained"),
    ReadWhen(
        ("helpfulness_prompts", "unhelpfulness_prompts"),
        lambda s: s.orthogonalize_directions,
        "orthogonalize_directions is off",
    ),
    ReadWhen(
        ("n_sacred_directions", "sacred_overlap_threshold", "sacred_prompts", "sacred_baseline_prompts"),
        lambda s: s.use_sacred_directions,
        "use_sacred_directions is off",
    ),
    ReadWhen(
        ("min_direction_magnitude", "max_kl_per_round"),
        lambda s: _several(s) and s.iterative_rounds > 1,
        "there is one round of extraction",
    ),
    ReadWhen(
        ("enable_layer_profiles",),
        lambda s: s.strategy != "heads",
        "heads are chosen by what each of them writes, at any depth",
    ),
    ReadWhen(
        ("layer_range_profiles",),
        lambda s: s.enable_layer_profiles and s.strategy != "heads",
        "enable_layer_profiles is off",
    ),
    ReadWhen(
        (
            "activation_target_percentile",
            "activation_calibration_layer_frac",
            "activation_calibration_min_factor",
            "activation_calibration_max_factor",
        ),
        lambda s: s.use_activation_calibration,
        "use_activation_calibration is off",
    ),
    ReadWhen(
        ("n_concept_cones", "min_cone_size", "directions_per_cone", "min_silhouette_score"),
        lambda s: s.strategy == "cones",
        "the strategy is not cones",
    ),
    ReadWhen(("caa_addition_strength",), _shifts, "nothing is added"),
    ReadWhen(
        ("caa_max_overlap",),
        lambda s: s.strategy == "caa" and s.goal == "suppress",
        "nothing is added beside a removal",
    ),
    ReadWhen(
        ("n_refusal_circuits", "circuit_importance_threshold", "circuit_cache_path"),
        lambda s: s.strategy == "heads",
        "the strategy is not heads",
    ),
    ReadWhen(
        ("mmlu_source", "mmlu_categories", "mmlu_samples_per_category", "mmlu_few_shot"),
        lambda s: s.enable_validation and s.run_mmlu_validation,
        "run_mmlu_validation is off",
    ),
    ReadWhen(
        ("run_mmlu_validation", "validation_benchmarks", "save_validation_report", "validation_report_path"),
        lambda s: s.enable_validation,
        "enable_validation is off",
    ),
    ReadWhen(
        ("search_space.direction_source",),
        lambda s: _probes(s) or (_covectors(s) and s.use_covectors),
        "there is only one source of directions",
    ),
    ReadWhen(("search_space.n_components",), _several, "the strategy uses one direction"),
    ReadWhen(
        ("search_space.norm_mode",), lambda s: s.strategy == "norm_preserving", "the strategy keeps no norm"
    ),
    ReadWhen(("search_space.n_heads",), lambda s: s.strategy == "heads", "the strategy is not heads"),
    ReadWhen(("search_space.addition_strength",), _shifts, "nothing is added"),
    ReadWhen(("search_space.amplification",), lambda s: s.goal == "induce", "the goal is not induce"),
    ReadWhen(
        ("search_space.shrinkage",),
        lambda s: s.strategy == "oblique" or (_covectors(s) and s.use_covectors),
        "no co-vector is made",
    ),
    ReadWhen(
        ("search_space.center",),
        lambda s: s.strategy == "oblique",
        "the strategy is not oblique",
    ),
)


def why_unread(settings: Settings, name: str) -> str | None:
    """Why nothing reads a setting (by dotted name) in this configuration, or None when something does."""
    for rule in RULES:
        if name in rule.settings and not rule.condition(settings):
            return rule.reason
    return None
