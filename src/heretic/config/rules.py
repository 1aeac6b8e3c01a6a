# SPDX-License-Identifier: Apache-2.0
"""Rules between settings: what follows from what was given, and what contradicts it (R-CLI-42)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from heretic.config import schema
from heretic.config.availability import unavailable
from heretic.config.layers import Entry, Finding, LayerKind
from heretic.config.schema import KeyPath
from heretic.config.settings import Settings, redact, setting_names

SWITCHES: Final = {"use_concept_cones": "cones", "use_caa": "caa", "use_circuit_ablation": "heads"}
INDUCING: Final = ("single", "subspace", "heads", "caa")
UPPER_BOUNDS: Final = {"n_startup_trials": "n_trials", "refusal_check_tokens": "max_response_length"}
WEIGHT_TOLERANCE: Final = 0.01
EXPLICIT: Final[tuple[LayerKind, ...]] = ("file", ".env", "environment", "command line")
_COMMIT = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)


@dataclass(slots=True)
class Effective:
    """The merged leaves while rules are applied to them."""

    entries: dict[KeyPath, Entry]
    kinds: dict[KeyPath, LayerKind]
    degradations: list[str] = field(default_factory=list)

    def value(self, name: str) -> object:
        """Effective value of a top-level leaf; None where it has none."""
        entry = self.entries.get((name,))
        return entry.value if entry else None

    def is_explicit(self, name: str) -> bool:
        """Given by the user above the packaged defaults and the behaviour pack."""
        return self.kinds.get((name,)) in EXPLICIT

    def said(self, name: str) -> str:
        """`n_trials = 20 (--n-trials)`, as messages name a value."""
        entry = self.entries[(name,)]
        return f"{name} = {schema.shown(redact(name, entry.value))} ({entry.source})"

    def derive(self, name: str, value: object, reason: str) -> None:
        """Replace a value nobody gave."""
        self.entries[(name,)] = Entry(value, reason)
        self.kinds[(name,)] = "derived"


def apply_derivations(effective: Effective) -> None:
    """Lower defaults under the bounds the user gave, and let a switch select its strategy (R-DIR-01)."""
    for name, bound in UPPER_BOUNDS.items():
        value, limit = effective.value(name), effective.value(bound)
        if (
            isinstance(value, int)
            and isinstance(limit, int)
            and value > limit
            and not effective.is_explicit(name)
        ):
            effective.derive(name, limit, f"lowered to {bound}")
    chosen = [name for name in SWITCHES if effective.value(name) is True and effective.is_explicit(name)]
    if len(chosen) == 1 and not effective.is_explicit("strategy"):
        effective.derive("strategy", SWITCHES[chosen[0]], f"follows from {chosen[0]}")
    for name, strategy in SWITCHES.items():
        if effective.value("strategy") == strategy and not effective.is_explicit(name):
            effective.derive(name, True, f"follows from strategy = {strategy}")


def apply_availability(effective: Effective) -> list[Finding]:
    """Refuse what this version cannot do when it was asked for; switch it off where it is only a default."""
    findings = []
    absent = []
    for name in setting_names():
        missing = unavailable(name, effective.value(name)) if (name,) in effective.entries else None
        if missing is None:
            continue
        kind = effective.kinds.get((name,))
        if kind == "default":
            effective.derive(name, missing.values[0], "not available in this version")
            absent.append(f"{missing.feature} ({name})")
        elif kind != "derived":
            findings.append(
                Finding(
                    "value", f"{effective.said(name)}: {missing.feature} is not available in this version"
                )
            )
    if absent:
        effective.degradations.append(f"on by default, but not in this version: {', '.join(absent)}")
    return findings


def contradictions(settings: Settings, effective: Effective) -> list[Finding]:
    """Pairs of settings that cannot both hold, each with both names and both sources."""
    lines = [*_strategy_conflicts(settings, effective), *_bound_conflicts(settings, effective)]
    if settings.trust_remote_code and not _COMMIT.fullmatch(settings.model_revision or ""):
        lines.append(
            f"{effective.said('trust_remote_code')} needs --model-revision with the 40 hexadecimal digits of "
            f"a commit; now {effective.said('model_revision')}"
        )
    if isinstance(settings.workers, int) and settings.workers > 1 and not settings.storage:
        lines.append(f"{effective.said('workers')} needs a storage; now {effective.said('storage')}")
    return [Finding("value", line) for line in lines]


def _strategy_conflicts(settings: Settings, effective: Effective) -> list[str]:
    lines = []
    switches: Mapping[str, bool] = {name: getattr(settings, name) for name in SWITCHES}
    on = [name for name, value in switches.items() if value and effective.is_explicit(name)]
    for first, second in zip(on, on[1:], strict=False):
        lines.append(f"{effective.said(first)} contradicts {effective.said(second)}: one strategy at a time")
    if effective.is_explicit("strategy"):
        for name, strategy in SWITCHES.items():
            if effective.is_explicit(name) and switches[name] != (settings.strategy == strategy):
                lines.append(f"{effective.said(name)} contradicts {effective.said('strategy')}")
    if settings.goal == "induce" and settings.strategy not in INDUCING:
        lines.append(
            f"{effective.said('goal')} contradicts {effective.said('strategy')}: "
            f"induce works with {', '.join(INDUCING)}"
        )
    if settings.use_sacred_directions and settings.strategy == "norm_preserving":
        lines.append(
            f"{effective.said('use_sacred_directions')} contradicts {effective.said('strategy')}: "
            "keeping lengths rescales whole columns and changes the protected coordinates"
        )
    return lines


def _bound_conflicts(settings: Settings, effective: Effective) -> list[str]:
    lines = [
        f"{effective.said(name)} should be at most {effective.said(bound)}"
        for name, bound in UPPER_BOUNDS.items()
        if getattr(settings, name) > getattr(settings, bound)
    ]
    total = settings.ensemble_weight_probe + settings.ensemble_weight_pca
    if abs(total - 1.0) > WEIGHT_TOLERANCE:
        lines.append(
            f"{effective.said('ensemble_weight_probe')} and {effective.said('ensemble_weight_pca')} "
            f"sum to {total:g}; they should sum to 1"
        )
    low, high = "activation_calibration_min_factor", "activation_calibration_max_factor"
    if getattr(settings, low) > getattr(settings, high):
        lines.append(f"{effective.said(low)} should be at most {effective.said(high)}")
    wants_weights = effective.is_explicit("direction_weights") or not settings.use_eigenvalue_weights
    if wants_weights and len(settings.direction_weights) < settings.n_refusal_directions:
        lines.append(
            f"{effective.said('direction_weights')} should have at least as many values as "
            f"{effective.said('n_refusal_directions')}"
        )
    return lines
