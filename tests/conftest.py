# SPDX-License-Identifier: Apache-2.0
"""The world of the tests: no network, one thread, shapes of `heretic.linalg` checked (architecture rule 11)."""

from __future__ import annotations

import importlib.resources
import os
import socket
from collections.abc import Iterator
from typing import Any, Final

# Read when the libraries are imported, so set before anything else is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class NetworkUsedError(AssertionError):
    """A test reached for the network."""


def _uses_annotations(package: str) -> bool:
    folder = importlib.resources.files(package)
    return any(
        "jaxtyping" in entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".py")
    )


def pytest_configure() -> None:
    """One thread for each worker; run-time checks of tensor shapes where signatures state them."""
    torch.set_num_threads(1)
    if _uses_annotations("heretic.linalg"):
        from jaxtyping import install_import_hook

        install_import_hook("heretic.linalg", "beartype.beartype")


def _host(address: Any) -> str | None:
    """Host name of an address, or None for a socket that lives in the file system."""
    return str(address[0]) if isinstance(address, tuple) else None


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse every connection and look-up. The mark `loopback` allows this machine, nothing allows another.

    Sockets in the file system (AF_UNIX) always work: worker processes talk through them.
    """
    allowed: frozenset[str] = LOOPBACK if request.node.get_closest_marker("loopback") else frozenset()
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: object) -> None:
        if host is not None and str(host) not in allowed:
            raise NetworkUsedError(f"the test tried to reach {host!r}; tests carry their world")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        check(_host(address))
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        check(_host(address))
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *rest: Any, **named: Any) -> Any:
        check(host)
        return look_up(host, *rest, **named)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
