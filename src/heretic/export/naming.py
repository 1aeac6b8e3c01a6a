# SPDX-License-Identifier: Apache-2.0
"""Names of outputs (R-OUT-01, R-OUT-02) and the name of a model that may be shown to others."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from heretic.constants import HIDDEN_MANIFEST
from heretic.exceptions import ConfigurationError

REFUSAL = "refusal"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def public_model_id(model: str) -> str:
    """A Hub id as it is; a local path reduced to its last name, so that no path of this machine is
    published."""
    looks_local = model.startswith((".", "~", "/", "\\")) or "\\" in model or model.count("/") > 1
    if looks_local or os.path.isdir(model) or not _HUB_ID.fullmatch(model):
        return _basename(model)
    return model


def is_hub_id(model: str) -> bool:
    """Whether the name can be a link to the Hub (`owner/name`, and no local folder of that name)."""
    return "/" in model and public_model_id(model) == model


def output_name(model: str, behaviour: str, goal: Literal["suppress", "induce"] = "suppress") -> str:
    """Name of the output folder (R-OUT-01): `-heretic` for suppressed refusal, else the behaviour.

    model: Hub id or path. Raises `ConfigurationError` when the model's name is empty.
    """
    base = _basename(model)
    if not base:
        raise ConfigurationError(f"No output name can be made from the model {model!r}.")
    if goal == "induce":
        return f"{base}-more-{behaviour}"
    return f"{base}-heretic" if behaviour == REFUSAL else f"{base}-{behaviour}"


def output_folder(chosen: str | None, name: str) -> Path:
    """Where the output goes (R-OUT-02).

    chosen: the value of `auto_select_path`. None: `./name`. An existing folder or a path that ends in a
    slash is the parent; any other path is the output folder itself. An existing folder that is an earlier
    output of ours is the output folder itself too: the same command line, run twice, means the same place.
    """
    if chosen is None:
        return Path(name)
    path = Path(chosen).expanduser()
    if (path / HIDDEN_MANIFEST).is_file():
        return path
    if path.is_dir() or chosen.endswith(("/", os.sep)):
        return path / name
    return path


def _basename(model: str) -> str:
    trimmed = model.replace("\\", "/").rstrip("/")
    last = trimmed.rsplit("/", 1)[-1]
    if last in (".", "..", "~", ""):
        return Path(os.path.realpath(os.path.expanduser(model))).name if model else ""
    return last
