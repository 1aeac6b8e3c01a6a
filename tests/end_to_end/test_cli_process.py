# SPDX-License-Identifier: Apache-2.0
"""The command line as a process: what it imports, its streams, exit codes, signals (R-CLI-18, R-CLI-23 to R-CLI-28)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIGHT = [["--help"], ["--version"], ["show-config", "org/model"], ["run", "--help"], ["M", "--n-trails", "3"]]

LOOP = """
import sys, time
from heretic.cli.signals import stop_on_signals
from heretic.cli import signals
from heretic.console import Console
from heretic.cli.context import Context
from heretic.cli.flags import CommonFlags
from heretic.cli.rim import guarded
signals.GRACE_S, signals.LIMIT_S = 0.3, 0.6
context = Context(Console(json="--json" in sys.argv), CommonFlags())
def action():
    with stop_on_signals(context.stop, context.console.urgent, terminal="--terminal" in sys.argv):
        print("ready", file=sys.stderr, flush=True)
        for step in range(100):
            end = time.monotonic() + (20 if "--long" in sys.argv else 0.1)
            while time.monotonic() < end:
                time.sleep(0.01)
            if context.stop:
                print("batch finished", file=sys.stderr, flush=True)
                return context.stop.exit_code
    return 0
sys.exit(guarded(action, context))
"""


def environment(folder: Path) -> dict[str, str]:
    """A clean home, no terminal, UTF-8."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    return {**kept, "XDG_CONFIG_HOME": str(folder), "OMP_NUM_THREADS": "1"}


def heretic(*arguments: str, folder: Path, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """One command line with pipes on all sides."""
    return subprocess.run(
        [sys.executable, "-m", "heretic.cli", *arguments],
        cwd=folder,
        env={**environment(folder), **extra},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", LIGHT)
def test_light_commands_load_no_torch(arguments: list[str], tmp_path: Path) -> None:
    """R-CLI-18, architecture rule 15; the control is a command that needs it."""
    code = (
        "import sys; from heretic.cli.application import run_command_line; "
        "run_command_line(sys.argv[1:]); heavy = {'torch', 'transformers', 'optuna', 'datasets'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    control = subprocess.run(
        [sys.executable, "-c", code, "study", "list"],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "optuna" in control.stderr


def test_json_is_one_document_on_stdout_also_on_failure(tmp_path: Path) -> None:
    """R-CLI-23, R-FMT-03."""
    done = heretic("M", "--n-trials", "many", "--json", folder=tmp_path)
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["status"] == "failed" and document["error"]["remedy"]
    assert "n-trials" in document["error"]["message"] and "Traceback" not in done.stderr
    assert "error:" in done.stderr


def test_no_question_blocks_a_pipe_even_with_y_on_stdin(tmp_path: Path) -> None:
    """R-HDL-03, REL-17: exit 2 and nothing changed."""
    from heretic.study.state import open_study

    url = f"sqlite:///{tmp_path}/s.db"
    open_study(url, "mine", fingerprint={"model": "m"}).close()
    done = heretic("study", "delete", "mine", "--storage", url, folder=tmp_path, stdin="y\nyes\nmine\n")
    assert done.returncode == 2 and "--yes" in done.stderr
    assert "mine" in heretic("study", "list", "--storage", url, folder=tmp_path).stdout


def test_output_is_plain_ascii_without_a_terminal(tmp_path: Path) -> None:
    """R-CLI-24, R-LOG-02."""
    done = heretic("--help", folder=tmp_path)
    assert (done.stdout + done.stderr).isascii() and "\x1b" not in done.stdout + done.stderr


def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path) -> None:
    command = f"{sys.executable} -m heretic.cli --help | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        "Traceback" not in done.stderr and "Exception" not in done.stderr and done.stdout.startswith("Usage")
    )


def test_a_token_in_the_environment_is_never_shown(tmp_path: Path) -> None:
    """REL-15."""
    token = "hf_" + "Xy1" * 12
    for arguments in (
        ["show-config", "org/model"],
        ["M", "--nonsense", token],
        ["show-config", token, "--json"],
    ):
        done = heretic(*arguments, folder=tmp_path, HF_TOKEN=token)
        assert token not in done.stdout + done.stderr


def loop(*arguments: str) -> subprocess.Popen[str]:
    """A run that looks at the wish to stop between batches; ready to be signalled."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "options"),
    [
        (signal.SIGINT, 130, []),
        (signal.SIGTERM, 143, []),
        (signal.SIGHUP, 129, ["--terminal"]),
    ],
)
def test_a_signal_finishes_the_batch_and_has_its_code(number: int, code: int, options: list[str]) -> None:
    """R-CLI-26, REL-R06."""
    process = loop(*options)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code and "batch finished" in err


def test_hangup_without_a_terminal_is_ignored() -> None:
    """REL-R06."""
    process = loop()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_the_second_ctrl_c_stops_at_once_with_one_document() -> None:
    """R-CLI-26."""
    process = loop("--long", "--json")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130 and "Ctrl-C again" in err and "batch finished" not in err
    assert json.loads(out)["error"]["type"] == "InterruptedRunError"


def test_sigterm_in_a_long_batch_leaves_within_the_grace() -> None:
    """REL-R06: Docker kills after 10 s; here the grace is shortened."""
    process = loop("--long", "--json")
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 143 and time.monotonic() - begin < 3
    assert json.loads(out)["exit_code"] == 143
