# SPDX-License-Identifier: Apache-2.0
"""Making a machine ready: folders, the same version of this program, and its doctor (requirements R-VAS-25).

Every step may be repeated. The packages go into an environment of their own that sees the torch of the image.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from heretic.cloud.errors import RemoteCommandError
from heretic.cloud.layout import Layout
from heretic.cloud.remote import IMAGE_PATHS, Remote
from heretic.exceptions import ConfigurationError

DISTRIBUTION: Final = "heretic-workbench"
INSTALL_S: Final = 1800.0
DOCTOR_S: Final = 600.0
_GIT: Final = re.compile(r"(git\+)?https://[A-Za-z0-9._~:/@%+-]+(\.git)?(@[A-Za-z0-9._/-]+)?")


@dataclass(frozen=True, slots=True)
class Step:
    """One command on the machine and what it is called."""

    title: str
    command: str
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where the package comes from. requirement: for pip; upload: a wheel that is sent first."""

    requirement: str
    upload: Path | None = None


def source_of(given: str | None, version: str, layout: Layout) -> Source:
    """The package index by default; a Git URL; or a wheel of this machine. Raises `ConfigurationError`."""
    if given is None:
        return Source(f"{DISTRIBUTION}=={version}")
    if given.endswith(".whl"):
        wheel = Path(given).expanduser()
        if not wheel.is_file() or not re.fullmatch(r"[A-Za-z0-9._+-]+\.whl", wheel.name):
            raise ConfigurationError(f"there is no wheel {given}", hint="Make one with: uv build --wheel")
        return Source(f"{layout.state}/{wheel.name}", wheel)
    if _GIT.fullmatch(given):
        url = given if given.startswith("git+") else f"git+{given}"
        return Source(f"{DISTRIBUTION} @ {url}")
    raise ConfigurationError(
        f"--source is {given!r}",
        hint="Give a Git URL (https://...), a .whl file, or nothing for the package index.",
    )


def steps(source: Source, version: str, layout: Layout) -> list[Step]:
    """The commands in order."""
    state, venv, python = shlex.quote(layout.state), f"{layout.state}/venv", shlex.quote(layout.python)
    folders = shlex.join([layout.cache, layout.models, layout.state])
    check = f"import heretic, sys; sys.exit(heretic.__version__ != {version!r} and heretic.__version__)"
    return [
        Step("folders", f"mkdir -p {folders} && chmod 700 {state}"),
        Step(
            "environment",
            f'PATH="{IMAGE_PATHS}:$PATH"; test -x {python} || '
            f"python3 -m venv --system-site-packages {shlex.quote(venv)}",
            300.0,
        ),
        Step(
            "installation",
            f"{python} -m pip install --upgrade --no-input {shlex.quote(source.requirement)}",
            INSTALL_S,
        ),
        Step("version", f"{python} -c {shlex.quote(check)}"),
        Step("doctor", f"{shlex.quote(layout.program)} doctor", DOCTOR_S),
    ]


def provision(
    remote: Remote, source: Source, plan: Sequence[Step], layout: Layout, say: Callable[[str], None]
) -> None:
    """Run all steps. Raises `RemoteCommandError` at the first that fails."""
    for number, step in enumerate(plan, start=1):
        if source.upload is not None and step.title == "installation":
            say(f"sending {source.upload.name}")
            remote.send(source.upload, source.requirement)
        say(f"step {number} of {len(plan)}: {step.title}")
        answer = remote.run(step.command, timeout_s=step.timeout_s)
        if answer.code != 0 and step.title == "version":
            raise RemoteCommandError(
                f"the machine has version {answer.err.strip() or 'unknown'} and not the one of this machine",
                hint="Give --source with the version you use here.",
            )
        answer.checked(f"step {step.title!r}")
