# SPDX-License-Identifier: Apache-2.0
"""The coverage report: which writers a run can reach, by parameter count (algorithms 1.5, requirement
R-MOD-30)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from heretic.architectures.site import EMBEDDING_LAYER, Architecture, CoverageRow
from heretic.exceptions import UnsupportedArchitectureError

REACHABLE = "reachable"


def excluded(why: str) -> str:
    """Status of a writer that is known and deliberately left alone."""
    return f"excluded: {why}"


def unsupported(why: str) -> str:
    """Status of a parameter that writes, or may write, and cannot be edited."""
    return f"unsupported: {why}"


def share(rows: Iterable[CoverageRow]) -> float:
    """Reachable parameters over all parameters of `rows`; 1.0 for no rows."""
    sizes = [(math.prod(row.shape), row.status == REACHABLE) for row in rows]
    total = sum(size for size, _ in sizes)
    return sum(size for size, reachable in sizes if reachable) / total if total else 1.0


def shares_by_component(architecture: Architecture) -> dict[str, float]:
    """Component -> covered share inside the decoder blocks."""
    return _shares(architecture, lambda row: row.component)


def shares_by_layer(architecture: Architecture) -> dict[str, float]:
    """Layer number as text -> covered share of that block."""
    return _shares(architecture, lambda row: str(row.layer))


def _shares(architecture: Architecture, key: Callable[[CoverageRow], str]) -> dict[str, float]:
    groups: dict[str, list[CoverageRow]] = {}
    for row in architecture.coverage:
        if row.layer != EMBEDDING_LAYER:
            groups.setdefault(key(row), []).append(row)
    return {name: share(rows) for name, rows in groups.items()}


def summary(architecture: Architecture) -> dict[str, object]:
    """The report as plain values for the manifest: shares, rows that are not reachable, notes."""
    inside = [row for row in architecture.coverage if row.layer != EMBEDDING_LAYER]
    return {
        "family": architecture.family,
        "layers": architecture.layers,
        "writers": len(inside),
        "sites": len(architecture.sites),
        "covered_share": architecture.covered_share(),
        "by_component": shares_by_component(architecture),
        "not_reachable": [
            f"{row.path}: {row.status}" for row in architecture.coverage if row.status != REACHABLE
        ],
        "notes": list(architecture.notes),
    }


def require_complete(architecture: Architecture, *, allow_partial: bool) -> None:
    """Stops the run when a writer is out of reach.

    Raises `UnsupportedArchitectureError` with one line per writer unless `allow_partial`, which the caller
    records together with `Architecture.covered_share` (requirement R-MOD-21).
    """
    missing = [
        row for row in architecture.coverage if row.layer != EMBEDDING_LAYER and row.status != REACHABLE
    ]
    if missing and not allow_partial:
        raise UnsupportedArchitectureError(
            f"{len(missing)} writers into the residual stream cannot be reached: "
            f"the edit would cover {architecture.covered_share():.1%} of the writing parameters.",
            hint="Pass --allow-partial to go on without the guarantee; the uncovered share is recorded.",
            details=tuple(f"{row.path} {list(row.shape)}: {row.status}" for row in missing),
        )
