# SPDX-License-Identifier: Apache-2.0
"""What every command of `heretic-vast` is given, and the registry of its commands with their effects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from cyclopts import App, Parameter

from heretic.cli.context import Context
from heretic.cli.effects import Effect
from heretic.cloud.clock import Clock, SystemClock
from heretic.cloud.configuration import VastConfig
from heretic.cloud.http import Limits
from heretic.cloud.ledger import Ledger
from heretic.cloud.network import ssh_answers
from heretic.cloud.remote import Remote
from heretic.cloud.types import Address, Instance
from heretic.cloud.vast import Request, VastClient, shown
from heretic.exceptions import ConfigurationError

Command = TypeVar("Command", bound=Callable[..., Any])

EFFECTS: Final[dict[str, Effect]] = {}
"""Command of `heretic-vast` -> what it may do to the world (reliability REL-17, R13)."""

FLAGS: Final = {"--api-url": "api_url", "--api-version": "api_version", "--ssh-key": "ssh_key"}
FLAG_HELP: Final = (
    (
        "--api-url URL",
        "the provider's address; counted from here or from VAST_API_URL of the real environment",
    ),
    ("--api-version vN", "version of the provider's API; without it the documented ones are tried"),
    ("--ssh-key PATH", "private key; without it ~/.ssh/id_ed25519, then ~/.ssh/id_rsa, and the agent"),
)


@dataclass(slots=True)
class World:
    """Everything outside the program. The real one by default; a test makes a small one."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    folder: Path = field(default_factory=Path.cwd)
    clock: Clock = field(default_factory=SystemClock)
    limits: Limits = field(default_factory=Limits)
    answers: Callable[[Address], bool] = ssh_answers


@dataclass(slots=True)
class CloudContext(Context):
    """One invocation of `heretic-vast`. trailing: the words behind `--`. standing: what keeps running and costing
    should the user leave now (R-VAS-56).
    """

    world: World = field(default_factory=World)
    given: dict[str, str] = field(default_factory=dict)
    trailing: tuple[str, ...] = ()
    standing: tuple[str, ...] = ()
    loaded: VastConfig | None = None

    def configuration(self, *, image: str | None = None) -> VastConfig:
        """The configuration of this command line; its notices are said once."""
        if self.loaded is None:
            self.loaded = VastConfig.load(
                environ=self.world.environ, folder=self.world.folder, image=image, **self.given
            )
            for notice in self.loaded.notices:
                self.console.note(f"note: {notice}")
            _hide(self.loaded)
        return self.loaded

    def client(self) -> VastClient:
        """The provider. Raises `APIKeyValidationError` without a key, `ConfigurationError` with --offline."""
        configuration = self.configuration()
        if self.flags.offline:
            raise ConfigurationError(
                "this command asks the provider, and --offline forbids it", hint="Leave out --offline."
            )
        return VastClient(
            configuration.api_url,
            configuration.need_key(),
            self.world.clock,
            version=configuration.api_version,
            limits=self.world.limits,
        )

    def ledger(self) -> Ledger:
        """The local record of rentals."""
        return Ledger(self.configuration().state_dir, self.world.clock)

    def remote(self, instance: Instance) -> Remote:
        """A connection to the machine. Raises `SSHError`."""
        from heretic.cloud.ssh import open_connection

        return open_connection(instance, self.configuration(), self.world.environ)

    def show_requests(self, requests: Sequence[Request]) -> int:
        """What `--dry-run` shows in place of sending it (R-VAS-57); the exit code."""
        version = self.configuration().api_version
        documents = [shown(request, version).document() for request in requests]
        self.console.document({"dry_run": True, "requests": documents})
        for entry in documents:
            self.console.result(
                f"would send: {entry['method']} {entry['path']} {entry['body'] or ''}".rstrip()
            )
        return 0

    def show_remote(self, commands: Sequence[str]) -> int:
        """What `--dry-run` shows of commands for the machine; the exit code."""
        self.console.document({"dry_run": True, "remote_commands": list(commands)})
        for command in commands:
            self.console.result(f"would run on the machine: {command}")
        return 0


Injected: TypeAlias = Annotated[CloudContext, Parameter(parse=False)]
"""The context, passed by the program and not by the command line."""

Switch: TypeAlias = Annotated[bool, Parameter(negative=())]
"""A flag without a `--no-` form."""


def command(app: App, name: str, effect: Effect) -> Callable[[Command], Command]:
    """Decorator that adds a function to `app` under `name` and records its effect."""

    def add(function: Command) -> Command:
        EFFECTS[name] = effect
        app.command(function, name=name)
        return function

    return add


_HIDDEN: Final[list[tuple[str, str]]] = []


def _hide(configuration: VastConfig) -> None:
    """Let everything that is shown or logged be cleaned of the secrets: the cleaner looks them up by these names."""
    for name, secret in (("VAST_API_KEY", configuration.api_key), ("HF_TOKEN", configuration.hf_token)):
        if secret is not None:
            _HIDDEN.append((name, os.environ.get(name, "")))
            os.environ[name] = secret.reveal()


@contextmanager
def hidden_secrets() -> Iterator[None]:
    """For the length of a command line; afterwards the environment is what it was."""
    try:
        yield
    finally:
        while _HIDDEN:
            name, before = _HIDDEN.pop()
            if before:
                os.environ[name] = before
            else:
                os.environ.pop(name, None)
