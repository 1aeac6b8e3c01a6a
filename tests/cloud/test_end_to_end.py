# SPDX-License-Identifier: Apache-2.0
"""From renting to the verified model at home, with heretic itself on the machine (R-VAS, REL-T7)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heretic.demo import model_path
from heretic.publish import verify_checksums
from tests.end_to_end.support import SMALL

from .conftest import Cloud
from .machine import Machine

pytestmark = pytest.mark.loopback
ID = "7001"


def real_program(machine: Machine) -> None:
    """heretic of this checkout at the place where `setup` puts it."""
    root = Path(__file__).resolve().parents[2]
    machine.program(
        f"#!/bin/sh\nexport OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH={root / 'src'}\n"
        f'exec {sys.executable} -m heretic "$@"\n'
    )
    shutil.copytree(model_path(), machine.workspace / "demo" / "model")


def ended(machine: Machine, seconds: float = 100.0) -> dict[str, object]:
    """The exit record of the run."""
    until = time.monotonic() + seconds
    while not (machine.state / "run.exit").exists():
        assert time.monotonic() < until, (machine.workspace / "heretic.log").read_text(encoding="utf-8")[
            -3000:
        ]
        time.sleep(0.1)
    found: dict[str, object] = json.loads((machine.state / "run.exit").read_text(encoding="utf-8"))
    return found


def test_the_quick_way_from_rent_to_home(cloud: Cloud, machine: Machine) -> None:
    """The same way with a stand-in for the search: the link dies and the machine is paused in between."""
    (machine.state / "seconds").write_text("0.5", encoding="utf-8")
    assert cloud.run("run", "demo/model", "--weights-gb", "0.01").code == 0
    machine.stop()
    assert ended(machine)["code"] == 0
    assert cloud.run("progress").code == 1
    machine.start()
    told = cloud.run("watch")
    assert told.code == 0 and "status 0 (done)" in told.text and "tiny-heretic" in told.text
    assert cloud.run("stop", "--yes", ID).code == 2
    assert cloud.run("download").code == 0
    assert not verify_checksums(cloud.folder / "models" / "tiny-heretic")
    assert (
        cloud.run("stop", ID, "--yes").code == 0 and cloud.provider.instances[7001]["cur_state"] == "stopped"
    )
    # The disk of a paused machine does not change: what was seen when it was paused still holds.
    assert cloud.run("terminate", ID, "--yes").code == 0 and not cloud.provider.instances
    # Study and log came home before.
    assert "trials" in (cloud.state / "records" / ID / "heretic.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_search_on_the_machine_survives_kills_and_comes_home(cloud: Cloud, machine: Machine) -> None:
    """create, run, kill the link, kill the run, the same command again, watch, download, verify, stop."""
    import signal

    real_program(machine)
    small = [flag for flag in SMALL if flag != "--offline"]
    line = ("run", "demo/model", ID, "--weights-gb", "0.01", "--", "--offline", "--n-trials=16", *small)
    assert cloud.run(*line).code == 0
    machine.stop()
    machine.start()
    until = time.monotonic() + 90
    while cloud.run("progress", "--json").document["snapshot"]["progress"] is None:
        assert time.monotonic() < until, (machine.workspace / "heretic.log").read_text(encoding="utf-8")[
            -2000:
        ]
        time.sleep(0.3)
    facts = json.loads((machine.state / "run.json").read_text(encoding="utf-8"))
    os.killpg(facts["pid"], signal.SIGKILL)
    assert ended(machine)["code"] == -signal.SIGKILL
    assert "failed" in cloud.run("watch").text
    assert cloud.run(*line).code == 0
    assert ended(machine)["code"] in (0, 3)
    shown = cloud.run("watch", "--json").document
    assert shown["snapshot"]["progress"]["finished"] == 16, (machine.workspace / "heretic.log").read_text(
        "utf-8"
    )[-3000:]
    (model,) = [entry["name"] for entry in shown["snapshot"]["models"] if entry["complete"]]
    assert cloud.run("download", "--json").document["model"] == model
    saved = cloud.folder / "models" / model
    assert not verify_checksums(saved)
    manifest = json.loads((saved / "heretic_run.json").read_text(encoding="utf-8"))
    assert manifest
    told = cloud.run("stop", ID, "--yes")
    home = shutil.copytree(cloud.state / "records" / ID, cloud.folder / "records")
    studies = subprocess.run(
        [sys.executable, "-m", "heretic", "study", "list", "--json", "--storage", f"sqlite:///{home}/heretic_study.db"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(studies.stdout)["studies"][0]["finished"] == 16
    assert told.code == 0 and cloud.provider.instances[7001]["cur_state"] == "stopped"
