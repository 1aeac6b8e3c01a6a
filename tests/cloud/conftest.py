# SPDX-License-Identifier: Apache-2.0
"""The small world of the cloud tests: a home folder, a provider, a clock, and the program run inside it."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from heretic.cloud.cli.application import run_command_line
from heretic.cloud.cli.context import World
from heretic.cloud.http import Limits
from heretic.cloud.ledger import Ledger
from heretic.cloud.types import Address

from .machine import SSHD, Machine, login
from .provider import KEY, FakeClock, FakeProvider

HF_TOKEN = "hf_canaryCANARYcanaryCANARY42"
WORDS_OF_SUCCESS = (
    "was seen",
    "gone from the provider's list",
    "is running and answers",
    "is paused already",
)


def thin(cases: Iterable[Any], keep: int) -> list[Any]:
    """Cases of which the first `keep` run by default; the whole matrix runs with `-m slow`."""
    return [
        case
        if number < keep
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


@dataclass(frozen=True)
class Told:
    """What a command line said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document of stdout."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed

    @property
    def text(self) -> str:
        """Everything, on one line."""
        return " ".join((self.out + " " + self.err).split())


@dataclass
class Cloud:
    """The world, and what must hold after every command line in it."""

    folder: Path
    home: Path
    provider: FakeProvider
    clock: Any
    url: str
    environ: dict[str, str] = field(default_factory=dict)
    answering: bool = True
    limits: Limits = field(default_factory=lambda: Limits(connect=2.0, read=0.5, total=0.8))
    said: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """Where the program keeps its ledger."""
        return Path(self.environ["XDG_STATE_HOME"]) / "heretic" / "cloud"

    def ledger(self) -> Ledger:
        """The ledger of this world."""
        return Ledger(self.state, self.clock)

    def answers(self, address: Address) -> bool:
        """Whether the SSH server of a machine answers."""
        return self.answering

    def world(self) -> World:
        """As the program is given it."""
        return World(self.environ, self.folder, self.clock, self.limits, self.answers)

    def run(self, *arguments: str) -> Told:
        """One command line; everything that must always hold is checked."""
        created, touched = self.provider.created, set(self.provider.touched)
        asked = len(self.provider.writes("PUT", "/asks/"))
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run_command_line(list(arguments), self.world())
        told = Told(code, out.getvalue(), err.getvalue())
        self.said.append(told.out + told.err)
        assert len(self.provider.writes("PUT", "/asks/")) - asked <= 1, "a rental was asked for twice"
        if arguments[0] != "create":
            assert self.provider.created == created, "something was rented in passing"
        self._check_touched(arguments, touched, created)
        if {"stop", "terminate", "guard"} & set(arguments):
            self._check_truth(told)
        self.check_secrets()
        return told

    def _check_touched(self, arguments: tuple[str, ...], before: set[int], created: int) -> None:
        """Only what was named, what was just rented, or the only one of ours that runs."""
        named = {int(word) for word in arguments if word.isdigit()}
        fresh = set(range(self.provider.next_id - (self.provider.created - created), self.provider.next_id))
        rentals = self.ledger().rentals() if self.state.is_dir() else []
        ours = {rental.id for rental in rentals if rental.status != "foreign"}
        assert self.provider.touched - before <= named | fresh | ours, (
            "a machine was touched that nobody named"
        )

    def _check_truth(self, told: Told) -> None:
        """A success that is said is true."""
        claimed = told.code == 0 and any(word in told.text for word in WORDS_OF_SUCCESS)
        for word in told.text.replace(":", " ").split():
            if claimed and word.isdigit() and int(word) in self.provider.instances:
                assert self.provider.instances[int(word)]["cur_state"] == "stopped", "a false 'stopped'"

    def check_secrets(self) -> None:
        """The key and the token are in no output, no address, and no file but those the test wrote."""
        for secret in (KEY, HF_TOKEN):
            assert not any(secret in text for text in self.said), "a secret was shown"
            assert not any(
                secret in seen.path + seen.query + json.dumps(seen.body) for seen in self.provider.requests
            ), "a secret was sent in an address or a body"
            for path in self.folder.parent.rglob("*"):
                if path.is_file() and path.name not in (".env", "vast_api_key"):
                    assert secret.encode() not in path.read_bytes(), f"a secret is in {path}"


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A provider with one good offer, an empty account, a key in the environment."""
    for name in ("VAST_API_KEY", "HF_TOKEN", "VAST_API_URL"):
        monkeypatch.delenv(name, raising=False)
    clock = FakeClock()
    provider = FakeProvider(clock)
    url = provider.start()
    home, folder = tmp_path / "home", tmp_path / "work"
    (home / ".ssh").mkdir(parents=True)
    folder.mkdir()
    (home / ".ssh" / "id_ed25519").write_text("not read by these tests", encoding="utf-8")
    (home / ".ssh" / "id_ed25519.pub").write_text("ssh-ed25519 AAAATEST me@here\n", encoding="utf-8")
    environ = {
        "HOME": str(home), "XDG_STATE_HOME": str(tmp_path / "my state"), "VAST_API_KEY": KEY, "VAST_API_URL": url,
        "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    provider.offer()
    yield Cloud(folder, home, provider, clock, url, environ)
    provider.stop()


@pytest.fixture
def mine(cloud: Cloud) -> int:
    """A running instance that this program rented."""
    assert cloud.run("create", "--yes", "--max-price", "0.5").code == 0
    (identity,) = cloud.provider.instances
    return identity


class QuickClock:
    """The real time, with pauses cut short."""

    def __init__(self) -> None:
        self.hooks: list[Callable[[], None]] = []

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.05))
        if self.hooks:
            self.hooks.pop(0)()


@pytest.fixture
def machine(tmp_path: Path, cloud: Cloud) -> Iterator[Machine]:
    """A real SSH server that the provider shows as the running instance 7001, rented by this program."""
    if SSHD is None or shutil.which("rsync") is None:
        pytest.skip("openssh-server or rsync is not installed")
    machine = Machine(tmp_path / "machine")
    machine.prepare(cloud.home / ".ssh" / "id_ed25519")
    machine.start()
    cloud.clock = cloud.provider.clock = QuickClock()
    cloud.provider.loading_s = cloud.provider.stopping_s = 0.0
    cloud.provider.address = ("127.0.0.1", machine.port)
    cloud.environ.update(VAST_WORKSPACE=str(machine.workspace), VAST_SSH_USER=login())
    told = cloud.run("create", "--yes", "--max-price", "0.5")
    assert told.code == 0, told.text
    yield machine
    machine.end_run()
    machine.stop()
