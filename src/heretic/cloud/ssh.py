# SPDX-License-Identifier: Apache-2.0
"""A machine over SSH: fabric for commands, the options for the system's ssh and rsync (requirements R-VAS-05, H08).

The only module that knows fabric and paramiko. The user's ssh configuration is not read: an address comes from the
provider, and nothing of the working folder may decide what is run.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from heretic.cloud.configuration import VastConfig
from heretic.cloud.errors import SSHError
from heretic.cloud.hostkeys import HostKeys, alias
from heretic.cloud.keys import local_keys
from heretic.cloud.network import ssh_answers
from heretic.cloud.remote import COMMAND_S, Answer
from heretic.cloud.types import Address, Instance

CONNECT_S: Final = 30.0
KEEPALIVE_S: Final = 15
LARGEST_OUTPUT: Final = 8 * 1024 * 1024


class FabricRemote:
    """One connection. Commands are texts for the remote login shell."""

    def __init__(self, connection: Any, title: str) -> None:
        self._connection = connection
        self._title = title

    def run(
        self,
        command: str,
        *,
        timeout_s: float = COMMAND_S,
        stdin: str | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> Answer:
        """See `Remote.run`. Raises `SSHError` when the connection breaks or the time is over: then whether the command
        ended is not known.
        """
        from invoke.exceptions import CommandTimedOut, ThreadException

        streams: dict[str, Any] = {} if on_output is None else {"out_stream": _Stream(on_output)}
        try:
            result = self._connection.run(
                command,
                hide=True,
                warn=True,
                pty=False,
                encoding="utf-8",
                timeout=timeout_s,
                in_stream=False if stdin is None else _Whole(stdin),
                **streams,
            )
        except CommandTimedOut as error:
            raise SSHError(
                f"{self._title} gave no answer within {timeout_s:g} s; whether the command ended is not known",
                hint="Look at it with: heretic-vast progress",
            ) from error
        except ThreadException as error:
            raise _lost(self._title, error) from error
        except _ssh_errors() as error:
            raise _lost(self._title, error) from error
        if result.return_code < 0:
            raise _lost(self._title, None)
        return Answer(result.return_code, result.stdout[-LARGEST_OUTPUT:], result.stderr[-LARGEST_OUTPUT:])

    def send(self, path: Path, target: str) -> None:
        """Copy a local file to the machine. Raises `SSHError`."""
        try:
            self._connection.put(str(path), target)
        except _ssh_errors() as error:
            raise _lost(self._title, error) from error

    def close(self) -> None:
        """End the connection; what was started there lives on."""
        self._connection.close()


class _Stream(io.TextIOBase):
    """Hands on what is written."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def write(self, text: str) -> int:
        self._write(text)
        return len(text)


class _Whole(io.StringIO):
    """Gives everything at the first read: fabric asks for one character at a time and pauses after each."""

    def read(self, size: int | None = -1) -> str:
        return super().read()


def open_connection(
    instance: Instance, configuration: VastConfig, environ: Mapping[str, str]
) -> FabricRemote:
    """Connect and log in. Raises `SSHError`, `HostKeyError`, `ConfigurationError` (no key here, or no fabric)."""
    address = needed_address(instance)
    keys = local_keys(configuration, environ)
    connection = _connection(address, configuration.ssh_user, keys.files, keys.agent)
    connection.client.set_missing_host_key_policy(_policy(instance, address, configuration))
    try:
        connection.open()
        connection.transport.set_keepalive(KEEPALIVE_S)
    except _ssh_errors() as error:
        raise _refused(instance, address, error) from error
    return FabricRemote(connection, instance.title)


def needed_address(instance: Instance) -> Address:
    """The first address at which an SSH server answers, else the first. Raises `SSHError` when the provider gives none.

    The direct one comes first; behind some networks only the provider's proxy is reached.
    """
    if instance.address is None:
        raise SSHError(
            f"the provider gives no address for {instance.title} (state: {instance.said})",
            hint="Loading means wait; see: heretic-vast list",
        )
    if len(instance.addresses) > 1:
        return next((entry for entry in instance.addresses if ssh_answers(entry)), instance.addresses[0])
    return instance.address


def _connection(address: Address, user: str, files: tuple[Path, ...], agent: bool) -> Any:
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what fails is told by us, once
    try:
        from fabric import Config, Connection  # type: ignore[import-untyped]  # ships no types
    except ImportError as error:
        raise SSHError(
            "the SSH library is not installed", hint="Install it with: pip install 'heretic-workbench[cloud]'"
        ) from error
    return Connection(
        host=address.host,
        user=user,
        port=address.port,
        config=Config(overrides={"load_ssh_configs": False}, lazy=True),
        connect_timeout=CONNECT_S,
        connect_kwargs={
            "key_filename": [str(path) for path in files],
            "allow_agent": agent,
            "look_for_keys": False,
            "banner_timeout": CONNECT_S,
            "auth_timeout": CONNECT_S,
        },
    )


def _policy(instance: Instance, address: Address, configuration: VastConfig) -> Any:
    from paramiko import MissingHostKeyPolicy  # type: ignore[import-untyped]  # ships no types

    keys = HostKeys(configuration.state_dir)
    name = alias(instance, address)

    class Pinned(MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko ships no types
        """Asked about every key: paramiko itself is told of none."""

        def missing_host_key(self, client: object, hostname: str, key: Any) -> None:
            keys.check(name, key.get_name(), key.get_base64())

    return Pinned()


def _ssh_errors() -> tuple[type[Exception], ...]:
    from paramiko import SSHException

    return (SSHException, OSError, EOFError)


def _refused(instance: Instance, address: Address, error: Exception) -> SSHError:
    """By type, more specific before general (X17)."""
    from paramiko import AuthenticationException, PasswordRequiredException

    where = f"{instance.title} at {address.host}:{address.port}"
    if isinstance(error, PasswordRequiredException):
        return SSHError("the SSH key has a passphrase", hint="Load it into the agent first: ssh-add")
    if isinstance(error, AuthenticationException):
        return SSHError(
            f"{where} does not accept the SSH key",
            hint="Add the public key at cloud.vast.ai/manage-keys, or name another with --ssh-key.",
        )
    return SSHError(
        f"{where} cannot be reached over SSH ({type(error).__name__})",
        hint="Loading means wait; see the provider's state with: heretic-vast list",
    )


def _lost(title: str, error: BaseException | None) -> SSHError:
    kind = f" ({type(error).__name__})" if error is not None else ""
    return SSHError(
        f"the connection to {title} broke{kind}; a detached run lives on, an answer was lost",
        hint="Look again with: heretic-vast progress",
    )


def ssh_options(instance: Instance, configuration: VastConfig, environ: Mapping[str, str]) -> list[str]:
    """Options of the system's ssh for this machine, without program and address: same keys, same pinned host key."""
    address = needed_address(instance)
    keys = local_keys(configuration, environ)
    settings = {
        "HostKeyAlias": alias(instance, address),
        "UserKnownHostsFile": f'"{HostKeys(configuration.state_dir).path}"',  # the folder may have a space
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "accept-new",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        "PasswordAuthentication": "no",
        "IdentitiesOnly": "no" if keys.agent else "yes",
        "ConnectTimeout": f"{CONNECT_S:.0f}",
        "ServerAliveInterval": str(KEEPALIVE_S),
    }
    options = ["-F", "/dev/null", "-p", str(address.port)]
    for path in keys.files:
        options += ["-i", str(path)]
    for name, value in settings.items():
        options += ["-o", f"{name}={value}"]
    return options


def system_program(name: str) -> str:
    """Absolute path of a program, never one of the working folder (F06). Raises `SSHError` when it is not installed."""
    parts = [part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(part)]
    found = shutil.which(name, path=os.pathsep.join(parts))
    if found is None:
        raise SSHError(
            f"the program {name!r} is not installed here", hint=f"Install it, e.g.: apt install {name}"
        )
    return found


def child_environment() -> dict[str, str]:
    """The environment for ssh and rsync: without the secrets, which they do not need (I01)."""
    hidden = {"VAST_API_KEY", "HF_TOKEN"}
    return {name: value for name, value in os.environ.items() if name not in hidden}
