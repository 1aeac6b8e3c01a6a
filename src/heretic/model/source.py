# SPDX-License-Identifier: Apache-2.0
"""Where a model's files are: a local folder, or a Hub repository resolved to one commit and fetched.

The only module that asks the Hub for a model; it translates the library's errors by type and cause chain
(reliability X13 to X16), the specific before the general.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from heretic.exceptions import (
    ConfigurationError,
    HereticError,
    HubAccessError,
    ModelNotFoundError,
    ModelValidationError,
    NetworkError,
)

logger = logging.getLogger("heretic.model")

WANTED_FILES = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
    "README.md",
    "NOTICE*",
)
"""Never code, never pickle."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on disk. name: what the user wrote; commit: resolved Hub commit, None for a plain folder."""

    name: str
    path: Path
    commit: str | None

    @property
    def basename(self) -> str:
        """Last part of the name, without anything that tells about this machine."""
        return self.name.rstrip("/").rsplit("/", 1)[-1] or self.path.resolve().name


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it was raised from, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def locate(name: str, *, revision: str | None = None, offline: bool = False) -> ModelSource:
    """Find the files of `name`; an existing folder wins over a Hub repository of the same name.

    Raises `ModelNotFoundError`, `HubAccessError` (gated or private), `NetworkError` (no answer, offline without
    cache), `ConfigurationError` (malformed name), `ModelValidationError` (a folder without config.json).
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelValidationError(
                f"The folder {name!r} holds no config.json, so it is not a model.",
                hint="Name the folder that holds config.json, the tokenizer and the *.safetensors files.",
            )
        return ModelSource(name=name, path=folder.resolve(), commit=None)
    if folder.exists():
        raise ModelValidationError(
            f"{name!r} is a file, not a model folder.", hint="GGUF and single-file formats cannot be edited."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelNotFoundError(
            f"There is no folder {name!r}.", hint="Check the path, or give a Hub id like org/model."
        )
    return _fetch(name, revision, offline)


def _fetch(name: str, revision: str | None, offline: bool) -> ModelSource:
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            name, revision=revision, local_files_only=offline, allow_patterns=list(WANTED_FILES)
        )
    except (OSError, ValueError) as error:
        raise hub_error(error, name, offline=offline) from error
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ModelValidationError(
            f"The repository {name!r} holds no config.json.", hint="Is it a model repository?"
        )
    return ModelSource(name=name, path=folder, commit=folder.name)


def hub_error(error: BaseException, name: str, *, offline: bool = False) -> HereticError:
    """The typed error for what the Hub library raised about repository `name`; `offline`: only the cache was asked."""
    from huggingface_hub import errors as hub

    page = f"https://huggingface.co/{name}"
    for link in chain(error):
        if isinstance(link, hub.HFValidationError):
            return ConfigurationError(
                f"{name!r} is not a valid model name: {link}", hint="Use org/model or a folder."
            )
        if isinstance(link, hub.GatedRepoError):
            return HubAccessError(
                f"The repository {name!r} is gated.",
                hint=f"Accept the terms at {page}, then run 'hf auth login' or set HF_TOKEN.",
            )
        if isinstance(link, hub.RevisionNotFoundError):
            return ModelNotFoundError(f"{name!r} has no such revision.", hint="Check --model-revision.")
        if isinstance(link, hub.RepositoryNotFoundError):
            return ModelNotFoundError(
                f"There is no folder and no public Hub repository {name!r}.",
                hint="Check the spelling; for a private repository run 'hf auth login' or set HF_TOKEN.",
            )
        if isinstance(link, hub.OfflineModeIsEnabled) or (
            offline and isinstance(link, hub.LocalEntryNotFoundError)
        ):
            return NetworkError(
                f"There is no folder {name!r}, no model of that name is in the cache, and offline mode is on.",
                hint="Check the path, or run once without --offline and HF_HUB_OFFLINE.",
            )
    return NetworkError(
        f"The Hub gave no usable answer for {name!r} ({type(error).__name__}).",
        hint="Check the network, or use --offline with a cached model or a local folder.",
    )
