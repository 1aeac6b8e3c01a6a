# SPDX-License-Identifier: Apache-2.0
"""Behaviour packs, `show-config`, the fingerprint and what is written to files."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from heretic.config import (
    Settings,
    built_in_behaviours,
    load_behaviour,
    public_settings,
    render_show_config,
    resolve_settings,
    settings_for_fingerprint,
)
from heretic.config.behaviour import PROMPT_SETS
from heretic.exceptions import ConfigurationError
from heretic.testing.settings_cases import resolve

CASES: tuple[list[str], ...] = (
    [],
    ["--n-trials", "20", "--unhelpfulness-prompts.dataset", "wikitext", "--bad-prompts.prefix="],
    ["--behaviour", "demo", "--time-budget", "1h30m", "--max-memory.cpu", "3GiB", "--storage", "null"],
    [
        "--refusal-markers",
        "no, never",
        "--search-space.mlp.down_proj.max_weight=0.8,1.5",
        "--select-max-rate=0.1",
    ],
    ["--bad-confirmation-prompts.config", "null", "--no-early-exit", "--log-file", "a b.log"],
    ["--good-prompts.prefix", "null", "--bad-prompts.sample", "7", "--detect-soft-refusals", "null"],
)


@pytest.mark.parametrize("name", ["refusal", "verbosity", "hedging", "demo"])
def test_every_packaged_behaviour_loads(name: str, tmp_path: Path) -> None:
    """R-CFG-08, R-CFG-10."""
    behaviour, layer = load_behaviour(name, tmp_path)
    assert layer.findings == [] and len(behaviour.sha256) == 64 and behaviour.header.description
    resolved = resolve_settings(["--behaviour", name], environ={}, cwd=tmp_path, purpose="show")
    for prompts in PROMPT_SETS:
        assert resolved.origins[f"{prompts}.dataset"].layer == "behaviour"


def test_the_demo_pack_is_the_behaviour_refusal_on_packaged_sets(tmp_path: Path) -> None:
    resolved = resolve("m", "--behaviour", "demo", cwd=tmp_path)
    assert resolved.behaviour.name == "refusal"
    sets = {name: getattr(resolved.settings, name) for name in PROMPT_SETS}
    assert all(item.dataset.startswith("heretic:refusal-") and item.config is None for item in sets.values())
    assert (
        sets["bad_evaluation_prompts"].split == "validation"
        and sets["bad_confirmation_prompts"].split == "test[:100]"
    )


def test_the_data_defaults_are_those_of_refusal(tmp_path: Path) -> None:
    """Requirements 3.6: the code and the pack say the same."""
    settings = resolve("m", cwd=tmp_path).settings
    for name in PROMPT_SETS:
        assert getattr(settings, name) == getattr(Settings(model="m"), name)


def test_a_users_pack_is_a_layer_that_flags_override(tmp_path: Path) -> None:
    """R-CFG-11, R-CFG-12: files beside the pack are found; the hash follows the content, not the comments."""
    packs = tmp_path / "packs"
    packs.mkdir()
    (packs / "bad.jsonl").write_text('"a"\n', encoding="utf-8")
    text = (resources.files("heretic") / "data" / "behaviours" / "demo.toml").read_text(encoding="utf-8")
    text = text.replace('name = "refusal"', 'name = "mine"\nmax_response_length = 60', 1)
    text = text.replace('dataset = "heretic:refusal-bad"\nsplit = "train"', 'dataset = "bad.jsonl"')
    (packs / "mine.toml").write_text(text, encoding="utf-8")
    resolved = resolve("m", "--behaviour", "packs/mine.toml", "--good-prompts.split", "dev", cwd=tmp_path)
    assert resolved.behaviour.name == "mine" and resolved.settings.max_response_length == 60
    assert resolved.settings.bad_prompts.dataset == (packs / "bad.jsonl").resolve().as_posix()
    assert resolved.settings.good_prompts.split == "dev"
    (packs / "same.toml").write_text("# other words\n" + text, encoding="utf-8")
    same = resolve("m", "--behaviour", "packs/same.toml", cwd=tmp_path)
    (packs / "other.toml").write_text(text.replace("60", "61"), encoding="utf-8")
    other = resolve("m", "--behaviour", "packs/other.toml", cwd=tmp_path)
    assert resolved.behaviour.sha256 == same.behaviour.sha256 != other.behaviour.sha256


def test_a_wrong_pack_names_everything_that_is_wrong(tmp_path: Path) -> None:
    """R-CFG-12: validated like settings."""
    text = 'name = "x"\nmax_response_length = 0\ndescripton = ""\nhf_upload = "a/b"\n'
    text += '[labels]\ncounted = ["no"]\n'
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        resolve("m", "--behaviour", "x.toml", cwd=tmp_path)
    text = "\n".join(caught.value.details)
    for part in (
        "max_response_length = 0 (x.toml:2)",
        "no key 'descripton'; did you mean description?",
        "hf_upload cannot be set by a behaviour pack",
        "should name bad_evaluation_prompts",
        "labels.counted names 'no'",
    ):
        assert part in text


def test_an_unknown_behaviour_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean verbosity"):
        resolve("m", "--behaviour", "verbositty", cwd=tmp_path)


@pytest.mark.parametrize("tokens", CASES)
def test_the_printed_file_gives_the_same_settings(tokens: list[str], tmp_path: Path) -> None:
    """R-CLI-03: `--toml` prints a loadable file."""
    first = resolve("m", *tokens, cwd=tmp_path)
    text = render_show_config(first, "toml")
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    second = resolve(cwd=tmp_path)
    assert second.settings == first.settings
    assert tomllib.loads(text)["model"] == "m"


def test_asked_for_a_behaviour_alone_the_pack_itself_is_printed(tmp_path: Path) -> None:
    """R-CFG-10: it can be saved and used by path."""
    shown = resolve_settings(["--behaviour", "refusal"], environ={}, cwd=tmp_path, purpose="show")
    (tmp_path / "own.toml").write_text(render_show_config(shown, "toml"), encoding="utf-8")
    own = resolve("m", "--behaviour", "own.toml", cwd=tmp_path)
    assert own.behaviour.sha256 == shown.behaviour.sha256
    assert "refusal" in built_in_behaviours()


def test_text_and_json_show_value_source_and_what_was_overridden(tmp_path: Path) -> None:
    """R-CLI-03, R-CFG-07."""
    resolved = resolve("m", "--n-trials", "20", cwd=tmp_path, environ={"HERETIC_N_TRIALS": "50"})
    text = render_show_config(resolved)
    (line,) = [line for line in text.splitlines() if line.strip().startswith("n_trials ")]
    assert line.split(maxsplit=1)[1] == "20  [--n-trials; overrides HERETIC_N_TRIALS 50]"
    assert text.isascii() and "Degradations" not in text, "every default can be had"
    document = json.loads(render_show_config(resolved, "json"))
    assert document["settings"]["n_trials"]["overridden"][0] == {"source": "HERETIC_N_TRIALS", "value": 50}
    assert document["settings"]["n_startup_trials"]["source"] == "lowered to n_trials"


def test_unused_settings_are_listed(tmp_path: Path) -> None:
    """R-CFG-06."""
    environ = {"HERETIC_RACING_PROMPTS": "20", "HERETIC_SEED": "1"}
    resolved = resolve("m", cwd=tmp_path, environ=environ)
    assert (
        render_show_config(resolved, unused=True)
        == "racing_prompts (HERETIC_RACING_PROMPTS): racing is off\n"
    )
    assert "is read" in render_show_config(resolve("m", cwd=tmp_path), unused=True)


def test_secrets_appear_nowhere(tmp_path: Path) -> None:
    """R-CFG-07: the control is that the settings themselves hold them."""
    environ = {"HERETIC_AUTH": "me:hunter2", "HERETIC_STORAGE": "postgresql://me:hunter2@host/db"}
    resolved = resolve("m", "--storage", "postgresql://me:hunter3@host/db", cwd=tmp_path, environ=environ)
    assert resolved.settings.auth == "me:hunter2"
    shown = [render_show_config(resolved, fmt) for fmt in ("text", "toml", "json")]
    shown += [json.dumps(public_settings(resolved)), json.dumps(settings_for_fingerprint(resolved.settings))]
    assert not any("hunter" in text for text in shown)
    with pytest.raises(ConfigurationError) as caught:
        resolve("m", cwd=tmp_path, environ={"HERETIC_STORAGE": "mysql://me:hunter2@host/db"})
    assert "hunter" not in str(caught.value)


def test_the_fingerprint_holds_what_changes_scores_and_nothing_else(tmp_path: Path) -> None:
    """R-SEA-20."""

    def fingerprint(*tokens: str) -> dict[str, object]:
        resolved = resolve("m", *tokens, cwd=tmp_path)
        return settings_for_fingerprint(resolved.settings, resolved.behaviour)

    base = fingerprint()
    json.dumps(base)
    same = (
        "--n-trials=10 --study-name=x --time-budget=5m --batch-size=4 --select-max-kl=0.1 --engine=reference"
    )
    for token in (*same.split(), "--sacred-prompts.config=de", "--log-level=debug"):
        assert fingerprint(token) == base, token
    other = (
        "--max-response-length=80 --bad-prompts.split=train[:9] --system-prompt= --seed=1 --behaviour=demo"
    )
    for token in (*other.split(), "--quantization=bnb_4bit", "--kl-divergence-scale=2"):
        assert fingerprint(token) != base, token
