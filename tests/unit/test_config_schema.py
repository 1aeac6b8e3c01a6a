# SPDX-License-Identifier: Apache-2.0
"""The settings are those of the requirements: names, defaults, checks, and what is generated from them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import resources

import pytest
from pydantic import ValidationError

from heretic.config import (
    GROUPS,
    DatasetSettings,
    Settings,
    built_in_behaviours,
    default_toml,
    describe,
    help_table,
    schema,
    setting_names,
    settings_page,
)
from heretic.config.availability import UNAVAILABLE
from heretic.config.relevance import RULES
from heretic.config.types import format_duration, parse_duration

NAME_LIST = """
model model_revision behaviour goal strategy evaluate_model dtypes quantization device_map max_memory
attn_implementation trust_remote_code compile system_prompt chat_template thinking thinking_tokens
response_prefix offline allow_partial allow_pickle allow_zero_baseline strict seed batch_size
max_batch_size max_prompt_tokens max_response_length refusal_check_tokens kl_divergence_tokens
kl_divergence_scale trials_per_batch engine early_exit reuse_lower_layers reuse_budget n_trials n_startup_trials
sampler search_space max_strength study_name storage resume time_budget stop_on_stall workers lease_seconds
max_trial_retries early_stop_trials racing racing_prompts use_warm_start_params model_family warm_start_n_trials
auto_select auto_select_path trial max_trial_kl select_max_kl select_max_rate select_fallback finalists
export_formats overwrite hf_upload hf_private hf_upload_manifest progress refusal_markers
soft_refusal_markers evasive_patterns refusal_detection_mode detect_soft_refusals
detect_evasive_responses scorers use_neural_refusal_detection neural_detection_model
neural_detection_for_optuna neural_detection_threshold neural_detection_batch_size residual_position
project_direction winsorization_quantile use_pca_extraction n_refusal_directions pca_alpha
use_eigenvalue_weights eigenvalue_weight_method eigenvalue_weight_temperature direction_weights
use_supervised_probing ensemble_probe_pca ensemble_weight_probe ensemble_weight_pca min_probe_accuracy
orthogonalize_directions use_sacred_directions n_sacred_directions sacred_overlap_threshold
iterative_rounds min_direction_magnitude max_kl_per_round enable_layer_profiles layer_range_profiles
use_activation_calibration activation_target_percentile activation_calibration_layer_frac
activation_calibration_min_factor activation_calibration_max_factor use_concept_cones n_concept_cones
min_cone_size directions_per_cone min_silhouette_score use_caa caa_addition_strength caa_max_overlap
use_circuit_ablation n_refusal_circuits circuit_importance_threshold circuit_cache_path good_prompts
bad_prompts good_evaluation_prompts bad_evaluation_prompts good_confirmation_prompts
bad_confirmation_prompts over_behaviour_prompts helpfulness_prompts unhelpfulness_prompts sacred_prompts
sacred_baseline_prompts enable_validation run_mmlu_validation mmlu_source mmlu_categories
mmlu_samples_per_category mmlu_few_shot validation_benchmarks save_validation_report
validation_report_path host port share auth models_dir chat_history_dir log_level log_file
structured_logging
"""
NAMES = [*NAME_LIST.split(), "use_covectors", "controls"]
"""Those of the requirements, and what experience added (docs/decisions/0016-defaults-by-evidence.md)."""

DEFAULTS = {
    "behaviour": "refusal",
    "strategy": "single",
    "dtypes": ["auto", "bfloat16", "float16", "float32"],
    "system_prompt": "You are a helpful assistant.",
    "thinking_tokens": 512,
    "max_batch_size": 128,
    "max_prompt_tokens": 2048,
    "max_response_length": 100,
    "refusal_check_tokens": 30,
    "kl_divergence_tokens": 5,
    "n_trials": 200,
    "n_startup_trials": 30,
    "max_strength": 1.5,
    "study_name": "heretic_study",
    "storage": "sqlite:///heretic_study.db",
    "lease_seconds": 180,
    "max_trial_kl": 2.0,
    "select_max_kl": 0.5,
    "finalists": 5,
    "export_formats": ["weights"],
    "refusal_detection_mode": "lenient",
    "use_neural_refusal_detection": True,
    "neural_detection_model": "facebook/bart-large-mnli",
    "winsorization_quantile": 1.0,
    "direction_weights": [1.0, 0.5, 0.25],
    # Changed with the evidence of docs/decisions/0016-defaults-by-evidence.md.
    "ensemble_probe_pca": False,
    "orthogonalize_directions": False,
    "ensemble_weight_probe": 0.7,
    "min_probe_accuracy": 0.65,
    "iterative_rounds": 1,
    "activation_target_percentile": 0.75,
    "n_concept_cones": 5,
    "caa_addition_strength": 0.3,
    "n_refusal_circuits": 20,
    "mmlu_samples_per_category": 20,
    "host": "127.0.0.1",
    "port": 7860,
    "log_level": "info",
}

OUT_OF_RANGE = {
    "seed": -1,
    "batch_size": -1,
    "max_batch_size": 0,
    "refusal_check_tokens": 0,
    "kl_divergence_scale": 0.0,
    "n_trials": 0,
    "n_startup_trials": -1,
    "max_strength": 2.1,
    "workers": 0,
    "lease_seconds": 10,
    "racing_prompts": 9,
    "warm_start_n_trials": 6,
    "max_trial_kl": 0.0,
    "select_max_rate": 1.1,
    "finalists": 0,
    "neural_detection_threshold": 1.5,
    "winsorization_quantile": 0.4,
    "n_refusal_directions": 17,
    "pca_alpha": -0.1,
    "iterative_rounds": 6,
    "min_silhouette_score": -1.1,
    "port": 65536,
    "strategy": "ablate",
    "dtypes": ("float8",),
    "export_formats": ("gguf",),
    "evasive_patterns": ("(",),
    "storage": "mysql://host/name",
    "time_budget": "soon",
    "hf_upload": "no slash",
    "model_family": "llamma",
    "search_space": {"max_weight": (1.0, 0.5)},
    "layer_range_profiles": (
        {"start": 0.0, "end": 0.5, "multiplier": 1.0},
        {"start": 0.4, "end": 1.0, "multiplier": 1.0},
    ),
}


def test_every_name_of_the_requirements_is_a_setting_and_nothing_else() -> None:
    """Requirements 3.2 to 3.6."""
    assert sorted(NAMES) == sorted(setting_names()) == sorted(Settings.model_fields)


def test_defaults_are_those_of_the_requirements() -> None:
    settings = Settings(model="m")
    assert {name: schema.plain(getattr(settings, name)) for name in DEFAULTS} == DEFAULTS
    assert settings.sacred_prompts.sample == 200
    assert settings.unhelpfulness_prompts.config == "en"
    assert len(settings.mmlu_categories) == 12


def test_a_prompt_set_has_the_fields_of_the_requirements() -> None:
    """Requirements 3.8."""
    wanted = "dataset config data_files revision split column category prefix suffix system_prompt sample"
    assert set(DatasetSettings.model_fields) == {*wanted.split(), "sample_seed", "stream"}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_values_out_of_range_are_refused(name: str) -> None:
    """Reliability D08; the control is that the defaults pass."""
    Settings(model="m")
    with pytest.raises(ValidationError):
        Settings.model_validate({"model": "m", name: OUT_OF_RANGE[name]})


@pytest.mark.parametrize("name", [name for name in NAMES if schema.bare(schema.hints(Settings)[name]) is int])
def test_true_is_no_number(name: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"model": "m", name: True})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings(model="m").n_trials = 5


def test_every_setting_is_described() -> None:
    for info in help_table():
        assert info.meaning and info.type and "value" not in info.type.split(), info
        assert info.meaning.isascii() and info.type.isascii()
    assert [info.name for info in help_table()] == list(setting_names())
    assert describe("trust_remote_code").consent and describe("auth").secret
    assert describe("max_strength").affects_score and not describe("n_trials").affects_score
    assert not describe("allow_pickle").implemented and describe("racing").implemented


def test_the_tables_of_rules_name_real_settings() -> None:
    for row in UNAVAILABLE:
        assert row.setting in Settings.model_fields
    for rule in RULES:
        assert set(rule.settings) <= set(schema.leaf_names())


def test_the_packaged_default_file_is_fresh() -> None:
    """Architecture rule 15: `config.default.toml` is the output of `default_toml`."""
    path = resources.files("heretic") / "data" / "config.default.toml"
    assert path.read_text(encoding="utf-8") == default_toml()


def test_the_default_file_states_nothing_and_uncommented_states_the_defaults() -> None:
    text = default_toml()
    assert tomllib.loads(text) == {}
    stated = tomllib.loads(re.sub(r"(?m)^#(?! )", "", text))
    assert set(Settings.model_fields) - set(stated) == {"response_prefix"}
    defaults = Settings(model=stated["model"])
    for path, value in schema.flatten(stated):
        checked, problem = schema.check_value(path, value)
        assert problem is None, (path, problem)
        expected = defaults
        for key in path:
            expected = getattr(expected, key)
        if path == ("layer_range_profiles",):
            assert value == schema.plain(expected)
        else:
            assert schema.plain(checked) == schema.plain(expected), path


def test_the_settings_page_names_every_setting() -> None:
    page = settings_page()
    for name in NAMES:
        assert f"| `{name}` |" in page
    for group in GROUPS:
        assert f"## {group.title}" in page
    assert page.isascii()


def test_packaged_behaviours_are_listed() -> None:
    """R-CFG-10."""
    assert {"refusal", "verbosity", "hedging", "demo"} <= set(built_in_behaviours())


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("45m", 2700), ("8h", 28800), ("1h30m", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


def test_importing_the_settings_loads_no_model_library() -> None:
    """Architecture contract: settings know no torch; the control shows that the check can see an import."""
    heavy = ("torch", "transformers", "optuna", "pydantic")
    code = f"import sys, heretic.config; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pydantic']"
