# SPDX-License-Identifier: Apache-2.0
"""Flags of the command line: the lines that must work as written, booleans, lists, the model anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic.config import schema
from heretic.config.command_line import command_line_layer, flag_of
from heretic.exceptions import ConfigurationError, UnknownSettingError
from heretic.testing.settings_cases import leaf_paths, resolve

LINES: dict[str, dict[str, object]] = {
    "MODEL": {"model": "MODEL"},
    "--model MODEL": {"model": "MODEL"},
    "--model M --auto-select true --n-trials 20 --cache-weights false": {"auto_select": True, "n_trials": 20},
    "--model M --auto-select true --cache-weights false --storage sqlite:///study.db "
    "--unhelpfulness-prompts.config en": {"storage": "sqlite:///study.db"},
    "--model M --auto-select true --auto-select-path /workspace/models "
    "--storage sqlite:////workspace/heretic_study.db --study-name qwen32b-abliteration --cache-weights false "
    "--n-trials 200 --unhelpfulness-prompts.config en": {
        "study_name": "qwen32b-abliteration",
        "n_trials": 200,
    },
    "--model M --ensemble-probe-pca false --use-pca-extraction true": {"ensemble_probe_pca": False},
    "--model M --use-circuit-ablation false": {"use_circuit_ablation": False, "strategy": "single"},
    "--model M --refusal-check-tokens 30": {"refusal_check_tokens": 30},
}


@pytest.mark.parametrize("line", LINES)
def test_command_lines_that_must_work(line: str, tmp_path: Path) -> None:
    """R-CLI-60."""
    resolved = resolve(*line.split(), cwd=tmp_path)
    for name, value in LINES[line].items():
        assert getattr(resolved.settings, name) == value
    assert any("cache_weights" in notice for notice in resolved.notices) == ("cache-weights" in line)


def test_the_line_with_compile_is_understood(tmp_path: Path) -> None:
    """R-CLI-60: `--compile` is a switch; whether it can be had is known once the model is loaded (R-PRF-10)."""
    line = "--model M --auto-select true --n-trials 20 --compile"
    resolved = resolve(*line.split(), cwd=tmp_path)
    assert resolved.settings.compile and resolved.settings.n_trials == 20
    assert not any("compil" in text for text in resolved.degradations)
    assert not resolve(*line.split(), "false", cwd=tmp_path).settings.compile


@pytest.mark.parametrize(
    "line",
    [
        "MODEL --auto-select",
        "--auto-select MODEL",
        "--auto-select true MODEL",
        "--auto-select=yes MODEL",
        "--auto-select -- MODEL",
    ],
)
def test_the_model_may_stand_anywhere(line: str, tmp_path: Path) -> None:
    """R-CLI-01, R-CLI-21."""
    settings = resolve(*line.split(), cwd=tmp_path).settings
    assert settings.model == "MODEL" and settings.auto_select


@pytest.mark.parametrize("word", ["true", "yes", "on", "1", "TRUE"])
def test_words_for_true_and_their_opposites(word: str, tmp_path: Path) -> None:
    """R-CLI-21."""
    opposite = {"true": "false", "yes": "no", "on": "off", "1": "0", "TRUE": "FALSE"}[word]
    assert resolve("m", "--offline", word, cwd=tmp_path).settings.offline is True
    assert resolve("m", "--offline", opposite, cwd=tmp_path).settings.offline is False
    assert resolve("m", "--early-exit", opposite, cwd=tmp_path).settings.early_exit is False


def test_negated_flags(tmp_path: Path) -> None:
    assert resolve("m", "--no-early-exit", cwd=tmp_path).settings.early_exit is False
    with pytest.raises(UnknownSettingError):
        resolve("m", "--no-n-trials", cwd=tmp_path)


@pytest.mark.parametrize(
    "tokens",
    [
        ["--dtypes", "float16", "--dtypes", "float32"],
        ["--dtypes", "float16,float32"],
        ["--dtypes", '["float16", "float32"]'],
        ["--dtypes=float16", "--dtypes", "float32"],
    ],
)
def test_lists_in_three_forms(tokens: list[str], tmp_path: Path) -> None:
    """R-CLI-22."""
    assert resolve("m", *tokens, cwd=tmp_path).settings.dtypes == ("float16", "float32")


def test_a_comma_inside_a_pattern_separates_nothing(tmp_path: Path) -> None:
    flag = "--evasive-patterns=let me .{0,30} redirect,another\\, topic"
    assert resolve("m", flag, cwd=tmp_path).settings.evasive_patterns == (
        "let me .{0,30} redirect",
        "another, topic",
    )
    assert resolve("m", "--refusal-markers=", cwd=tmp_path).settings.refusal_markers == ()
    assert resolve("m", "--refusal-markers", "null", cwd=tmp_path).settings.refusal_markers is None


def test_dashes_underscores_and_the_other_spelling(tmp_path: Path) -> None:
    """R-CLI-22."""
    for flag in ("--n_trials", "--n-trials"):
        assert resolve("m", flag, "20", cwd=tmp_path).settings.n_trials == 20
    assert resolve("m", "--behavior", "demo", cwd=tmp_path).settings.behaviour == "demo"
    assert resolve("m", "--bad_prompts.sample_seed=4", cwd=tmp_path).settings.bad_prompts.sample_seed == 4


def test_null_words_and_empty_text(tmp_path: Path) -> None:
    for text in ("", "null", "none"):
        assert resolve("m", "--storage", text, cwd=tmp_path).settings.storage is None
    assert resolve("m", "--quantization", "none", cwd=tmp_path).settings.quantization == "none"
    assert resolve("m", "--system-prompt=", cwd=tmp_path).settings.system_prompt == ""
    assert resolve("m", "--detect-soft-refusals", "null", cwd=tmp_path).settings.detect_soft_refusals is None


@pytest.mark.parametrize("path", leaf_paths(), ids=schema.dotted)
def test_a_misspelt_flag_names_the_right_one(path: tuple[str, ...], tmp_path: Path) -> None:
    """Reliability D07: every setting misspelt once, as a flag, a key and a variable."""
    name = misspell(path[-1])
    wrong = (*path[:-1], name)
    flag = flag_of(wrong)
    with pytest.raises(UnknownSettingError) as caught:
        resolve("m", f"{flag}=1", cwd=tmp_path)
    assert caught.value.exit_code == 2 and flag[2:].replace("-", "_") in str(caught.value).replace("-", "_")
    assert f"did you mean {flag_of(path)}?" in str(caught.value)
    variable = "HERETIC_" + "__".join(wrong).upper()
    with pytest.raises(UnknownSettingError, match=variable) as caught:
        resolve("m", cwd=tmp_path, environ={variable: "1"})
    assert f"did you mean {schema.dotted(path)}?" in str(caught.value)
    header = f"[{path[0]}]\n" if len(path) > 1 else ""
    (tmp_path / "config.toml").write_text(f"\n{header}{name} = 1\n", encoding="utf-8")
    with pytest.raises(UnknownSettingError, match=rf"config\.toml:{len(path) + 1}: ") as caught:
        resolve("m", cwd=tmp_path)
    assert f"did you mean {schema.dotted(path)}?" in str(caught.value)


def misspell(name: str) -> str:
    """One letter doubled, where that gives no other name."""
    return name + name[-1]


def test_an_unknown_flag_does_not_swallow_the_model(tmp_path: Path) -> None:
    layer = command_line_layer(["--auto-selct", "MODEL"])
    assert layer.entries[("model",)].value == "MODEL" and layer.findings[0].kind == "unknown"
    layer = command_line_layer(["--n-trails", "5", "MODEL"])
    assert layer.entries[("model",)].value == "MODEL"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["one", "two"], "more than one model: one, two"),
        (["one", "--model", "two"], "more than one model: one, two"),
        (["m", "--n-trials"], "--n-trials: needs a value"),
        (["m", "--n-trials", "--offline"], "--n-trials: needs a value"),
        (["m", "--seed", "1", "--seed", "2"], "given more than once (1, 2)"),
        (["m", "--seed", "-5"], "seed = -5 (--seed): should be integer >= 0"),
        (["m", "--n-trials", "many"], 'n_trials = "many" (--n-trials): should be integer > 0'),
        (["m", "--offline=perhaps"], 'offline = "perhaps" (--offline): should be true or false'),
        (["m", "--search-space", "x"], "name its key, as in search_space."),
        (["m", "-n", "5"], "there is no flag '-n'"),
        ([], "no model is given"),
    ],
)
def test_wrong_command_lines_say_what_is_wrong(tokens: list[str], text: str, tmp_path: Path) -> None:
    """R-CLI-40, R-CLI-41."""
    with pytest.raises(ConfigurationError) as caught:
        resolve(*tokens, cwd=tmp_path)
    assert text in " ".join(caught.value.data["findings"])  # type: ignore[arg-type]  # a list of text
    assert caught.value.exit_code == 2
