# SPDX-License-Identifier: Apache-2.0
"""What extraction found beyond the directions, one line each for the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from heretic.directions.findings import Findings


def describe_findings(findings: Findings) -> Iterator[str]:
    """Lines for those findings that the run has."""
    notes: Mapping[str, Any] = findings.notes
    if len(findings.sources) > 1:
        causal = notes.get("causal")
        shown = (
            ""
            if causal is None
            else "; "
            + ", ".join(
                f"{name} leaves {count}/{causal['prompts']}" for name, count in causal["shown"].items()
            )
        )
        yield f"Sources of the direction: {', '.join(findings.sources)}{shown}"
    if findings.bank.components > 1:
        yield f"Up to {findings.bank.components} directions for each layer"
    if findings.factors:
        low, high = min(findings.factors), max(findings.factors)
        yield f"Calibration: strength times {low:.2f} to {high:.2f} by layer"
    if findings.heads:
        first = findings.heads[0]
        yield (
            f"{len(findings.heads)} heads carry the behaviour; the strongest is head {first.head} of layer "
            f"{first.layer} ({first.importance:.0%} of the sum)"
        )
    if findings.shifts:
        spread = max(shift.spread for shift in findings.shifts.values())
        yield f"{len(findings.shifts)} writers can carry a constant; it varies by up to {spread:.0%}"
    if findings.protected is not None:
        yield f"{findings.protected.shape[1]} protected directions for each layer"
