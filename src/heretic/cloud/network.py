# SPDX-License-Identifier: Apache-2.0
"""Whether an SSH server answers at an address; no login, no key."""

from __future__ import annotations

import socket
from typing import Final

from heretic.cloud.types import Address

BANNER_S: Final = 5.0


def ssh_answers(address: Address, timeout_s: float = BANNER_S) -> bool:
    """True when the address greets as an SSH server does. A proxy that accepts and stays silent does not count."""
    try:
        with socket.create_connection((address.host, address.port), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            return connection.recv(8).startswith(b"SSH-")
    except OSError:
        return False
