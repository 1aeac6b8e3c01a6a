# SPDX-License-Identifier: Apache-2.0
"""The user's SSH keys: which are there, and the public half (requirements R-VAS-05, R-VAS-23). Nothing is printed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from heretic.cloud.configuration import VastConfig
from heretic.exceptions import ConfigurationError

DEFAULT_NAMES: Final = ("id_ed25519", "id_rsa")
_KINDS: Final = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")


@dataclass(frozen=True, slots=True)
class LocalKeys:
    """files: private keys to try, in order. public: the text of the first one's public half, empty when not there.
    agent: an agent is running.
    """

    files: tuple[Path, ...]
    public: str
    agent: bool


def local_keys(configuration: VastConfig, environ: Mapping[str, str]) -> LocalKeys:
    """The keys of this machine. Raises `ConfigurationError` when there is none to log in with."""
    if configuration.ssh_key is not None:
        if not configuration.ssh_key.is_file():
            raise ConfigurationError(
                f"the SSH key {configuration.ssh_key} is not there",
                hint="Give the private key's file with --ssh-key or VAST_SSH_KEY.",
            )
        files: tuple[Path, ...] = (configuration.ssh_key,)
    else:
        folder = Path(environ.get("HOME") or os.path.expanduser("~")) / ".ssh"
        files = tuple(path for name in DEFAULT_NAMES if (path := folder / name).is_file())
    agent = bool(environ.get("SSH_AUTH_SOCK"))
    if not files and not agent:
        raise ConfigurationError(
            "there is no SSH key to log in to a machine with, so a rented one would be out of reach",
            hint="Make one with: ssh-keygen -t ed25519",
        )
    return LocalKeys(files, _public_half(files), agent)


def _public_half(files: tuple[Path, ...]) -> str:
    for path in files:
        try:
            line = path.with_name(f"{path.name}.pub").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if line.startswith(_KINDS) and "\n" not in line:
            return line
    return ""
