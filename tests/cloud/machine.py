# SPDX-License-Identifier: Apache-2.0
"""A machine to log in to: the system's sshd on a free port of 127.0.0.1, with keys, home and workspace of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SSHD: Final = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

STAND_IN: Final = """#!/bin/sh
# Stands in for heretic: logs two batches, saves a model, ends as it is told.
here="$(cd "$(dirname "$0")/../.." && pwd)"
echo "arguments: $*" >> "$here/arguments"
echo "token: ${HF_TOKEN:-none}" | tr 'A-Za-z' 'N-ZA-Mn-za-m' >> "$here/token"
event='{"event": "trials", "finished": %s, "wanted": 20, "failed": 0, "best": {"trial": 3, "behaviour_rate": 0.1,'
event="$event "'"kl_mean": 0.05}, "front_size": 2, "hypervolume": 1.0, "trials_per_second": 0.5, "eta_s": 20}\\n'
[ "$1" = doctor ] && exit "$(cat "$here/doctor" 2>/dev/null || echo 0)"
printf "$event" 10
sleep "$(cat "$here/seconds" 2>/dev/null || echo 0)"
printf "$event" 20
folder="$here/../models/tiny-heretic"
mkdir -p "$folder"
head -c 3000000 /dev/urandom > "$folder/model.safetensors"
echo '{}' > "$folder/heretic_run.json"
(cd "$folder" && sha256sum heretic_run.json model.safetensors > SHA256SUMS)
exit "$(cat "$here/status" 2>/dev/null || echo 0)"
"""


@dataclass
class Machine:
    """One sshd and what it serves."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    host_key: str = "host_key"
    started: list[int] = field(default_factory=list)

    @property
    def workspace(self) -> Path:
        """As /workspace of a rented machine."""
        return self.folder / "workspace"

    @property
    def state(self) -> Path:
        """Where supervisor and guard keep their files."""
        return self.workspace / ".heretic"

    @property
    def home(self) -> Path:
        """The login's home."""
        return self.folder / "home"

    def prepare(self, client_key: Path) -> None:
        """Keys, folders, the program that stands in for heretic."""
        for path in (self.workspace / "models", self.state / "venv" / "bin", self.home, self.folder / "bin"):
            path.mkdir(parents=True)
        (self.folder / "bin" / "python3").symlink_to(sys.executable)
        self.program(STAND_IN)
        for name in ("host_key", "other_key"):
            self._keygen(self.folder / name)
        self._keygen(client_key)
        authorised = client_key.with_name(f"{client_key.name}.pub").read_text(encoding="utf-8")
        (self.folder / "authorized_keys").write_text(authorised, encoding="utf-8")

    def program(self, text: str) -> None:
        """What stands at the place of `heretic`."""
        path = self.state / "venv" / "bin" / "heretic"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def _keygen(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.pub").unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)

    def start(self) -> None:
        """Serve; waits until the port answers."""
        assert SSHD is not None
        if os.getuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # its place is fixed when sshd is built
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        lines = [
            f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.folder / self.host_key}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}", "StrictModes no", "UsePAM no",
            "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password",
            f"PidFile {self.folder / 'sshd.pid'}", "Subsystem sftp internal-sftp", "PrintMotd no", "MaxStartups 100",
            f'SetEnv HOME={self.home} "PATH={self.folder / "bin"}:/usr/local/bin:/usr/bin:/bin"',
        ]  # fmt: skip
        config = self.folder / "sshd_config"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=log
            )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError((self.folder / "sshd.log").read_text(encoding="utf-8"))

    def stop(self) -> None:
        """End the server and the connections it serves; what was started there lives on."""
        if self.process is not None:
            for child in children(self.process.pid):
                signal_if_sshd(child)
            self.process.terminate()
            self.process.wait(timeout=10)
            self.process = None

    def end_run(self) -> None:
        """End a run that a test left alive, by its recorded process."""
        import json
        import signal

        try:
            run = json.loads((self.state / "run.json").read_text(encoding="utf-8"))
            os.killpg(int(run["pid"]), signal.SIGKILL)
        except (OSError, ValueError, KeyError):
            return


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    try:
        return [
            int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        ]
    except OSError:
        return []


def signal_if_sshd(pid: int) -> None:
    """End a connection's process, the deepest first; shells below it are left alone."""
    import signal

    for child in children(pid):
        signal_if_sshd(child)
    try:
        if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").startswith("sshd"):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return


def login() -> str:
    """The name to log in with: sshd as an ordinary user serves that user alone."""
    return getpass.getuser()
