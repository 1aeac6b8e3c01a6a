# SPDX-License-Identifier: Apache-2.0
"""What `watch` and `progress` show: observed figures with their age, contradictions, no uptime (R-VAS-40 to 45)."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from heretic.cloud.dashboard import View, dashboard, facts, plain_line, readable
from heretic.cloud.discrepancies import Look, discrepancies, stale
from heretic.cloud.snapshot import Gpu, Job, Snapshot, progress_of, understood
from heretic.cloud.types import Instance

NOW = 1_800_000_000.0
JOB = Job(77, ("heretic", "--model", "a/b"), "a/b", "a--b", NOW - 3600, True, 1800.0, None, 0.0, NOW - 2)
BATCH = json.dumps(
    {"event": "trials", "finished": 12, "wanted": 200, "trials_per_second": 0.02, "eta_s": 9400.0,
     "best": {"trial": 9, "behaviour_rate": 0.12, "kl_mean": 0.214}}
)  # fmt: skip
SOUND = Snapshot(
    now=NOW, job=JOB, gpus=(Gpu("RTX 4090", 91.0, 20000.0, 24564.0, 64.0, 380.0),), models=(),
    progress=progress_of([BATCH]), log=("starting", BATCH), log_written=NOW - 20, disk=(20, 100, 80), guard="armed",
    guard_time=NOW - 10, lease_end=NOW + 7200, ready=True,
)  # fmt: skip
RUNNING = Instance(7001, "mine", "running", "running", hourly=0.5)
LOOK = Look(NOW, RUNNING, SOUND, provider_time=NOW, machine_time=NOW, lease_agreed=True)


def shown(look: Look, **changes: Any) -> str:
    """The dashboard as text."""
    view = View(look, "instance 7001 (mine)", look.now - 1800, 10.0, 0.5)
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(dashboard(replace(view, **changes)))
    return " ".join(stream.getvalue().split())


def test_the_dashboard_shows_every_figure() -> None:
    text = shown(LOOK)
    for words in (
        "instance 7001 (mine)", "watched 30m 00s", "$0.500/h, $0.250 since watching began", "77 ALIVE, a/b",
        "CPU 30m 00s (50 %)", "12/200", "best 12.0% at KL 0.214, trial 9", "RTX 4090", "91 %", "20/24 GiB (81 %)",
        "64 C", "380 W", "lease 2h 00m left", "every 10 s; Ctrl-C leaves, and the run goes on", "models saved none",
    ):  # fmt: skip
        assert words in text, words
    assert "uptime" not in text.lower() and "!" not in text


CONTRADICTIONS = [
    ({"snapshot": replace(SOUND, gpus=(Gpu("x", 0.0, 1, 2, 3, 4),), log_written=NOW - 4000)},
     ["process 77: alive", "GPU load: 0 %", "log: last written 1h 06m ago"]),
    ({"snapshot": replace(SOUND, job=replace(JOB, alive=False))}, ["process 77: not alive", "none recorded"]),
    ({"snapshot": replace(SOUND, job=replace(JOB, alive=False, code=1))}, ["not alive", "GPU load: 91 %"]),
    ({"snapshot": replace(SOUND, job=replace(JOB, alive=False, code=0), gpus=())}, ["exit status: 0", "none complete"]),
    ({"snapshot": replace(SOUND, job=replace(JOB, beat=NOW - 500))}, ["supervisor: last beat"]),
    ({"snapshot": replace(SOUND, guard="")}, ["never reported"]),
    ({"snapshot": replace(SOUND, guard="no-key")}, ["lease guard: no-key", "may not pause itself"]),
    ({"snapshot": replace(SOUND, guard="failed")}, ["lease guard: failed"]),
    ({"snapshot": replace(SOUND, guard_time=NOW - 900)}, ["armed, but last seen"]),
    ({"snapshot": replace(SOUND, disk=(0, 100, 14))}, ["disk: 86% used"]),
    ({"instance": replace(RUNNING, state="loading", said="loading")}, ["provider: loading", "ssh: answers"]),
    ({"instance": replace(RUNNING, state="stopped", said="exited")}, ["provider: exited", "ssh: answers"]),
    ({"provider_error": "status 500"}, ["provider: UNKNOWN (status 500)", "last seen running"]),
    ({"machine_error": "no answer"}, ["machine: UNKNOWN (no answer)", "last seen 2027", "provider: running"]),
    ({"machine_error": "x", "provider_error": "y"}, ["provider: UNKNOWN (y)", "machine: UNKNOWN (x)"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), CONTRADICTIONS, ids=range(len(CONTRADICTIONS)))
def test_contradictions_show_all_values_with_their_sources(changes: dict[str, Any], words: list[str]) -> None:
    """R-VAS-44. The control is `LOOK` itself, which has none."""
    found = discrepancies(replace(LOOK, **changes))
    assert found and all(any(word in line for line in found) for word in words), found
    assert "! " in shown(replace(LOOK, **changes)) and not discrepancies(LOOK)
    assert all("fine" not in line and " ok" not in line.lower() for line in found)


def test_old_figures_are_marked() -> None:
    """Older than two refreshes."""
    assert not stale(NOW - 19, NOW, 10) and stale(NOW - 21, NOW, 10) and not stale(0, NOW, 10)
    text = shown(replace(LOOK, machine_time=NOW - 65, machine_error="no answer"))
    assert text.count("[STALE: 1m 05s old]") >= 4
    assert "STALE" not in shown(LOOK)


def test_text_of_a_machine_cannot_write_to_the_terminal() -> None:
    hostile = understood(
        {"log": ["\x1b]52;c;evil\x07x\x1b[2J"], "models": [{"name": "\x1b[31mred", "bytes": 1}]}
    )
    text = shown(replace(LOOK, snapshot=replace(SOUND, log=hostile.log, models=hostile.models)))
    assert "\x1b" not in text and "evil" not in text and "red" in text


HOSTILE: list[dict[str, Any]] = [
    {}, {"run": 5, "gpus": 7, "models": {}, "log": "x", "disk": [1]}, {"run": {"pid": "x"}, "process": None},
    {"gpus": [["0", "x"], None, ["0", "A", "[N/A]", "1", "2", "3", "[N/A]"]]}, {"guard": "   ", "lease": "x"},
    {"models": [None, 5, {"name": 7}]}, {"exit": {"pid": 1, "code": "0"}, "run": {"pid": 1}, "now": float("nan")},
    {"log": ['{"event": "trials"', '{"event": "trials", "best": 5, "eta_s": "x"}', "[]"]},
]  # fmt: skip


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_a_strange_answer_is_unknown_and_breaks_nothing(raw: dict[str, Any]) -> None:
    found = understood(raw)
    look = replace(LOOK, snapshot=found)
    assert shown(look) and plain_line(View(look, "x", NOW, 10.0, None))


@pytest.mark.parametrize(
    ("code", "word"),
    [(0, "done"), (3, "no trial met the limits"), (1, "failed"), (130, "interrupted"), (-9, "failed")],
)
def test_an_end_is_named_by_its_recorded_status(code: int, word: str) -> None:
    ended = replace(SOUND, job=replace(JOB, alive=False, code=code, ended=NOW))
    text = facts(View(replace(LOOK, snapshot=ended), "x", NOW, 10.0, None))["process"]
    assert word in text and f"status {code}" in text and "ALIVE" not in text


def test_batch_lines_become_words() -> None:
    assert readable(["plain", BATCH]) == [
        "plain",
        "trial 12/200 | best 12.0% at KL 0.214, trial 9 | 1.2 trials/min",
    ]
    assert progress_of(["plain"]) is None
