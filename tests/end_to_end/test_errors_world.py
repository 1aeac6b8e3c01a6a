# SPDX-License-Identifier: Apache-2.0
"""REL-09, REL-11, REL-18: mistakes that come from elsewhere: the Hub, another process, the disk, an older study."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import httpx2
import pytest

from heretic.exceptions import HubAccessError, ModelNotFoundError, NetworkError

from .support import assert_clean_failure, environment, heretic
from .world import World, base_run, joined

Usage = namedtuple("Usage", ["total", "used", "free"])


def no_loading(*arguments: object) -> None:
    """In place of the loader."""
    raise AssertionError("weights were read before the mistake was noticed")


def test_gated_missing_and_unreachable_repositories_differ() -> None:
    """R-CLI-43, REL-X13: the real adapter on the library's own errors; gated is a kind of not found there."""
    from huggingface_hub import errors as hub

    from heretic.model.source import hub_error

    response = httpx2.Response(403, request=httpx2.Request("GET", "https://huggingface.co/org/model"))
    gated = hub_error(hub.GatedRepoError("gated", response=response), "org/model")
    assert isinstance(gated, HubAccessError) and gated.exit_code == 1
    for word in ("https://huggingface.co/org/model", "hf auth login", "HF_TOKEN"):
        assert word in str(gated.hint)
    missing = hub_error(hub.RepositoryNotFoundError("none", response=response), "org/model")
    assert isinstance(missing, ModelNotFoundError) and "spelling" in str(missing.hint)
    away = hub_error(hub.LocalEntryNotFoundError("no answer"), "org/model")
    assert isinstance(away, NetworkError) and "network" in str(away.hint)
    cached = hub_error(hub.LocalEntryNotFoundError("not there"), "org/model", offline=True)
    assert "cache" in cached.message and "--offline" in str(cached.hint)


def test_too_little_disk_is_told_with_both_figures(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-CLI-48, REL-03."""
    monkeypatch.setattr("heretic.model.loading._load", no_loading)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 1000))
    told = world.heretic(*base_run("--json"))
    error = told.document["error"]
    assert told.code == 1 and error["type"] == "DiskSpaceError"
    assert "GB are free" in error["message"] and "--auto-select-path" in error["remedy"]
    assert not world.leftovers()


def test_study_of_another_process_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REL-21: the owner is named, before weights are read."""
    monkeypatch.setattr("heretic.model.loading._load", no_loading)
    code = (
        "import sys, time; from pathlib import Path; from heretic.lease import acquire; "
        "lease = acquire(Path('study.db.heretic_study.lock'), 'it'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=world.folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
        told = world.heretic(*base_run("--json"))
        owner.communicate()
    error = told.document["error"]
    assert told.code == 1 and error["type"] == "StudyLockedError"
    assert str(owner.pid) in error["message"] and error["remedy"]


def test_named_study_with_other_settings_is_refused_with_the_differences(world: World) -> None:
    """R-SEA-22: exit 2, every difference, both cures; the default name gets a study of its own instead."""
    assert world.heretic(*base_run("--study-name=mine")).code == 0
    shutil.rmtree(world.folder / "out")
    other = world.heretic(*base_run("--study-name=mine", "--kl-divergence-tokens=3", "--json"))
    error = other.document["error"]
    assert other.code == 2 and error["type"] == "FingerprintMismatchError"
    assert any("kl_divergence_tokens" in line for line in error["details"])
    assert "--study-name" in error["remedy"] and "--resume fresh" in error["remedy"]
    assert not world.leftovers()
    failed = world.heretic(*base_run("--study-name=mine", "--resume=fail", "--json"))
    assert failed.code == 2 and "already exists" in failed.document["error"]["message"]
    fresh = world.heretic(*base_run("--study-name=mine", "--kl-divergence-tokens=3", "--resume=fresh"))
    assert fresh.code == 0 and "'mine-1'" in joined([fresh.err])
    near = world.heretic("study", "show", "mein", "--storage", "sqlite:///study.db")
    assert near.code == 2 and "'mine'" in near.err


def test_default_study_with_other_settings_gets_a_name_of_its_own(world: World) -> None:
    """R-SEA-22."""
    assert world.heretic(*base_run()).code == 0
    other = world.heretic(*base_run("--kl-divergence-tokens=3", "--auto-select-path=second"))
    assert other.code == 0 and "kl_divergence_tokens" in joined([other.err])
    names = [
        row["study"]
        for row in world.heretic("study", "list", "--storage=sqlite:///study.db", "--json").document[
            "studies"
        ]
    ]
    assert len(names) == 2 and names[0] == "heretic_study" and names[1].startswith("heretic_study-")


def test_a_tensor_that_is_not_used_is_named(world: World) -> None:
    """Unexpected keys are listed and the run goes on (R-MOD: nothing is dropped silently)."""
    import torch
    from safetensors.torch import load_file, save_file

    path = world.model / "model.safetensors"
    save_file({**load_file(path), "model.extra.weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    told = world.heretic(*base_run())
    assert told.code == 0, told.err
    assert "model.extra.weight" in told.err


@pytest.mark.parametrize("select", [["--auto-select"], ["--trial=0"], []], ids=["rule", "trial", "none"])
def test_destroyed_model_is_never_a_success(select: list[str], world: World) -> None:
    """REL-R10, R-SEL-02: limits nothing can meet give exit 3, and with fallback none nothing is saved."""
    flags = [
        flag
        for flag in base_run("--select-max-kl=0.0000001", "--select-fallback=none")
        if flag != "--auto-select"
    ]
    told = world.heretic(*flags, *select)
    assert told.code == (3 if select == ["--auto-select"] else 0), told.err
    assert bool(world.leftovers()) == (select == ["--trial=0"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_parent_that_may_not_be_written(world: World) -> None:
    """R-SEL-04."""
    closed = world.folder / "closed"
    closed.mkdir(mode=0o500)
    told = world.heretic(*base_run("--auto-select-path=closed/out"))
    assert told.code == 1 and "cannot be written" in told.err


def test_environment_and_dotenv_mistakes_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-CLI-40: a misspelt variable is an error wherever it stands."""
    monkeypatch.setenv("HERETIC_N_TRAILS", "5")
    told = world.heretic(*base_run())
    assert told.code == 2 and "HERETIC_N_TRAILS" in told.err and "n_trials" in told.err.lower()
    monkeypatch.delenv("HERETIC_N_TRAILS")
    world.write(".env", "HERETIC_SEDE=1\n")
    told = world.heretic(*base_run())
    assert told.code == 2 and ".env:1" in told.err and "seed" in told.err.lower()


PROCESSES = (
    (["./nowhere"], 1, ["./nowhere", "->"]),
    (["org/modle", "--offline"], 1, ["org/modle", "->"]),
    (["model", "--n-trails", "3"], 2, ["--n-trials"]),
    (["model", "--bad-prompts.dataset=nowhere.txt", "--offline"], 1, ["nowhere.txt", "->"]),
    (["model", "--export-formats", "lora"], 2, ["not available"]),
    (["exprot", "mine"], 2, ["heretic export"]),
)


@pytest.mark.parametrize(("words", "code", "said"), PROCESSES, ids=lambda value: str(value)[:20])
def test_the_same_in_a_process_of_its_own(
    words: list[str], code: int, said: list[str], template: Path, tmp_path: Path
) -> None:
    """REL-18: what the shell sees; the catalogue itself runs in process for speed."""
    shutil.copytree(template, tmp_path / "world")
    assert_clean_failure(heretic(*words, cwd=tmp_path / "world"), code, said)
