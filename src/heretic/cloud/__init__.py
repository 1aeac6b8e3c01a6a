# SPDX-License-Identifier: Apache-2.0
"""Renting a GPU: offers, rental, machine, results, and the end of the bill (requirements section 10, R-API-01).

`VastConfig` holds what comes from outside, `GPU_TIERS` the table of cards, `get_connection` opens a machine, and
`watch_dashboard` draws one look at it. Importing this package loads none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from heretic.cloud.configuration import VastConfig
    from heretic.cloud.dashboard import dashboard as watch_dashboard
    from heretic.cloud.ssh import open_connection as get_connection
    from heretic.cloud.tiers import GPU_TIERS

__all__ = ["GPU_TIERS", "VastConfig", "get_connection", "watch_dashboard"]

_HOMES: Final = {
    "GPU_TIERS": ("heretic.cloud.tiers", "GPU_TIERS"),
    "VastConfig": ("heretic.cloud.configuration", "VastConfig"),
    "get_connection": ("heretic.cloud.ssh", "open_connection"),
    "watch_dashboard": ("heretic.cloud.dashboard", "dashboard"),
}


def __getattr__(name: str) -> object:
    """The public names, each from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
