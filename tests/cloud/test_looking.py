# SPDX-License-Identifier: Apache-2.0
"""Commands that look, lengthen a lease, or open a shell, over a real SSH server; and plans that ask nobody."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pexpect
import pytest

from heretic.demo import model_path

from .conftest import HF_TOKEN, Cloud
from .machine import Machine
from .provider import KEY

pytestmark = pytest.mark.loopback
ID = "7001"
RUN = ("run", "tiny/model", "--weights-gb", "0.001")
NVIDIA = """#!/bin/sh
case "$*" in *memory.total,temp*) echo "0, RTX 4090, 93, 20480, 24564, 61, 390.5";; *) echo 24564;; esac
"""


def nvidia_smi(folder: Path) -> None:
    """A driver's program that tells of one card."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(NVIDIA, encoding="utf-8")
    (folder / "nvidia-smi").chmod(0o755)


def test_status_shows_the_cards(cloud: Cloud, machine: Machine) -> None:
    """R-VAS-28; without an answer of the driver it is an error, not an idle card."""
    told = cloud.run("status")
    assert told.code == 1 and "nvidia-smi" in told.text
    nvidia_smi(machine.folder / "bin")
    told = cloud.run("status", "--json")
    assert told.document["gpus"] == [
        {"name": "RTX 4090", "load": 93, "used": 20480, "total": 24564, "temperature": 61, "power": 390.5}
    ]
    assert "20/24 GiB (83 %)" in cloud.run("status").out


def test_logs_and_ctrl_c_leave_the_run_alone(cloud: Cloud, machine: Machine) -> None:
    """R-VAS-31, R-VAS-56."""
    (machine.state / "seconds").write_text("20", encoding="utf-8")
    assert cloud.run(*RUN).code == 0
    until = time.monotonic() + 15
    while "trial 10/20" not in cloud.run("logs").out:
        assert time.monotonic() < until

    def press() -> None:
        raise KeyboardInterrupt

    cloud.clock.hooks = [press]
    told = cloud.run("logs", "--follow")
    assert told.code == 130 and "is not touched" in told.text
    cloud.clock.hooks = [press]
    told = cloud.run("watch")
    assert told.code == 130 and "goes on" in told.text
    assert cloud.run("progress", "--json").document["snapshot"]["job"]["alive"]


def test_no_secret_is_in_any_process_list(cloud: Cloud, machine: Machine) -> None:
    """I01: neither here nor on the machine, while a run that was given the token lives."""
    cloud.environ["HF_TOKEN"] = HF_TOKEN
    (machine.state / "seconds").write_text("20", encoding="utf-8")
    assert cloud.run(*RUN, "--send-hf-token").code == 0
    seen = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        seen += b"tiny/model" in words
        assert HF_TOKEN.encode() not in words and KEY.encode() not in words
    assert seen, "the run itself is in the list"


def test_a_lease_is_extended_on_the_machine_and_in_the_ledger(cloud: Cloud, machine: Machine) -> None:
    assert cloud.run("extend", "3", ID).code == 2 and not (machine.state / "lease").exists()
    told = cloud.run("extend", "3", ID, "--yes")
    assert told.code == 0 and "at most $0.95" in told.text
    end = float((machine.state / "lease").read_text(encoding="utf-8"))
    assert abs(end - time.time() - 3 * 3600) < 30
    assert abs(cloud.ledger().rentals()[0].lease_end - end) < 30


def test_a_start_renews_the_lease(cloud: Cloud, machine: Machine) -> None:
    assert cloud.run("stop", ID, "--yes").code == 0
    assert cloud.run("start", ID, "--yes", "--max-hours", "2").code == 0
    assert abs(float((machine.state / "lease").read_text(encoding="utf-8")) - time.time() - 2 * 3600) < 30
    assert cloud.run("stop", ID, "--yes").code == 0
    machine.stop()
    told = cloud.run("start", ID, "--yes")
    assert told.code == 0 and "was not renewed" in told.text and "heretic-vast extend 2 7001" in told.text


def test_a_guard_that_cannot_act_is_told_by_setup_and_progress(cloud: Cloud, machine: Machine) -> None:
    python = machine.state / "venv" / "bin" / "python"
    python.write_text("#!/bin/sh\n", encoding="utf-8")
    python.chmod(0o755)
    assert "never reported" in cloud.run("setup").text
    (machine.state / "guard.state").write_text(f"no-key {int(time.time())}", encoding="utf-8")
    assert "lease guard: no-key" in cloud.run("progress").text
    (machine.state / "guard.state").write_text(f"armed {int(time.time())}", encoding="utf-8")
    assert "lease guard" not in cloud.run("progress").text


@pytest.mark.slow
def test_watch_draws_on_a_terminal_and_connect_opens_a_shell(cloud: Cloud, machine: Machine) -> None:
    """R-VAS-30, R-VAS-37."""
    nvidia_smi(machine.folder / "bin")
    environ = {**cloud.environ, "TERM": "xterm", "PATH": os.environ["PATH"]}

    def spawn(*words: str) -> pexpect.spawn:
        return pexpect.spawn(
            sys.executable, ["-m", "heretic.cloud", *words], env=environ, cwd=str(cloud.folder), timeout=30,
            encoding="utf-8", dimensions=(50, 160),
        )  # fmt: skip

    child = spawn("watch", "--once")
    child.expect("since watching began")
    child.expect("RTX 4090")
    child.expect("Ctrl-C leaves")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    child = spawn("connect")
    child.sendline("echo in-$((40 + 2)); exit 7")
    child.expect("in-42")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 7


def test_a_plan_says_first_whether_this_machine_would_do(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-VAS-20; asks the provider nothing, and runs no program of the working folder (F06)."""
    del cloud.environ["VAST_API_KEY"]
    told = cloud.run("plan", str(model_path()), "--json")
    assert told.code == 0 and told.document["size"]["source"] == "files of the folder"
    nvidia_smi(cloud.folder)
    monkeypatch.chdir(cloud.folder)
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    if shutil.which("nvidia-smi", path="/usr/bin:/bin") is None:
        assert cloud.run("plan", "x/y-7B", "--offline", "--json").document["local_gpus_gib"] == []
    monkeypatch.setenv("PATH", f"{cloud.folder}:{os.environ['PATH']}")
    told = cloud.run("plan", "x/y-7B", "--offline")
    assert told.out.startswith(
        "This machine: its GPU (24 GiB) holds the model as it is; nothing needs to be rented."
    )
    told = cloud.run("plan", "x/y-32B", "--offline", "--trials-per-hour", "40", "--json")
    by_tier = {entry["tier"]: entry for entry in told.document["tiers"]}
    assert by_tier["A100_80GB"]["disk_gb"] == 400 and by_tier["A100_80GB"]["expected_total"] == 10.0
    assert "at 4 bit" in told.document["local"] and not cloud.provider.requests


def test_plans_and_searches_agree_on_the_disk(cloud: Cloud) -> None:
    told = cloud.run("gpus", "--model", "x/y", "--weights-gb", "15.2", "--json")
    assert told.document["disk_gb"] == 75 and told.document["offers"][0]["id"] == 501
    assert json.dumps(told.document["arithmetic"]).count("50 GB") == 1
