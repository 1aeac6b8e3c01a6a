# SPDX-License-Identifier: Apache-2.0
"""What would be lost, and fetching it, over a real SSH server (R-VAS-33, R-VAS-52, H07, H11, REL-16)."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Cloud, thin
from .machine import Machine
from .runs import RUN, finished

pytestmark = pytest.mark.loopback
ID = "7001"


# Losses


@pytest.mark.parametrize("verb", thin(["terminate", "stop"], 1))
def test_a_live_run_and_an_unfetched_model_are_stated_and_refused(
    cloud: Cloud, machine: Machine, verb: str
) -> None:
    """R-VAS-52, H07."""
    finished(cloud, machine)
    told = cloud.run(verb, ID, "--yes")
    assert told.code == 2 and "tiny-heretic" in told.text and "--discard-unsaved" in told.text
    (machine.state / "seconds").write_text("30", encoding="utf-8")
    assert cloud.run(*RUN).code == 0
    told = cloud.run(verb, ID, "--yes")
    assert told.code == 2 and "ALIVE (tiny/model" in told.text and 7001 in cloud.provider.instances
    asked = cloud.run(verb, ID)
    assert asked.code == 2 and "ALIVE" in asked.text and "is killed" in asked.text


@pytest.mark.parametrize("verb", thin(["stop", "terminate"], 1))
def test_after_the_download_nothing_is_at_risk(cloud: Cloud, machine: Machine, verb: str) -> None:
    finished(cloud, machine)
    assert cloud.run("download").code == 0
    told = cloud.run(verb, ID, "--yes")
    assert told.code == 0 and "every saved model was downloaded and verified" in told.text


def test_a_paused_machine_is_judged_by_what_was_seen_when_it_was_paused(
    cloud: Cloud, machine: Machine
) -> None:
    """A run that was killed by the pause, or a model that stayed there, is not forgotten."""
    finished(cloud, machine)
    assert cloud.run("stop", ID, "--yes", "--discard-unsaved").code == 0
    told = cloud.run("terminate", ID, "--yes")
    assert told.code == 2 and "tiny-heretic" in told.text and "LOST" in told.text
    assert cloud.run("start", ID, "--yes").code == 0
    (machine.state / "seconds").write_text("30", encoding="utf-8")
    assert cloud.run(*RUN).code == 0
    assert cloud.run("stop", ID, "--yes", "--discard-unsaved").code == 0
    told = cloud.run("terminate", ID, "--yes")
    assert told.code == 2 and "a run may be killed" in told.text


# Download


def test_download_verifies_renames_and_never_overwrites(cloud: Cloud, machine: Machine) -> None:
    finished(cloud, machine)
    told = cloud.run("download", "--json")
    target = cloud.folder / "models" / "tiny-heretic"
    assert told.code == 0 and told.document["path"] == str(target) and told.document["verified"]
    source = machine.workspace / "models" / "tiny-heretic"
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }
    assert not target.with_name("tiny-heretic.partial").exists()
    (target / "mine").write_text("kept", encoding="utf-8")
    again = cloud.run("download", "tiny-heretic")
    assert (
        again.code == 2 and "exists" in again.text and (target / "mine").read_text(encoding="utf-8") == "kept"
    )
    assert "yes" in cloud.run("models").out


def test_a_download_goes_on_where_it_was(cloud: Cloud, machine: Machine) -> None:
    """H11: the first half is there already and is not fetched again; it is verified as well."""
    finished(cloud, machine)
    data = (machine.workspace / "models" / "tiny-heretic" / "model.safetensors").read_bytes()
    partial = cloud.folder / "models" / "tiny-heretic.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert cloud.run("download").code == 0
    assert (cloud.folder / "models" / "tiny-heretic" / "model.safetensors").read_bytes() == data


def cut_before_the_copy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes away between the look and the copy."""
    from heretic.cloud import fetching

    def cut(*arguments: Any) -> fetching.Download:
        machine.stop()
        return fetching.prepare(*arguments)

    monkeypatch.setattr("heretic.cloud.cli.fetch.prepare", cut)


@pytest.mark.slow
def test_a_cut_link_is_picked_up_again(
    cloud: Cloud, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(cloud, machine)
    cut_before_the_copy(machine, monkeypatch)
    cloud.clock.hooks = [lambda: None, machine.start]
    told = cloud.run("download")
    assert told.code == 0 and "attempt 2" in told.text, told.text


@pytest.mark.slow
def test_a_link_that_stays_cut_is_an_error_and_nothing_gets_the_name(
    cloud: Cloud, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(cloud, machine)
    cut_before_the_copy(machine, monkeypatch)
    told = cloud.run("download")
    assert told.code == 1 and "goes on where it was" in told.text
    assert not (cloud.folder / "models" / "tiny-heretic").exists() and not cloud.ledger().rentals()[0].fetched


@pytest.mark.slow
def test_a_broken_file_here_is_fetched_anew(cloud: Cloud, machine: Machine) -> None:
    """Same length, other content: rsync passes over it, the checksum does not."""
    finished(cloud, machine)
    data = (machine.workspace / "models" / "tiny-heretic" / "model.safetensors").read_bytes()
    partial = cloud.folder / "models" / "tiny-heretic.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(bytes(len(data)))
    assert cloud.run("download").code == 0
    assert (cloud.folder / "models" / "tiny-heretic" / "model.safetensors").read_bytes() == data


def test_a_broken_file_there_is_never_accepted(cloud: Cloud, machine: Machine) -> None:
    finished(cloud, machine)
    path = machine.workspace / "models" / "tiny-heretic" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    told = cloud.run("download", "--json")
    assert told.code == 1 and told.document["error"]["type"] == "ChecksumError"
    assert not (cloud.folder / "models" / "tiny-heretic").exists()
    assert cloud.run("terminate", ID, "--yes").code == 2


@pytest.mark.slow
def test_an_incomplete_model_is_not_fetched(cloud: Cloud, machine: Machine) -> None:
    folder = machine.workspace / "models" / "half"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    told = cloud.run("download", "half")
    assert told.code == 2 and "not complete" in told.text
    assert "partial" in cloud.run("models").out and cloud.run("download").code == 2
    assert "half" in cloud.run("terminate", ID, "--yes").text


@pytest.mark.slow
def test_links_and_odd_names_of_the_machine_stay_there(cloud: Cloud, machine: Machine) -> None:
    """A machine is not trusted: no link is followed or made, no name leaves the folder."""
    finished(cloud, machine)
    source = machine.workspace / "models"
    (source / "tiny-heretic" / "link").symlink_to("/etc/passwd")
    (source / "-rf x").mkdir()
    for name in ("SHA256SUMS", "heretic_run.json"):
        (source / "-rf x" / name).write_text("", encoding="utf-8")
    assert cloud.run("download", "tiny-heretic").code == 0
    assert not (cloud.folder / "models" / "tiny-heretic" / "link").is_symlink()
    told = cloud.run("download", "--", "x")
    assert told.code == 2


@pytest.mark.slow
def test_dry_runs_touch_nothing(cloud: Cloud, machine: Machine) -> None:
    finished(cloud, machine)
    before = sorted(machine.folder.rglob("*"))
    writes = len(cloud.provider.writes())
    for line in (
        ("setup",), ("run", "a/b"), ("exec", "touch $HOME/ran"), ("extend", "2"), ("download",), ("connect",),
        ("stop", ID), ("terminate", ID),
    ):  # fmt: skip
        told = cloud.run(*line, "--dry-run", "--json")
        assert told.code == 0 and told.document["dry_run"], told.text
    assert sorted(machine.folder.rglob("*")) == before and len(cloud.provider.writes()) == writes
    assert not (cloud.folder / "models").exists()
