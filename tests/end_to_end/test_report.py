# SPDX-License-Identifier: Apache-2.0
"""`heretic report` on the study of a real run: the numbers of the page are those of the run's own document."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from heretic.cli.application import run_command_line
from heretic.phases.report_store import store_report, stored_report
from heretic.study.sharing import visit_study

from .support import TRIALS, Ended

NAME = "heretic_study"


@pytest.fixture
def storage(finished: tuple[Path, Ended], tmp_path: Path) -> str:
    """A copy of the study; its report is that of the run, whoever stored it."""
    folder, ended = finished
    for source in folder.glob("study.db*"):
        shutil.copy(source, tmp_path)
    address = f"sqlite:///{tmp_path / 'study.db'}"
    study = visit_study(address, NAME)
    if stored_report(study) is None:
        store_report(study, ended.document)
    study.close()
    return address


def report(*words: str, capture: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The command, in this process."""
    capture.readouterr()
    code = run_command_line(["report", *words])
    out, err = capture.readouterr()
    return code, out, err


def test_the_page_shows_the_run(
    finished: tuple[Path, Ended], storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 5, item 6: figures, replies side by side, certificate and coverage of a run that really happened."""
    import json

    document: dict[str, Any] = finished[1].document
    code, out, err = report(
        NAME, "--storage", storage, "--out", str(tmp_path / "r"), "--json", capture=capsys
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["study"] == NAME and told["files"][0] == "index.html"
    assert {"front.png", "kernels.png", "separability.png"} <= set(told["files"])
    page = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    chosen, verified = document["chosen"], document["verified"]
    assert f"Trial {chosen['trial']} was chosen" in page
    assert f"({chosen['hits']}/{chosen['n']})" in page and f"({verified['hits']}/{verified['n']})" in page
    assert f"{chosen['kl_mean']:.4f} +- " in page and f"{TRIALS} finished" in page
    assert "the saved files: none" not in page and "Each changed matrix" in page or "was not kept" in page
    assert str(finished[0]) not in page


def test_it_does_not_write_over_what_is_there_and_knows_near_names(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-09, R-CLI-47: exit code 2 with the remedy. Control: a free name is written."""
    words = (NAME, "--storage", storage, "--out", str(tmp_path / "r"))
    assert report(*words, capture=capsys)[0] == 0
    code, _, err = report(*words, capture=capsys)
    assert code == 2 and "--overwrite" in err
    assert report(*words, "--overwrite", capture=capsys)[0] == 0
    code, _, err = report("heretic_studi", "--storage", storage, capture=capsys)
    assert code == 2 and NAME in err and "Traceback" not in err
