# SPDX-License-Identifier: Apache-2.0
"""Settings: what can be told to a run, and the cascade of places where it can be said. Imports no torch."""

from __future__ import annotations

from heretic.config.behaviour import Behaviour, built_in_behaviours, load_behaviour
from heretic.config.describe import (
    SettingInfo,
    default_toml,
    describe,
    help_table,
    public_settings,
    settings_for_fingerprint,
    settings_page,
)
from heretic.config.render import render_show_config
from heretic.config.resolve import Origin, Resolved, resolve_settings
from heretic.config.run_file import recorded_settings, settings_from_run_file
from heretic.config.settings import GROUPS, Settings, setting_names
from heretic.config.tables import DatasetSettings, LayerRange, ScorerSettings, SearchSpace

__all__ = [
    "GROUPS",
    "Behaviour",
    "DatasetSettings",
    "LayerRange",
    "Origin",
    "Resolved",
    "ScorerSettings",
    "SearchSpace",
    "SettingInfo",
    "Settings",
    "built_in_behaviours",
    "default_toml",
    "describe",
    "help_table",
    "load_behaviour",
    "public_settings",
    "recorded_settings",
    "render_show_config",
    "resolve_settings",
    "setting_names",
    "settings_for_fingerprint",
    "settings_from_run_file",
    "settings_page",
]
