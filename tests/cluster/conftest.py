# SPDX-License-Identifier: Apache-2.0
"""A throw-away PostgreSQL server on a free loopback port, and one storage address per test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "Geheim-31415"
"""Must never be seen in what the program says."""


@dataclass
class Server:
    """A running server. pid: of its first process, by which it is stopped."""

    folder: Path
    binaries: Path
    port: int
    user: str
    pid: int = 0

    def url(self, database: str) -> str:
        return f"postgresql://{self.user}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def as_owner(self, *words: str) -> list[str]:
        """The command as a user other than root, which the server refuses to run as."""
        if os.getuid():
            return list(words)
        found = shutil.which("runuser", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "runuser"
        return [found, "-u", self.user, "--", *words]

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        command = [
            str(self.binaries / "pg_ctl"),
            "-D",
            str(self.folder / "data"),
            "-o",
            options,
            "-w",
            "start",
        ]
        log = ["-l", str(self.folder / "log")]
        subprocess.run(self.as_owner(*command, *log), check=True, stdout=subprocess.DEVNULL, cwd="/")
        self.pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def stop(self) -> None:
        """A fast shutdown of the process we started."""
        if not self.pid:
            return
        os.kill(self.pid, signal.SIGINT)
        deadline = time.monotonic() + 30
        while (self.folder / "data" / "postmaster.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.pid = 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server of this test session; skipped where its programs are missing."""
    pytest.importorskip("psycopg", reason="needs the extra 'dist' (psycopg)")
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="heretic-pg-"))
    password_file = folder / "password"
    password_file.write_text(PASSWORD, encoding="ascii")
    if os.getuid() == 0:
        shutil.chown(folder, user)
        shutil.chown(password_file, user)
    made = Server(folder, binaries, free_port(), user)
    initialise = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", user, "-A", "scram-sha-256"]
    words = made.as_owner(*initialise, "--pwfile", str(password_file), "--no-sync")
    try:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd="/")
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> str:
    """The address of an empty database."""
    import psycopg

    name = f"t{abs(hash(request.node.nodeid)):x}"[:40]
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.url(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage of each kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("database"))
    return f"sqlite:///{tmp_path}/s.db"
