# SPDX-License-Identifier: Apache-2.0
"""The parts of the page from top to bottom; each is a function of the record."""

from __future__ import annotations

from collections.abc import Collection

from heretic.apps.report_page.blocks import Section
from heretic.apps.report_page.record import PageRecord
from heretic.apps.report_page.sections import depth, evidence, limits, origin, summary, trials


def sections(record: PageRecord, drawn: Collection[str]) -> list[Section]:
    """All sections; drawn: names of the figures there are. A section without data says what it lacks."""
    return [
        summary.in_short(record),
        summary.before_and_after(record),
        trials.front(record, drawn),
        depth.kernels(record, drawn),
        depth.separability(record, drawn),
        depth.projections(record, drawn),
        trials.importance(record, drawn),
        evidence.replies(record),
        evidence.certificate(record),
        evidence.coverage(record),
        limits.limits(record),
        origin.origin(record),
        origin.commands(record),
    ]
