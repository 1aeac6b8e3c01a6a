# SPDX-License-Identifier: Apache-2.0
"""What a stranger's run file may say (reliability F05, requirements R-CLI-12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heretic.config import recorded_settings, resolve_settings, setting_names, settings_from_run_file
from heretic.config.run_file import IGNORED, PLACES, TAKEN
from heretic.config.settings import has_note
from heretic.exceptions import ConfigurationError, UntrustedContentError

COMMIT = "a" * 40
SETS = (
    "good",
    "bad",
    "good_evaluation",
    "bad_evaluation",
    "good_confirmation",
    "bad_confirmation",
    "over_behaviour",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of the working directory must not decide a test."""
    monkeypatch.chdir(tmp_path)
    yield


def record(*tokens: str) -> dict[str, Any]:
    """A run file's sections as a run with these settings would write them."""
    resolved = resolve_settings(
        ["org/model", "--behaviour=demo", *tokens], environ={}, cwd=Path.cwd(), config_files=()
    )
    return {
        "settings": {name: dict(entry) for name, entry in recorded_settings(resolved).items()},
        "model": {"id": "org/model", "commit": COMMIT, "dtype": "float32"},
        "data": {name: {"content_hash": "0", "revision": None} for name in SETS},
    }


def test_the_settings_of_a_run_come_back(tmp_path: Path) -> None:
    """R-CLI-12: everything that decides the result, the model at its commit, nothing of the place it ran in."""
    document = record(
        "--max-response-length=48",
        "--refusal-check-tokens=16",
        "--seed=7",
        "--bad-prompts.split=train[:64]",
        "--refusal-markers=no way",
        "--dtypes=float32",
        "--system-prompt=",
        "--storage=sqlite:////elsewhere/study.db",
        "--auto-select-path=/elsewhere/out",
        "--hf-upload=someone/something",
        "--n-trials=40",
    )
    assert not any(name in document["settings"] for name in PLACES)
    (tmp_path / "config.toml").write_text(
        "seed = 9\n"
    )  # control: a file that was merely found does not speak
    resolved = settings_from_run_file(document)
    settings = resolved.settings
    assert (settings.seed, settings.max_response_length, settings.system_prompt) == (7, 48, "")
    assert (
        settings.bad_prompts.split == "train[:64]" and settings.bad_prompts.dataset == "heretic:refusal-bad"
    )
    assert settings.refusal_markers == ("no way",) and settings.dtypes == ("float32",)
    assert (settings.model, settings.model_revision) == ("org/model", COMMIT)
    assert settings.hf_upload is None and settings.auto_select_path is None
    assert settings.n_trials != 40
    assert resolved.explicit == frozenset()


def test_the_command_line_wins_and_names_what_the_file_cannot(tmp_path: Path) -> None:
    document = record("--seed=7", "--bad-prompts.split=train[:64]")
    document["model"] = {"id": "tiny", "commit": None}
    document["settings"]["bad_prompts.dataset"] = {"value": "prompts.jsonl", "source": "x"}
    with pytest.raises(ConfigurationError, match=r"local source called 'prompts.jsonl'") as caught:
        settings_from_run_file(document, ["--model=/here/tiny"])
    assert caught.value.hint is not None and "--bad-prompts.dataset" in caught.value.hint
    own = ["--model=/here/tiny", "--bad-prompts.dataset=./mine.jsonl", "--seed", "8"]
    settings = settings_from_run_file(document, own).settings
    assert (settings.model, settings.model_revision, settings.seed) == ("/here/tiny", None, 8)
    assert settings.bad_prompts.dataset == "./mine.jsonl"
    assert settings.bad_prompts.split == "train[:64]", "another place of the same prompts keeps their split"
    with pytest.raises(ConfigurationError, match="local model"):
        settings_from_run_file(document, ["--bad-prompts.dataset=./mine.jsonl"])


def _set(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["settings"][name] = {"value": value, "source": "--x"}

    return change


def _model(name: object, commit: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["model"] = {"id": name, "commit": commit}

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("scorers", [{"name": "evil:Scorer"}]),
        _set("scorers", [{"name": "evil.py:Scorer"}]),
        _set("scorers", [{"name": "markers", "options": {"a": {"b": 1}}}]),
        _set("scorers", "evil.py:Scorer"),
        _set("behaviour", "/tmp/evil.toml"),
        _set("behaviour", "../evil"),
        _set("storage", "sqlite:////tmp/evil.db"),
        _set("storage", "postgresql://evil/db"),
        _set("auto_select_path", "/etc"),
        _set("hf_upload", "evil/repo"),
        _set("trust_remote_code", True),
        _set("allow_pickle", True),
        _set("share", True),
        _set("host", "0.0.0.0"),
        _set("log_file", "/etc/cron.d/x"),
        _set("chat_template", "/tmp/evil.jinja"),
        _set("circuit_cache_path", "/tmp/x"),
        _set("evaluate_model", "evil/model"),
        _set("bad_prompts.dataset", "/etc/passwd"),
        _set("bad_prompts.dataset", "../../secrets"),
        _set("bad_prompts.dataset", "~/.ssh/id_rsa"),
        _set("bad_prompts.dataset", "hf://evil"),
        _set("bad_prompts.dataset", ["a"]),
        _set("bad_prompts.data_files", ["../../etc/passwd"]),
        _set("seed", {"a": 1}),
        _set("dtypes", [["float32"]]),
        _set("neural_detection_model", "/tmp/model"),
        _set("plugins", "evil"),
        _set("bad_prompts.code", "evil"),
        _model("/tmp/model", COMMIT),
        _model("../model/x", COMMIT),
        _model("org/model", "main"),
        _model(["a"], COMMIT),
    ],
)
def test_hostile_run_files_are_refused(change: Callable[[dict[str, Any]], None]) -> None:
    """F05: no plug-in, path, storage, upload, trust or consent from the file."""
    document = record()
    settings_from_run_file(document)  # control: without the change it is accepted
    change(document)
    with pytest.raises((UntrustedContentError, ConfigurationError)) as caught:
        settings_from_run_file(document)
    if not isinstance(document["model"]["id"], list):
        assert isinstance(caught.value, UntrustedContentError), caught.value


def test_a_value_of_the_user_replaces_a_refused_one() -> None:
    document = record()
    _set("chat_template", "own.jinja")(document)
    with pytest.raises(UntrustedContentError):
        settings_from_run_file(document)
    found = settings_from_run_file(document, ["--chat-template=mine.jinja"])
    assert found.settings.chat_template == Path("mine.jinja")


def test_a_local_folder_of_the_models_name_is_not_taken_for_the_model(tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="folder of that name lies here"):
        settings_from_run_file(record())


def test_every_setting_is_taken_ignored_or_refused() -> None:
    """A new setting must be sorted; one that decides scores is taken unless it is a place or belongs to the search."""
    assert not (TAKEN & IGNORED or TAKEN & set(PLACES) or IGNORED & set(PLACES))
    refused = {name for name in setting_names() if name not in TAKEN | IGNORED | set(PLACES)}
    assert refused == {"trust_remote_code", "allow_pickle", "evaluate_model"}
    deciding = {name for name in setting_names() if has_note(name, "score")}
    assert deciding - TAKEN == {
        "model",
        "model_revision",
        "chat_template",
        "search_space",
        "early_stop_trials",
        "racing",
        "racing_prompts",
        "max_trial_kl",
    }
    assert not {name for name in TAKEN if has_note(name, "consent") or has_note(name, "secret")}
