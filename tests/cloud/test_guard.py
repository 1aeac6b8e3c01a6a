# SPDX-License-Identifier: Apache-2.0
"""The guard on the machine pauses it when the lease ends, with the client gone (reliability H06, REL-16)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heretic.cloud.guard import GRACE_S, onstart_script
from heretic.cloud.vast import LARGEST_ONSTART

from .conftest import Cloud
from .provider import KEY

pytestmark = pytest.mark.loopback


class Box:
    """A container: its onstart script, run as the provider runs it."""

    def __init__(
        self, cloud: Cloud, folder: Path, hours: float, *, key: str = "scoped-one", me: str = "7001"
    ) -> None:
        self.folder = folder / "workspace"
        self.state = self.folder / ".heretic"
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        if not (folder / "bin" / "python3").exists():
            (folder / "bin" / "python3").symlink_to(sys.executable)
        cloud.provider.scoped["scoped-one"] = 7001
        cloud.provider.clock = None
        self.environ = {"PATH": f"{folder}/bin:/usr/bin:/bin", "CONTAINER_API_KEY": key, "CONTAINER_ID": me}
        self.script = onstart_script(
            hours, api_url=cloud.url, workspace=str(self.folder), poll_s=0.1, retry_s=0.2, save_s=0.0
        )
        self.pids: set[int] = set()

    def start(self) -> None:
        """Start the container."""
        # Written anew by the guard that lives: then it is seen by `guards` as well.
        (self.state / "guard.state").unlink(missing_ok=True)
        subprocess.run(["bash", "-c", self.script], env=self.environ, check=True)
        wait(lambda: bool(self.word()))
        self.pids |= set(self.guards())

    def word(self) -> str:
        """What the guard says of itself."""
        try:
            return (self.state / "guard.state").read_text(encoding="utf-8").split()[0]
        except (OSError, IndexError):
            return ""

    def lease(self) -> float:
        """The end of the lease."""
        return float((self.state / "lease").read_text(encoding="utf-8"))

    def guards(self) -> list[int]:
        """Processes that run this guard."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if len(words) > 1 and words[1].decode() == f"{self.state}/guard.py":
                found.append(int(path.parent.name))
        return found

    def end(self) -> None:
        """The container is gone; a guard that was just being started too."""
        for _ in range(3):
            for pid in self.guards():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def wait(condition: object, seconds: float = 20.0) -> None:
    """Until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def box(cloud: Cloud, tmp_path: Path) -> object:
    """Makes containers, and ends them."""
    made: list[Box] = []

    def make(hours: float, **rest: str) -> Box:
        made.append(Box(cloud, tmp_path / "box", hours, **rest))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_the_machine_pauses_itself_when_the_lease_ends(cloud: Cloud, box) -> None:  # type: ignore[no-untyped-def]
    """No client is there. It asks with the key of the instance, and for this instance alone."""
    cloud.provider.instance(7001)
    cloud.provider.instance(42)
    one = box(2.0 / 3600)
    one.start()
    assert one.word() == "armed" and cloud.provider.instances[7001]["cur_state"] == "running"
    wait(lambda: cloud.provider.instances[7001]["cur_state"] == "stopped")
    assert cloud.provider.instances[42]["cur_state"] == "running" and cloud.provider.touched == {7001}


def test_the_guard_repeats_until_it_is_heard(cloud: Cloud, box) -> None:  # type: ignore[no-untyped-def]
    cloud.provider.instance(7001)
    cloud.provider.fault("PUT", "/instances/", "text", status=500, body="x", times=3)
    one = box(0.2 / 3600)
    one.start()
    wait(lambda: cloud.provider.instances[7001]["cur_state"] == "stopped")


def test_a_retired_version_is_followed_by_the_other(cloud: Cloud, box) -> None:  # type: ignore[no-untyped-def]
    cloud.provider.instance(7001)
    cloud.provider.retired = {"v0"}
    one = box(0.2 / 3600)
    one.start()
    wait(lambda: cloud.provider.instances[7001]["cur_state"] == "stopped")


def test_a_restart_does_not_lengthen_the_lease_and_makes_no_second_guard(cloud: Cloud, box) -> None:  # type: ignore[no-untyped-def]
    cloud.provider.instance(7001)
    one = box(1.0)
    one.start()
    before = one.lease()
    one.start()
    time.sleep(0.3)
    assert one.lease() == before and len(one.guards()) == 1
    one.end()
    one.start()
    assert one.lease() == before


def test_a_start_after_the_end_has_a_grace_and_an_extension_counts(cloud: Cloud, box) -> None:  # type: ignore[no-untyped-def]
    cloud.provider.instance(7001)
    one = box(1.0)
    one.state.mkdir(parents=True)
    (one.state / "lease").write_text(str(time.time() - 500), encoding="utf-8")
    one.start()
    assert 0 < one.lease() - time.time() <= GRACE_S
    (one.state / "lease").write_text(str(time.time() - 1), encoding="utf-8")
    wait(lambda: cloud.provider.instances[7001]["cur_state"] == "stopped")


@pytest.mark.parametrize(("key", "me"), [("", "7001"), ("scoped-one", ""), ("scoped-one", "../../x")])
def test_a_guard_without_its_key_says_so(cloud: Cloud, box, key: str, me: str) -> None:  # type: ignore[no-untyped-def]
    """A guard that cannot act shouts: `watch` shows this word as a discrepancy."""
    cloud.provider.instance(7001)
    one = box(1.0, key=key, me=me)
    one.start()
    assert one.word() == "no-key" and "cannot act" in (one.state / "guard.log").read_text(encoding="utf-8")


def test_a_refused_guard_says_failed(cloud: Cloud, box) -> None:  # type: ignore[no-untyped-def]
    cloud.provider.instance(7001)
    one = box(0.1 / 3600, key="wrong-key")
    one.start()
    wait(lambda: one.word() == "failed")
    assert cloud.provider.instances[7001]["cur_state"] == "running"


def test_the_run_is_asked_to_save_by_its_recorded_process_alone(cloud: Cloud, box) -> None:  # type: ignore[no-untyped-def]
    """R13: a number with another start time is somebody else."""
    cloud.provider.instance(7001)
    one = box(0.6 / 3600)
    one.state.mkdir(parents=True)
    ours, other = (subprocess.Popen(["sleep", "30"]) for _ in range(2))
    start = Path(f"/proc/{ours.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19]
    (one.state / "run.json").write_text(json.dumps({"pid": ours.pid, "start": start}), encoding="utf-8")
    one.start()
    assert ours.wait(timeout=20) == -signal.SIGTERM
    wait(lambda: cloud.provider.instances[7001]["cur_state"] == "stopped")
    (one.state / "run.json").write_text(json.dumps({"pid": other.pid, "start": "1"}), encoding="utf-8")
    time.sleep(0.5)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_the_script_fits_and_carries_no_secret_of_the_user() -> None:
    script = onstart_script(24.0, api_url="https://console.vast.ai", workspace="/workspace")
    assert len(script) < LARGEST_ONSTART - 200 and KEY not in script and "VAST_API_KEY" not in script
    assert "guard.py" not in onstart_script(0, api_url="https://x", workspace="/workspace")
