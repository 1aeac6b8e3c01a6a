# SPDX-License-Identifier: Apache-2.0
"""The guard of the tests is itself tested: it refuses what it should, and lets through what it should."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest
import torch


def test_no_test_reaches_the_network() -> None:
    """192.0.2.0/24 is reserved for documentation: without the guard this would be a timeout, not our error."""
    with socket.socket() as client:
        client.settimeout(0.01)
        with pytest.raises(AssertionError, match="192.0.2.1"):
            client.connect(("192.0.2.1", 80))
    with pytest.raises(AssertionError, match=r"example\.invalid"):
        socket.create_connection(("example.invalid", 80), timeout=0.01)


def test_this_machine_needs_the_mark() -> None:
    refused = pytest.raises(AssertionError, match=r"127\.0\.0\.1")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client, refused:
        client.connect(server.getsockname())


@pytest.mark.loopback
def test_the_mark_allows_this_machine_only() -> None:
    """Control of the test above."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
    with socket.socket() as client, pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        client.connect(("192.0.2.1", 80))


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no sockets in the file system")
def test_sockets_in_the_file_system_work() -> None:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path can be longer than such an address may be
        address = str(Path(folder) / "s")
        with (
            socket.socket(socket.AF_UNIX) as server,
            socket.socket(socket.AF_UNIX) as client,
        ):
            server.bind(address)
            server.listen()
            client.connect(address)


def test_tests_run_offline_on_one_thread() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert torch.get_num_threads() == 1
