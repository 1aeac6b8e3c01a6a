# SPDX-License-Identifier: Apache-2.0
"""Commands on a machine, over a real SSH server (R-VAS-25 to 33, H08 to H11, REL-16)."""

from __future__ import annotations

import json
import os
import shlex
import time

import pytest

from heretic.cloud.cli.machine import DESTRUCTIVE as DESTRUCTIVE_PATTERN
from heretic.cloud.configuration import VastConfig
from heretic.cloud.jobs import Plan, start
from heretic.cloud.layout import Layout
from heretic.cloud.ssh import open_connection, ssh_options
from heretic.cloud.types import Address, Instance

from .conftest import HF_TOKEN, Cloud, thin
from .machine import Machine
from .provider import KEY
from .runs import RUN, alive, finished, wait_for

pytestmark = pytest.mark.loopback
ID = "7001"


def test_exec_passes_text_status_and_streams(cloud: Cloud, machine: Machine) -> None:
    told = cloud.run("exec", "echo out; echo err >&2; exit 7")
    assert (told.code, told.out) == (7, "out\n") and "err" in told.err


QUOTES = [
    "$HOME",
    "a'b",
    'a"b',
    "a b",
    "`id`",
    "$(id)",
    "a\\b",
    "*",
    "a\nb",
    "-n",
    "~",
    "!",
    "a;b",
    "a|b",
    "#",
    "\u00e9",
]


def test_nothing_is_expanded_here_and_everything_arrives(cloud: Cloud, machine: Machine) -> None:
    """R-VAS-27, H10: a word reaches the remote shell as it was typed; there, quoted, it is itself."""
    for number, word in enumerate(QUOTES):
        told = cloud.run("exec", f"printf '%s' {shlex.quote(word)} > \"$HOME/word{number}\"")
        assert told.code == 0 and (machine.home / f"word{number}").read_text(encoding="utf-8") == word


def test_exec_expands_on_the_machine(cloud: Cloud, machine: Machine) -> None:
    """Control of the test above."""
    assert cloud.run("exec", "echo $HOME").out.strip() == str(machine.home)


def test_output_of_a_machine_is_cleaned_of_the_key(cloud: Cloud, machine: Machine) -> None:
    """I02: also of a key that came from `.env`, on the screen and in the document (`check_secrets`)."""
    del cloud.environ["VAST_API_KEY"]
    (cloud.folder / ".env").write_text(f"VAST_API_KEY={KEY}\n", encoding="utf-8")
    for flags in ((), ("--json",)):
        told = cloud.run("exec", f"printf {KEY[:6]}; sleep 0.2; echo {KEY[6:]}", *flags)
        assert told.code == 0 and "[redacted]" in told.out


def test_a_background_command_returns_at_once(cloud: Cloud, machine: Machine) -> None:
    begun = time.monotonic()
    told = cloud.run("exec", "echo before; nohup sleep 9 &")
    assert told.code == 0 and "before" in told.out and time.monotonic() - begun < 7


def test_a_command_without_answer_is_not_called_done(cloud: Cloud, machine: Machine) -> None:
    told = cloud.run("exec", "sleep 3", "--timeout", "0.3")
    assert told.code == 1 and "not known" in told.text


DESTRUCTIVE = [
    "rm -rf /", "rm -fr x", "cd x && rm -r y", "kill 1", "pkill python", "killall x", "mkfs.ext4 /dev/sda",
    "dd if=a of=b", "git reset --hard", "psql -c 'DROP TABLE x'", "shutdown now", "reboot", "find . -delete",
    "echo x > /dev/sda",
]  # fmt: skip


def test_destructive_commands_are_asked_about(cloud: Cloud, machine: Machine) -> None:
    """--yes alone does not answer: the machine has to be named."""
    for text in DESTRUCTIVE:
        assert DESTRUCTIVE_PATTERN.search(text), text
    for flags in ((), ("--yes",)):
        assert cloud.run("exec", "touch $HOME/ran; rm -rf $HOME/x", *flags).code == 2
    assert not (machine.home / "ran").exists()
    assert cloud.run("exec", "touch $HOME/ran; rm -rf $HOME/x", ID, "--yes").code == 0
    assert (machine.home / "ran").exists()


def test_harmless_commands_are_not() -> None:
    """Control of the test above."""
    for text in (
        "echo firm",
        "ls skill",
        "git status",
        "cat model.rs",
        "echo form -r",
        "python train.py --skills",
    ):
        assert not DESTRUCTIVE_PATTERN.search(text), text


BAD = [
    (("exec", ""), "characters"),
    (("exec", "x" * 10_001), "10000"),
    (("exec", "ls", "--timeout", "0"), "seconds"),
    (("run", "../evil"), "OWNER/NAME"),
    (("run", "/etc/passwd"), "OWNER/NAME"),
    (("run", "a;b"), "OWNER/NAME"),
    (("run", "a/b/c"), "OWNER/NAME"),
    (("run", "x" * 501), "500"),
    (("run", "a/b", "--", "--storage", "x"), "--storage"),
    (("run", "a/b", "--", "--study_name=x"), "--study"),
    (("run", "a/b", "--send-hf-token"), "HF_TOKEN"),
    (("run", "a/b", "--restart", "--yes"), "ID"),
    (("watch", "--interval", "0"), "300"),
    (("watch", "-i", "301"), "300"),
    (("logs", "--lines", "0"), "10000"),
    (("setup", "--source", "ftp://x"), "Git URL"),
    (("setup", "--source", "nothing.whl"), "wheel"),
    (("extend", "0"), "24"),
    (("extend", "25"), "24"),
    (("extend", "2", "--yes"), "ID"),
    (("connect", "x"), "whole number"),
]


@pytest.mark.parametrize(
    ("line", "named"), BAD, ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else ""
)
def test_bad_input_reaches_neither_provider_nor_machine(
    cloud: Cloud, line: tuple[str, ...], named: str
) -> None:
    told = cloud.run(*line)
    assert told.code == 2 and named in told.text and not cloud.provider.requests, told.text


def test_setup_upgrades_repeats_and_is_honest(cloud: Cloud, machine: Machine) -> None:
    """R-VAS-25. A stand-in for the environment's python writes down what pip is asked for."""
    from heretic import __version__

    python = machine.state / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {machine.folder}/asked\n', encoding="utf-8")
    python.chmod(0o755)
    for _ in range(2):
        told = cloud.run("setup")
        assert told.code == 0 and "found nothing wrong" in told.text, told.text
    asked = (machine.folder / "asked").read_text(encoding="utf-8")
    assert (
        f"-m pip install --upgrade --no-input heretic-workbench=={__version__}" in asked
        and "force" not in asked
    )
    wheel = cloud.folder / "heretic_workbench-9-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    assert cloud.run("setup", "--source", str(wheel)).code == 0
    assert (machine.state / wheel.name).read_bytes() == b"wheel"
    assert cloud.run("setup", "--source", "https://example.com/x.git@main").code == 0
    assert "heretic-workbench @ git+https://example.com/x.git@main" in (machine.folder / "asked").read_text(
        "utf-8"
    )
    (machine.state / "doctor").write_text("1", encoding="utf-8")
    told = cloud.run("setup")
    assert told.code == 1 and "'doctor'" in told.text
    python.write_text('#!/bin/sh\ncase "$*" in *pip*) echo "no space" >&2; exit 3;; esac\n', encoding="utf-8")
    told = cloud.run("setup")
    assert told.code == 1 and "'installation'" in told.text and "no space" in told.text


@pytest.mark.slow
def test_a_machine_with_another_version_is_not_ready(cloud: Cloud, machine: Machine) -> None:
    python = machine.state / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *version*) echo 0.0.9 >&2; exit 1;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    told = cloud.run("setup")
    assert told.code == 1 and "0.0.9" in told.text


def test_run_starts_detached_with_the_agreed_words(cloud: Cloud, machine: Machine) -> None:
    told = cloud.run(*RUN, "--", "--n-trials", "20", "--goal=suppress")
    assert told.code == 0 and "started as process" in told.text
    wait_for(machine.state / "run.exit")
    words = (machine.state / "arguments").read_text(encoding="utf-8")
    ws = machine.workspace
    for part in (
        f"--model tiny/model --auto-select true --auto-select-path {ws}/models",
        f"--storage sqlite:///{ws}/heretic_study.db --study-name tiny--model --progress json",
        "--n-trials 20 --goal=suppress",
    ):
        assert part in words
    shown = cloud.run("progress", "--json").document["snapshot"]
    assert shown["job"]["code"] == 0 and not shown["job"]["alive"] and shown["progress"]["finished"] == 20
    assert [(model["name"], model["complete"]) for model in shown["models"]] == [("tiny-heretic", True)]


@pytest.mark.slow
def test_the_run_outlives_the_connection(cloud: Cloud, machine: Machine) -> None:
    """H09: the server and every connection die; the run goes on, and the client finds it again."""
    (machine.state / "seconds").write_text("6", encoding="utf-8")
    assert cloud.run(*RUN).code == 0
    pid = json.loads((machine.state / "run.json").read_text(encoding="utf-8"))["pid"]
    machine.stop()
    assert alive(pid)
    broken = cloud.run("watch", "--once", "--json").document
    assert broken["snapshot"] is None and any("machine: UNKNOWN" in line for line in broken["discrepancies"])
    machine.start()
    assert cloud.run("progress", "--json").document["snapshot"]["job"]["alive"]
    told = cloud.run("watch")
    assert told.code == 0 and "ended" in told.text and "status 0 (done)" in told.text


def started_blindly(cloud: Cloud, machine: Machine) -> tuple[int, bool]:
    """What the machine says to a start that nobody looked before."""
    config = VastConfig.load(environ=cloud.environ, folder=cloud.folder)
    instance = Instance(7001, "x", "running", "running", addresses=(Address("127.0.0.1", machine.port),))
    remote = open_connection(instance, config, cloud.environ)
    try:
        return start(remote, Layout(str(machine.workspace)), Plan("other/model", "x", ()), None)
    finally:
        remote.close()


def test_two_runs_never_live_at_once(cloud: Cloud, machine: Machine) -> None:
    (machine.state / "seconds").write_text("30", encoding="utf-8")
    assert cloud.run(*RUN).code == 0
    again = cloud.run(*RUN)
    assert again.code == 2 and "runs tiny/model already" in again.text
    assert cloud.run("run", "other/model", "--weights-gb", "0.001").code == 2
    # Without the look before it, the machine's own lock decides.
    pid = json.loads((machine.state / "run.json").read_text(encoding="utf-8"))["pid"]
    assert started_blindly(cloud, machine) == (pid, False)
    assert (machine.state / "arguments").read_text(encoding="utf-8").count("arguments:") == 1


@pytest.mark.slow
def test_the_lock_outlives_the_supervisor(cloud: Cloud, machine: Machine) -> None:
    """The run inherits it: killing the supervisor alone frees nothing."""
    import signal

    (machine.state / "seconds").write_text("30", encoding="utf-8")
    assert cloud.run(*RUN).code == 0
    facts = json.loads((machine.state / "run.json").read_text(encoding="utf-8"))
    os.kill(facts["supervisor"], signal.SIGKILL)
    assert alive(facts["pid"]) and cloud.run(*RUN).code == 2
    assert started_blindly(cloud, machine) == (facts["pid"], False)


@pytest.mark.slow
def test_a_killed_run_is_not_called_done_and_goes_on_by_the_same_command(
    cloud: Cloud, machine: Machine
) -> None:
    import signal

    (machine.state / "seconds").write_text("30", encoding="utf-8")
    assert cloud.run(*RUN).code == 0
    facts = json.loads((machine.state / "run.json").read_text(encoding="utf-8"))
    os.kill(facts["supervisor"], signal.SIGKILL)
    os.killpg(facts["pid"], signal.SIGKILL)
    told = cloud.run("progress")
    assert (
        "no exit status was recorded" in told.text
        and "none recorded (killed" in told.text
        and "done" not in told.text
    )
    (machine.state / "seconds").write_text("0", encoding="utf-8")
    assert finished(cloud, machine).code == 0


@pytest.mark.slow
def test_a_foreign_process_with_the_recorded_number_is_not_ours(cloud: Cloud, machine: Machine) -> None:
    """The start time decides (R13): a reused pid is neither alive nor ended."""
    finished(cloud, machine)
    facts = json.loads((machine.state / "run.json").read_text(encoding="utf-8"))
    (machine.state / "run.json").write_text(json.dumps({**facts, "pid": os.getpid()}), encoding="utf-8")
    assert not cloud.run("progress", "--json").document["snapshot"]["job"]["alive"]


@pytest.mark.slow
def test_restart_asks_ends_and_begins_anew(cloud: Cloud, machine: Machine) -> None:
    (machine.state / "seconds").write_text("30", encoding="utf-8")
    assert cloud.run(*RUN).code == 0
    pid = json.loads((machine.state / "run.json").read_text(encoding="utf-8"))["pid"]
    refused = cloud.run("run", "tiny/model", ID, "--weights-gb", "0.001", "--restart")
    assert refused.code == 2 and "is ended" in refused.text and alive(pid)
    told = cloud.run("run", "tiny/model", ID, "--weights-gb", "0.001", "--restart", "--yes")
    assert told.code == 0 and not alive(pid), told.text
    assert "--resume fresh" in (machine.state / "arguments").read_text(encoding="utf-8").splitlines()[-1]


@pytest.mark.parametrize("status", thin([77, 0, 1, 3], 1))
def test_foreground_passes_the_status_through(cloud: Cloud, machine: Machine, status: int) -> None:
    """R-CLI-29."""
    (machine.state / "status").write_text(str(status), encoding="utf-8")
    told = cloud.run(*RUN, "--foreground")
    assert told.code == status and "trial 20/20" in told.text


def test_the_token_reaches_the_run_by_stdin_alone(cloud: Cloud, machine: Machine) -> None:
    """R-VAS-03, I01: only when asked for; in no file, no argument, no history (`check_secrets` searches them)."""
    import codecs

    cloud.environ["HF_TOKEN"] = HF_TOKEN
    finished(cloud, machine)
    told = cloud.run(*RUN, "--send-hf-token")
    assert told.code == 0
    wait_for(machine.state / "run.exit")
    lines = [
        codecs.decode(line, "rot13") for line in (machine.state / "token").read_text("utf-8").splitlines()
    ]
    assert lines == ["token: none", f"token: {HF_TOKEN}"]
    cloud.check_secrets()


@pytest.mark.slow
def test_too_little_disk_starts_nothing(cloud: Cloud, machine: Machine) -> None:
    """R-VAS-14."""
    told = cloud.run("run", "tiny/model", "--weights-gb", "3000")
    assert told.code == 1 and "GB free" in told.text and not (machine.state / "run.json").exists()


def test_a_machine_without_setup_starts_nothing(cloud: Cloud, machine: Machine) -> None:
    (machine.state / "venv" / "bin" / "heretic").unlink()
    told = cloud.run(*RUN)
    assert told.code == 1 and "heretic-vast setup" in told.text


# Reaching the machine


def test_a_changed_host_key_is_refused_by_everything(cloud: Cloud, machine: Machine) -> None:
    """H08: fabric, rsync and ssh."""
    finished(cloud, machine)
    assert cloud.run("progress").code == 0
    machine.stop()
    machine.host_key = "other_key"
    machine.start()
    for line in (
        ("progress",),
        ("exec", "touch $HOME/ran"),
        ("watch", "--once"),
        ("download",),
        ("run", "a/b"),
    ):
        told = cloud.run(*line, "--json")
        assert told.code == 1 and told.document["error"]["type"] == "HostKeyError", told.text
        assert "SHA256:" in told.text
    assert not (machine.home / "ran").exists()
    config = VastConfig.load(environ=cloud.environ, folder=cloud.folder)
    instance = Instance(7001, "x", "running", "running", addresses=(Address("127.0.0.1", machine.port),))
    import subprocess

    words = ["ssh", *ssh_options(instance, config, cloud.environ), "-o", "BatchMode=yes"]
    done = subprocess.run([*words, f"{config.ssh_user}@127.0.0.1", "true"], capture_output=True, check=False)
    assert done.returncode == 255 and b"HOST IDENTIFICATION HAS CHANGED" in done.stderr


@pytest.mark.slow
def test_a_machine_that_goes_back_to_its_key_is_accepted(cloud: Cloud, machine: Machine) -> None:
    """Control of the test above."""
    assert cloud.run("progress").code == 0
    machine.stop()
    machine.start()
    assert cloud.run("progress").code == 0


def test_another_key_is_refused_in_words(cloud: Cloud, machine: Machine) -> None:
    (machine.folder / "authorized_keys").write_text("", encoding="utf-8")
    told = cloud.run("progress")
    assert told.code == 1 and "does not accept the SSH key" in told.text


def test_a_silent_machine_is_an_error_with_the_state_to_look_at(cloud: Cloud, machine: Machine) -> None:
    machine.stop()
    told = cloud.run("progress")
    assert told.code == 1 and "cannot be reached over SSH" in told.text and "heretic-vast list" in told.text


def test_loading_means_wait(cloud: Cloud, machine: Machine) -> None:
    cloud.provider.instances[7001].update(actual_status="loading")
    told = cloud.run("progress", ID)
    assert told.code == 1 and "Loading means wait" in told.text
    assert cloud.run("progress").code == 3
