# SPDX-License-Identifier: Apache-2.0
"""What `heretic-vast` is told from outside: flags, environment, `.env`, packaged values (requirements R-VAS-01 to 03).

The `.env` of a folder may set our own names, tokens and price caps. It can never say where requests go, because the
key would follow (reliability F06, I05); and nothing that lies in a file can give consent (R-VAS-51).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from heretic.cloud.dotenv import read_dotenv
from heretic.cloud.errors import APIKeyValidationError
from heretic.cloud.tiers import table
from heretic.cloud.types import Secret, Tier
from heretic.exceptions import ConfigurationError

DEFAULT_URL: Final = "https://console.vast.ai"
DEFAULT_WORKSPACE: Final = "/workspace"
OWN_NAMES: Final = (
    "VAST_API_KEY", "HF_TOKEN", "LOCAL_MODELS_DIR", "VAST_IMAGE", "VAST_SSH_KEY", "VAST_WORKSPACE",
    "VAST_SSH_USER",
)  # fmt: skip
"""What a `.env` may set, beside the prices and disks of tiers."""

ENDPOINTS: Final = ("VAST_API_URL", "VAST_API_VERSION")
"""Counted from a flag or the real environment only."""

_PRICE, _DISK = "VAST_MAX_PRICE_", "VAST_DISK_"
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{8,256}")
_VERSION: Final = re.compile(r"v\d{1,2}")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_PLACEHOLDER: Final = re.compile(
    r"<.*>|\.\.\.|x{3,}|your[-_ ].*|.*[-_]here|change[-_]?me|todo|none|null|secret|placeholder|",
    re.IGNORECASE,
)
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class VastConfig:
    """All outside values. The two secrets show themselves as stars wherever the record is printed.

    key_source, image_source: where the value came from, for what is announced. api_version: None tries what the
    provider's documentation names. notices: lines to say once.
    """

    api_key: Secret | None = None
    key_source: str = ""
    hf_token: Secret | None = None
    api_url: str = DEFAULT_URL
    api_version: str | None = None
    models_dir: Path = Path("models")
    image: str = ""
    image_source: str = "packaged"
    ssh_key: Path | None = None
    ssh_user: str = "root"
    workspace: str = DEFAULT_WORKSPACE
    state_dir: Path = Path()
    tiers: Mapping[str, Tier] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        *,
        environ: Mapping[str, str],
        folder: Path,
        api_url: str | None = None,
        api_version: str | None = None,
        ssh_key: str | None = None,
        image: str | None = None,
    ) -> VastConfig:
        """The configuration: flags over environment over `.env` over packaged values over the provider's key file.

        folder: where a `.env` is looked for. Raises `ConfigurationError`, `APIKeyValidationError`; nothing was sent.
        """
        found = read_dotenv(folder)
        notices = list(found.notices)
        values: dict[str, tuple[str, str]] = {}
        for name, (value, source) in found.values.items():
            if name in ENDPOINTS:
                notices.append(f"{source}: {name} is ignored; give it as a flag or in the real environment.")
            elif _ours(name) and not _PLACEHOLDER.fullmatch(value):
                values[name] = (value, source)
        if values:
            notices.append(f".env: read {', '.join(sorted(values))}.")
        for name, value in environ.items():
            if (_ours(name) or name in ENDPOINTS) and value.strip():
                values[name] = (value.strip(), name)
        for name, flag in (
            ("VAST_API_URL", api_url),
            ("VAST_API_VERSION", api_version),
            ("VAST_SSH_KEY", ssh_key),
            ("VAST_IMAGE", image),
        ):
            if flag is not None:
                values[name] = (flag, "command line")
        return _build(values, environ, tuple(notices))

    def need_key(self) -> Secret:
        """The provider's key. Raises `APIKeyValidationError` when there is none."""
        if self.api_key is None:
            raise APIKeyValidationError(
                "there is no key of the provider",
                hint="Put it into the environment variable VAST_API_KEY; keys are made at cloud.vast.ai/manage-keys.",
            )
        return self.api_key


def _ours(name: str) -> bool:
    return name in OWN_NAMES or name.startswith((_PRICE, _DISK))


def _build(
    values: Mapping[str, tuple[str, str]], environ: Mapping[str, str], notices: tuple[str, ...]
) -> VastConfig:
    def text(name: str, default: str = "") -> str:
        return values.get(name, (default, ""))[0]

    home = _home(environ)
    key, source = values.get("VAST_API_KEY", ("", ""))
    if not key:
        key, source = _key_file(environ, home)
    url, version = _endpoint(text("VAST_API_URL", DEFAULT_URL), text("VAST_API_VERSION"))
    if url != DEFAULT_URL:
        notices = (*notices, f"Requests, and the key with them, go to {url}.")
    ssh_key = text("VAST_SSH_KEY")
    image, image_source = values.get("VAST_IMAGE", (table().image, "packaged"))
    return VastConfig(
        api_key=_checked_key(key, source) if key else None,
        key_source=source,
        hf_token=Secret(text("HF_TOKEN")) if text("HF_TOKEN") else None,
        api_url=url,
        api_version=version,
        models_dir=Path(text("LOCAL_MODELS_DIR", "models")).expanduser(),
        image=_checked_image(image, image_source),
        image_source=image_source,
        ssh_key=Path(ssh_key).expanduser() if ssh_key else None,
        ssh_user=_checked_user(text("VAST_SSH_USER", "root")),
        workspace=_checked_workspace(text("VAST_WORKSPACE", DEFAULT_WORKSPACE)),
        state_dir=_state_dir(environ, home),
        tiers=MappingProxyType(_tiers(values)),
        notices=notices,
    )


def _checked_key(key: str, source: str) -> Secret:
    """R-VAS-03: the message says nothing of the value, not even its length."""
    if not _KEY.fullmatch(key):
        raise APIKeyValidationError(
            f"the key in {source} cannot be one: a key is 8 to 256 letters, digits, '-' or '_'",
            hint="Copy it again from cloud.vast.ai/manage-keys, without quotes, spaces or line ends.",
        )
    return Secret(key)


def _checked_image(image: str, source: str) -> str:
    name, _, tag = image.rpartition(":")
    if not _IMAGE.fullmatch(image) or (not name and "@" not in image) or tag == "latest":
        raise ConfigurationError(
            f"the image {image!r} ({source}) is not pinned",
            hint="Name one with a tag that does not move: name:version or name@sha256:...",
        )
    return image


def _checked_workspace(workspace: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,200}", workspace) or ".." in workspace:
        raise ConfigurationError(
            f"VAST_WORKSPACE is {workspace!r}", hint="Give an absolute path of letters, digits and ._/-"
        )
    return workspace.rstrip("/")


def _checked_user(user: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise ConfigurationError(
            f"VAST_SSH_USER is {user!r}", hint="Give the login name of the machine: root."
        )
    return user


def _endpoint(url: str, version: str) -> tuple[str, str | None]:
    """(base without path, version or None). The key travels in a header, so anything but HTTPS is refused."""
    parts = urlsplit(url)
    path = re.fullmatch(r"/*(?:api(?:/(v\d{1,2}))?)?/*", parts.path)
    local = parts.hostname in _LOOPBACK
    if parts.scheme not in ("https", "http") or not parts.hostname or path is None or parts.query:
        raise ConfigurationError(
            f"the provider's address is {url!r}", hint=f"Give it as {DEFAULT_URL} or {DEFAULT_URL}/api/v0."
        )
    if parts.username or parts.password:
        raise ConfigurationError(
            "the provider's address holds a name or a password", hint="Leave them out of the address."
        )
    if parts.scheme == "http" and not local:
        raise ConfigurationError(
            f"the provider's address {url!r} is not encrypted; the key would be readable on the way",
            hint="Use https.",
        )
    chosen = version or path.group(1) or ""
    if chosen and not _VERSION.fullmatch(chosen):
        raise ConfigurationError(f"the API version is {chosen!r}", hint="Give it as v0 or v1.")
    return f"{parts.scheme}://{parts.netloc}", chosen or None


def _tiers(values: Mapping[str, tuple[str, str]]) -> dict[str, Tier]:
    """The packaged tiers with the caps and disks of the user."""
    tiers = dict(table().tiers)
    for name, (value, source) in values.items():
        prefix = next((front for front in (_PRICE, _DISK) if name.startswith(front)), None)
        if prefix is None:
            continue
        tier = name.removeprefix(prefix).upper()
        if tier not in tiers:
            raise ConfigurationError(
                f"{source}: there is no tier {tier!r}", hint=f"The tiers are: {', '.join(tiers)}."
            )
        number = _number(value, name, source)
        changed = {"max_price": number} if prefix == _PRICE else {"disk_gb": int(number)}
        tiers[tier] = replace(tiers[tier], **changed)
    return tiers


def _number(value: str, name: str, source: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < 100_000:
        raise ConfigurationError(f"{source}: {name} is {value!r}", hint="Give a number above 0.")
    return number


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or environ.get("USERPROFILE") or os.path.expanduser("~"))


def _key_file(environ: Mapping[str, str], home: Path) -> tuple[str, str]:
    """The key file of the provider's own program: its present place, then the older one."""
    base = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    for path in (base / "vastai" / "vast_api_key", home / ".vast_api_key"):
        try:
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if key:
            return key, str(path)
    return "", ""


def _state_dir(environ: Mapping[str, str], home: Path) -> Path:
    """Where ledger and host keys are kept, by the custom of the platform."""
    if sys.platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state")
    return base / "heretic" / "cloud"
