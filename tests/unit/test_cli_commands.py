# SPDX-License-Identifier: Apache-2.0
"""The command tree (requirements 2.2, R-CLI-18, REL-17)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from heretic.cli.application import build_application, run_command_line
from heretic.cli.effects import EFFECTS, TAKES_SETTINGS, Effect
from heretic.cli.flags import HELP
from heretic.cli.study import nondominated
from heretic.config import setting_names
from heretic.study.state import open_study
from heretic.study.types import FinishedTrial, Scores

REQUIRED = (
    "run", "demo", "show-config", "inspect", "extract", "apply", "direction show", "direction compare",
    "direction combine", "evaluate", "study list", "study show", "study front", "study plot", "study delete",
    "study unlock", "export", "verify", "reproduce", "worker", "chat", "ui", "experiment list",
    "experiment show", "experiment prepare", "experiment run", "experiment evaluate", "experiment report", "doctor",
    "report",
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Settings files of the working directory must not decide a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    yield tmp_path


def commands(app: App, front: tuple[str, ...] = ()) -> Iterator[str]:
    """Full names of all commands, groups themselves left out."""
    for name in app:
        if name.startswith("-"):
            continue
        path = (*front, name)
        inner = list(commands(app[name], path))
        yield from inner or [" ".join(path)]


def test_each_command_of_the_tree_declares_its_effect() -> None:
    """REL-17: a command without a declared effect fails the build."""
    found = set(commands(build_application()))
    assert found == set(EFFECTS) - {"heretic"}
    assert found >= set(REQUIRED)
    assert EFFECTS["study delete"] is Effect.DESTROY_LOCAL and EFFECTS["heretic"] is Effect.WRITE_LOCAL


def test_the_completeness_test_sees_an_undeclared_command() -> None:
    """Control of the test above."""
    app = build_application()

    @app.command
    def sneaky() -> None: ...

    assert "sneaky" in set(commands(app)) - set(EFFECTS)


def test_help_lists_commands_flags_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """R-CLI-18: by group, with type, default and environment name; ASCII."""
    assert run_command_line(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in setting_names():
        assert f"--{name.replace('_', '-')}: " in shown and f"HERETIC_{name.upper()}" in shown
    for flag, _ in HELP:
        assert flag in shown
    for name in REQUIRED:
        assert name.split()[0] in shown
    assert shown.isascii() and "Search:" in shown


@pytest.mark.parametrize("name", REQUIRED)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: heretic {name}" in shown and "Common flags" in shown
    assert ("any setting" in shown or name == "run") == (name in TAKES_SETTINGS)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("study nonsense", "ConfigurationError"),
        ("study delete", "ConfigurationError"),
        ("evaluate --n-trials 3", "ConfigurationError"),
        ("evaluate M", "ConfigurationError"),
        ("M --n-trails 5", "UnknownSettingError"),
        ("run", "ConfigurationError"),
        ("M --n-trials many", "ConfigurationError"),
        ("M --config missing.toml", "ConfigurationError"),
        ("study front nope", "StudyNotFoundError"),
        ("study show nope", "StudyNotFoundError"),
        ("study delete nope", "StudyNotFoundError"),
        ("study unlock nope", "StudyNotFoundError"),
        ("export nope", "StudyNotFoundError"),
        ("export nope --trial best", "ConfigurationError"),
        ("chat M", "ConfirmationRequiredError"),
        ("--log-level loud study list", "ConfigurationError"),
        ("--json=maybe", "ConfigurationError"),
    ],
)
def test_usage_errors_are_code_2_and_one_document(
    line: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-23, R-CLI-28, R-CLI-40."""
    assert run_command_line([*line.split(), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["exit_code"], document["error"]["type"]) == ("failed", 2, kind)


def test_show_config_tells_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R-CLI-03."""
    (tmp_path / "config.toml").write_text("n_trials = 50\n", encoding="utf-8")
    assert run_command_line(["show-config", "org/model", "--n-trials", "20", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    entry = document["settings"]["n_trials"]
    assert entry["value"] == 20 and "n-trials" in entry["source"]
    assert "50" in str(entry["overridden"]) and document["exit_code"] == 0


def test_show_config_toml_can_be_loaded_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["show-config", "org/model", "--n-trials", "7", "--toml"]) == 0
    file = tmp_path / "again.toml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert run_command_line(["show-config", "--config", str(file), "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["n_trials"]["value"] == 7 and settings["model"]["value"] == "org/model"


def test_show_config_unused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["show-config", "--use-concept-cones", "false", "--unused"]) == 0
    assert capsys.readouterr().out.strip()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """A storage with one empty study."""
    url = f"sqlite:///{tmp_path}/s.db"
    open_study(url, "mine", fingerprint={"model": "org/model", "behaviour": "refusal"}).close()
    return url


def names(storage: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run_command_line(["study", "list", "--storage", storage, "--json"]) == 0
    return [study["study"] for study in json.loads(capsys.readouterr().out)["studies"]]


def test_studies_are_listed_and_shown(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(storage, capsys) == ["mine"]
    for command in ("show", "front", "unlock"):
        assert run_command_line(["study", command, "mine", "--storage", storage]) == 0
    shown = capsys.readouterr().out
    assert "org/model" in shown and "mine is free" in shown


def test_deleting_needs_the_word_and_without_it_changes_nothing(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-50, REL-17: without a terminal and without --yes exit 2 and no write."""
    assert run_command_line(["study", "delete", "mine", "--storage", storage]) == 2
    shown = capsys.readouterr().err
    assert "--yes" in shown and "'mine'" in shown
    assert names(storage, capsys) == ["mine"]
    assert run_command_line(["study", "delete", "mine", "--storage", storage, "--yes"]) == 0
    assert names(storage, capsys) == []


def test_the_front_leaves_out_beaten_and_infeasible_trials() -> None:
    def trial(index: int, rate: float, kl: float, guard: float = -1.0) -> FinishedTrial:
        return FinishedTrial(index, {}, Scores((rate, kl), {"guard": guard}))

    trials = [
        trial(0, 0.5, 0.1),
        trial(1, 0.1, 0.5),
        trial(2, 0.5, 0.2),
        trial(3, 0.0, 0.0, 1.0),
        trial(4, 0.1, 0.5),
    ]
    assert [entry.index for entry in nondominated(trials)] == [1, 0]
