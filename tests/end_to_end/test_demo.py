# SPDX-License-Identifier: Apache-2.0
"""`heretic demo` and `heretic doctor` on a machine without network and with a home that cannot be written (2.5)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .support import SMALL, command, environment, here

FEW = ("--n-trials=4", *(flag for flag in SMALL if not flag.startswith("--behaviour")))


def cut_off() -> list[str]:
    """Words that start a program in an empty network name space, where this user may make one."""
    tool = shutil.which("unshare")
    if tool is None:
        return []
    for words in ([tool, "-n"], [tool, "-rn"]):
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return words
    return []


@pytest.mark.timeout(240)
def test_demo_runs_offline_without_a_home_and_its_output_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-31 to R-CLI-33: no network, no cache, no writable home; the user's flags win over the demo's."""
    words = [*cut_off(), *command("demo", "--out", str(tmp_path / "edited"), "--json", *FEW)]
    extra = {"HOME": "/dev/null/home", "HF_HOME": "/dev/null/cache", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        words,
        cwd=tmp_path,
        env=environment(extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith("torch")]
    report = [name for name in left if name.startswith("validation_report_")]
    assert sorted(left) == sorted(["edited", *report]), "nothing but the output and its report is left"
    assert len(report) == 1
    checked = here("verify", str(tmp_path / "edited"), capture=capsys)
    assert checked.code == 0, checked.err


@pytest.mark.timeout(120)
def test_doctor_finds_nothing_wrong_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-17: one real edit and reload of the bundled model."""
    monkeypatch.chdir(tmp_path)
    ended = here("doctor", "--json", capture=capsys)
    assert ended.code == 0, ended.err
    checks = {row["check"]: row for row in ended.document["checks"]}
    assert checks["edit and reload"]["status"] == "pass"
    assert not list(tmp_path.iterdir())
