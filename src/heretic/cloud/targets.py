# SPDX-License-Identifier: Apache-2.0
"""Which instance is meant (requirements 10.4, reliability H04)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from heretic.cloud.errors import InstanceNotFoundError
from heretic.cloud.ledger import Ledger
from heretic.cloud.types import Instance
from heretic.exceptions import ConfigurationError

LARGEST: Final = 999_999_999
LONGEST_MODEL: Final = 500
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def parse_id(word: str | None) -> int | None:
    """The number of an instance, None when none was given. Raises `ConfigurationError`."""
    if word is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", word) or not 1 <= int(word) <= LARGEST:
        raise ConfigurationError(
            f"{word!r} is no instance ID",
            hint=f"Give a whole number from 1 to {LARGEST}; see: heretic-vast list",
        )
    return int(word)


def check_model(model: str) -> str:
    """A model's name as it may go to the machine (R-VAS-26, H10). Raises `ConfigurationError`."""
    if len(model) > LONGEST_MODEL or ".." in model or not _MODEL.fullmatch(model):
        raise ConfigurationError(
            f"{model[:80]!r} is no model name for a rented machine",
            hint="Give a Hub id as OWNER/NAME: letters, digits, '.', '_', '-', at most 500 characters.",
        )
    return model


def choose_instance(
    instances: Sequence[Instance], identity: int | None, ledger: Ledger, *, states: Sequence[str], verb: str
) -> Instance:
    """The instance with that id, or without one the only one in `states` that this program rented.

    Raises `InstanceNotFoundError` (3) for none, `ConfigurationError` (2) for several or for one of somebody else.
    """
    if identity is not None:
        found = next((entry for entry in instances if entry.id == identity), None)
        if found is None:
            raise InstanceNotFoundError(
                f"the account has no instance {identity}",
                details=_lines(instances),
                hint="See: heretic-vast list",
            )
        return found
    fitting = [entry for entry in instances if entry.state in states]
    if not fitting:
        raise InstanceNotFoundError(
            f"there is no instance to {verb}: none is {' or '.join(states)}",
            details=_lines(instances),
            hint="See: heretic-vast list",
        )
    if len(fitting) > 1:
        raise ConfigurationError(
            f"there are {len(fitting)} instances; which one is meant?",
            details=_lines(fitting),
            hint=f"Give its ID: heretic-vast {verb} ID",
        )
    if not ledger.owns(fitting[0]):
        raise ConfigurationError(
            f"{fitting[0].title} was not rented by this program",
            hint=f"Name it, if it is meant: heretic-vast {verb} {fitting[0].id}",
        )
    return fitting[0]


def _lines(instances: Sequence[Instance]) -> tuple[str, ...]:
    return tuple(f"{entry.title}: {entry.num_gpus} x {entry.gpu_name}, {entry.said}" for entry in instances)
