# SPDX-License-Identifier: Apache-2.0
"""Contradictions, consents, unread settings, features this version lacks, and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic.config import Resolved, Settings
from heretic.config.availability import UNAVAILABLE, Unavailable, unavailable
from heretic.config.behaviour import built_in_behaviours
from heretic.config.layers import Entry, LayerKind
from heretic.config.rules import Effective, apply_derivations, contradictions
from heretic.exceptions import ConfigurationError, UnknownSettingError, UnusedSettingError, WarmStartError
from heretic.testing.settings_cases import resolve

COMMIT = "0123456789abcdef" * 2 + "01234567"


def findings(error: ConfigurationError) -> str:
    listed = error.data["findings"]
    assert isinstance(listed, list)
    return "\n".join(listed)


def refused(*tokens: str, cwd: Path, environ: dict[str, str] | None = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        resolve(*tokens, cwd=cwd, environ=environ)
    assert caught.value.exit_code == 2
    return caught.value


def judge(**given: object) -> list[str]:
    """Contradictions of explicit settings, whatever this version contains."""
    settings = Settings.model_validate({"model": "m", **given})
    entries: dict[tuple[str, ...], Entry] = {
        (name,): Entry(value, f"--{name}" if name in given else "default") for name, value in settings
    }
    kinds: dict[tuple[str, ...], LayerKind] = {
        (name,): "command line" if name in given else "default" for name, _ in settings
    }
    return [finding.text for finding in contradictions(settings, Effective(entries, kinds))]


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "subspace", "use_concept_cones": True},
        {"strategy": "caa", "use_caa": False},
        {"use_caa": True, "use_circuit_ablation": True},
        {"goal": "induce", "strategy": "oblique"},
        {"use_sacred_directions": True, "strategy": "norm_preserving"},
        {"ensemble_weight_probe": 0.5, "ensemble_weight_pca": 0.6},
        {"n_trials": 10, "n_startup_trials": 11},
        {"max_response_length": 20, "refusal_check_tokens": 21},
        {"activation_calibration_min_factor": 2.0, "activation_calibration_max_factor": 1.0},
        {"n_refusal_directions": 4, "direction_weights": (1.0, 0.5)},
        {"trust_remote_code": True, "model_revision": "main"},
    ],
    ids=lambda given: "-".join(given),
)
def test_contradictions_name_both_settings_and_both_sources(given: dict[str, object]) -> None:
    """R-CLI-42, R-SAC-04, R-DIR-09, reliability F01."""
    (line,) = judge(**given)
    for name in given:
        assert name in line and (f"--{name}" in line)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"strategy": "cones", "use_concept_cones": True},
        {"strategy": "single", "use_caa": False},
        {"ensemble_weight_probe": 0.5, "ensemble_weight_pca": 0.505},
        {"n_trials": 30, "n_startup_trials": 30},
        {"trust_remote_code": True, "model_revision": COMMIT},
        {"n_refusal_directions": 5},
    ],
    ids=lambda given: "-".join(given),
)
def test_what_agrees_is_accepted(given: dict[str, object]) -> None:
    assert judge(**given) == []


def test_a_switch_selects_its_strategy() -> None:
    """R-DIR-01."""
    effective = Effective(
        {("strategy",): Entry("single", "default"), ("use_caa",): Entry(True, "--use-caa")},
        {("strategy",): "default", ("use_caa",): "command line"},
    )
    apply_derivations(effective)
    assert effective.value("strategy") == "caa" and effective.kinds[("strategy",)] == "derived"


def test_a_default_follows_a_smaller_bound_and_an_explicit_value_does_not(tmp_path: Path) -> None:
    resolved = resolve("m", "--n-trials", "20", "--max-response-length", "16", cwd=tmp_path)
    assert (resolved.settings.n_startup_trials, resolved.settings.refusal_check_tokens) == (20, 16)
    assert resolved.origins["n_startup_trials"].layer == "derived"
    error = refused("m", "--n-trials", "20", "--n-startup-trials", "25", cwd=tmp_path)
    assert "n_startup_trials = 25 (--n-startup-trials)" in str(error)
    assert "n_trials = 20 (--n-trials)" in str(error)


@pytest.mark.parametrize("row", UNAVAILABLE, ids=lambda row: row.setting)
def test_a_missing_feature_is_refused_when_asked_for_and_recorded_when_a_default(
    row: Unavailable, tmp_path: Path
) -> None:
    """R-GEN-07, R-GEN-08."""
    wanted = {"strategy": "oblique", "goal": "induce", "export_formats": "lora"}
    value = wanted.get(
        row.setting,
        {"iterative_rounds": "2", "validation_benchmarks": "a"}.get(row.setting, "true"),
    )
    assert "not available in this version" in findings(refused("m", f"--{row.setting}={value}", cwd=tmp_path))
    resolved = resolve("m", cwd=tmp_path)
    default = Settings.model_fields[row.setting].get_default()
    noted = any(f"({row.setting})" in line for line in resolved.degradations)
    assert noted == (unavailable(row.setting, default) is not None)
    assert getattr(resolved.settings, row.setting) == row.values[0]


def test_a_feature_switched_off_by_hand_is_no_degradation(tmp_path: Path) -> None:
    resolved = resolve("m", "--no-use-neural-refusal-detection", cwd=tmp_path)
    assert not any("neural" in line for line in (*resolved.degradations, *resolved.notices))


def test_every_built_in_behaviour_resolves_and_an_unknown_scorer_is_refused_by_name(tmp_path: Path) -> None:
    for name in built_in_behaviours():
        assert resolve("m", "--behaviour", name, cwd=tmp_path).settings.scorers
    (tmp_path / "config.toml").write_text('[[scorers]]\nname = "hegding"\n', encoding="utf-8")
    assert "no scorer called 'hegding'" in findings(refused("m", cwd=tmp_path))


def test_an_unread_parameter_is_an_error_on_the_command_line_and_a_warning_elsewhere(tmp_path: Path) -> None:
    """R-CFG-06."""
    error = refused("m", "--n-concept-cones", "4", cwd=tmp_path)
    assert isinstance(error, UnusedSettingError) and "the strategy is not cones" in str(error)
    resolved = resolve("m", cwd=tmp_path, environ={"HERETIC_N_CONCEPT_CONES": "4"})
    assert any(
        "n_concept_cones (HERETIC_N_CONCEPT_CONES) has no effect" in notice for notice in resolved.notices
    )
    assert list(resolved.unused) == ["n_concept_cones"]
    assert isinstance(refused("m", "--search-space.n-heads=1,5", cwd=tmp_path), UnusedSettingError)
    assert resolve("m", "--search-space.direction-index=0.5", cwd=tmp_path).unused == {}
    switch = resolve("m", "--use-pca-extraction", "true", cwd=tmp_path)
    assert any("use_pca_extraction" in notice for notice in switch.notices)


def test_an_unknown_family_has_its_own_error(tmp_path: Path) -> None:
    """R-WST-04."""
    assert isinstance(refused("m", "--model-family", "llamma", cwd=tmp_path), WarmStartError)


@pytest.mark.parametrize(
    ("name", "value"),
    [("trust_remote_code", "true"), ("allow_pickle", "true"), ("share", "true"), ("hf_upload", "me/x")],
)
def test_consents_count_only_on_the_command_line(name: str, value: str, tmp_path: Path) -> None:
    """Reliability F01, F02, F06, REL-R11; a refusal written down is accepted from anywhere."""
    (tmp_path / "config.toml").write_text(
        f"{name} = {value if value == 'true' else repr(value)}\n", encoding="utf-8"
    )
    assert "counts only on the command line" in findings(refused("m", cwd=tmp_path))
    (tmp_path / "config.toml").unlink()
    variable = f"HERETIC_{name.upper()}"
    assert variable in findings(refused("m", cwd=tmp_path, environ={variable: value}))
    (tmp_path / ".env").write_text(f"{variable}={value}\n", encoding="utf-8")
    assert "counts only on the command line" in findings(refused("m", cwd=tmp_path))
    (tmp_path / ".env").write_text(f"{variable}={'' if name == 'hf_upload' else 'false'}\n", encoding="utf-8")
    resolve("m", cwd=tmp_path)


def test_trust_needs_a_commit(tmp_path: Path) -> None:
    """Reliability F01."""
    assert "40 hexadecimal digits" in findings(refused("m", "--trust-remote-code", cwd=tmp_path))
    settings = resolve("m", "--trust-remote-code", "--model-revision", COMMIT, cwd=tmp_path).settings
    assert settings.trust_remote_code


def test_code_of_the_user_counts_only_where_it_was_named(tmp_path: Path) -> None:
    """Reliability F05."""
    (tmp_path / "config.toml").write_text('[[scorers]]\nname = "mine.py:Scorer"\n', encoding="utf-8")
    assert "own code (mine.py:Scorer)" in findings(refused("m", cwd=tmp_path))
    named = resolve("m", cwd=tmp_path, files=[Path("config.toml")]).settings.scorers
    assert named is not None and named[0].is_plug_in, "control: a file that was named counts"


def test_all_errors_of_all_layers_are_one_list(tmp_path: Path) -> None:
    """R-CLI-41: an overridden wrong value is still an error."""
    (tmp_path / "config.toml").write_text(
        'n_trials = "many"\nsede = 1\n[bad_prompts]\nseed = 3\n', encoding="utf-8"
    )
    error = refused("m", "--n-trials", "20", "--port=0", cwd=tmp_path, environ={"HERETIC_SEED": "-1"})
    assert not isinstance(error, UnknownSettingError) and error.details == tuple(findings(error).split("\n"))
    for part in (
        'n_trials = "many" (config.toml:1): should be integer > 0',
        "config.toml:2: there is no setting 'sede'; did you mean seed?",
        "config.toml:4: there is no setting 'bad_prompts.seed'; seed is a top-level setting: move it above",
        "port = 0 (--port): should be integer 1..65535",
        "seed = -1 (HERETIC_SEED): should be integer >= 0",
    ):
        assert part in findings(error)


@pytest.mark.parametrize(
    ("name", "near"), [("prune_trials", "racing"), ("eval_prompts", "bad_evaluation_prompts")]
)
def test_names_that_never_existed_point_at_what_was_meant(name: str, near: str, tmp_path: Path) -> None:
    """Requirements 3.7."""
    assert f"did you mean {near}?" in findings(
        refused("m", cwd=tmp_path, environ={f"HERETIC_{name.upper()}": "1"})
    )
    assert f"did you mean --{near.replace('_', '-')}?" in findings(
        refused("m", f"--{name}", "1", cwd=tmp_path)
    )


@pytest.mark.parametrize("value", ["true", "false", "7", '"x"'])
def test_the_retired_name_is_accepted_with_any_value(value: str, tmp_path: Path) -> None:
    """Requirements 3.7."""
    (tmp_path / "config.toml").write_text(f"cache_weights = {value}\n", encoding="utf-8")
    with_it = resolve("m", cwd=tmp_path)
    assert any("config.toml:1: cache_weights is retired" in notice for notice in with_it.notices)
    (tmp_path / "config.toml").unlink()
    assert with_it.settings == resolve("m", cwd=tmp_path).settings


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"seed = 1\nn_trials = = 5\n", "config.toml:2:"),
        (b"seed = 1\nseed = 2\n", "not valid TOML"),
        ("seed = 1\n".encode("utf-16"), "is not UTF-8; convert it with: python -c"),
        (b"study_name = '\xff'\n", "is not UTF-8"),
        (b"[nothing]\n", "there is no setting 'nothing'"),
    ],
)
def test_malformed_files(raw: bytes, text: str, tmp_path: Path) -> None:
    """Reliability D06."""
    (tmp_path / "config.toml").write_bytes(raw)
    assert text in findings(refused("m", cwd=tmp_path))


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbfseed = 7\r\nn_trials = 40\r\n")
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfexport HERETIC_FINALISTS='3' \r\n# note\r\n\r\nOTHER=x\r\n")
    settings = resolve("m", cwd=tmp_path).settings
    assert (settings.seed, settings.n_trials, settings.finalists) == (7, 40, 3)


def test_a_missing_explicit_file_is_an_error(tmp_path: Path) -> None:
    """Reliability D09."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: cannot be read"):
        resolve("m", cwd=tmp_path, files=[Path("nowhere.toml")])


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("HERETIC_SEED=1\n".encode("utf-16"), ".env: is not UTF-8"),
        (b"HERETIC_SEDE=1\n", ".env:1 HERETIC_SEDE: there is no setting 'sede'; did you mean seed?"),
        (b"\nnot an assignment\n", ".env:2: should be NAME=VALUE"),
        (b"HERETIC_SEED=\0\n", ".env: is not UTF-8"),
    ],
)
def test_wrong_env_files(raw: bytes, text: str, tmp_path: Path) -> None:
    """Reliability I04."""
    (tmp_path / ".env").write_bytes(raw)
    assert text in findings(refused("m", cwd=tmp_path))


def test_an_env_file_moves_no_endpoint_and_is_announced_when_open(tmp_path: Path) -> None:
    """Reliability F06, I04."""
    (tmp_path / ".env").write_text(
        "HF_ENDPOINT=http://evil\nPYTHONPATH=x\nHERETIC_SEED=2 # mine\n", encoding="utf-8"
    )
    (tmp_path / ".env").chmod(0o644)
    resolved = resolve("m", cwd=tmp_path)
    assert resolved.settings.seed == 2
    text = "\n".join(resolved.notices)
    assert "HF_ENDPOINT is ignored" in text and "PYTHONPATH is ignored" in text and "chmod 600" in text
    (tmp_path / ".env").chmod(0o600)
    assert not any("chmod" in notice for notice in resolve("m", cwd=tmp_path).notices)


def test_a_found_file_is_announced(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = 1\n", encoding="utf-8")
    assert any("found in the working directory" in notice for notice in resolve("m", cwd=tmp_path).notices)
    named: Resolved = resolve("m", cwd=tmp_path, files=[Path("config.toml")])
    assert not any("found in" in notice for notice in named.notices)
