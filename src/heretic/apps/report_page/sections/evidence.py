# SPDX-License-Identifier: Apache-2.0
"""What can be checked: replies side by side, the certificate of the saved files, the coverage of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from heretic.apps.report_page.blocks import Block, Facts, Replies, Reply, Section, Table, Text
from heretic.apps.report_page.reading import (
    REPLY,
    count,
    figure,
    mapping,
    number,
    public,
    sequence,
    share,
    text,
)
from heretic.apps.report_page.record import PageRecord

EXAMPLES: Final = 12
OPEN_ROWS: Final = 24
CERTIFICATE: Final = (
    "matrix", "layer", "component", "stored as", "wanted share removed", "achieved", "left over", "relative change",
    "rounding kept", "protected moved",
)  # fmt: skip
SITE_FIGURES: Final = (1, 4, 5, 6, 7, 8, 9)
CHECKS: Final = {
    "logit_difference": "largest difference of a logit between the evaluated edit and the saved files",
    "logit_scale": "largest logit, for comparison",
    "prompts": "prompts compared",
    "checksums": "checksums",
    "changed_tensors": "tensors changed",
    "grade": "grade of the certificate",
}


def replies(record: PageRecord) -> Section:
    """Examples, base and edited."""
    title = "Replies before and after"
    entries = []
    for found in sequence(record.document.get("examples"))[:EXAMPLES]:
        example = mapping(found)
        texts = [text(example.get(name), REPLY).strip() for name in ("prompt", "base", "edited")]
        if texts[0]:
            entries.append(Reply(texts[0], texts[1] or "(empty reply)", texts[2] or "(empty reply)"))
    if not entries:
        return Section("replies", title, missing="No replies were kept with the study.")
    note = (
        "Picked among prompts on which the edit changed the verdict, where there are such; they show what the "
        "figures mean and are no sample. The text is the models', shown as it is."
    )
    return Section("replies", title, [Text((note,), tone="quiet"), Replies(entries)])


def certificate(record: PageRecord) -> Section:
    """What was written to the files, site by site, and what was checked."""
    title = "Certificate: what was written"
    checks = [
        (CHECKS.get(name, name.replace("_", " ")), public(value)) for name, value in _checks(record).items()
    ]
    if not checks and not record.certificate:
        return Section("certificate", title, missing="Nothing was saved, so there is nothing to certify.")
    blocks: list[Block] = []
    if checks:
        blocks.append(Facts(checks))
    if record.certificate:
        sites = [_site(site) for site in record.certificate]
        kept = [place for place in range(len(CERTIFICATE)) if any(site[place] for site in sites)]
        rows = [[site[place] for place in kept] for site in sites]
        numbers = [place for place, column in enumerate(kept) if column in SITE_FIGURES]
        blocks.append(
            Table(
                "Each changed matrix",
                [CERTIFICATE[place] for place in kept],
                rows,
                figures=numbers,
                folded=len(rows) > OPEN_ROWS,
                note="Computed from the written values. Wanted and achieved: share of what the matrix wrote "
                "along the direction that is gone. Relative change: of the whole matrix. Rounding kept: 1 "
                "when storing lost nothing.",
            )  # fmt: skip
        )
    else:
        blocks.append(Text(("The certificate of each matrix was not kept with the study.",), tone="warning"))
    return Section("certificate", title, blocks)


def _checks(record: PageRecord) -> Mapping[str, object]:
    return {text(name): value for name, value in mapping(record.document.get("verification")).items()}


def _site(site: Mapping[str, object]) -> tuple[str, ...]:
    def several(name: str) -> str:
        values = [number(value) for value in sequence(site.get(name))]
        return ", ".join(figure(value) for value in values if value is not None)

    def one(name: str) -> str:
        value = number(site.get(name))
        return "" if value is None else figure(value)

    return (
        text(site.get("path")), text(site.get("layer")), text(site.get("component")), text(site.get("dtype")),
        several("wanted"), several("achieved"), one("leftover"), one("relative_change"), one("realised"),
        one("protected_change"),
    )  # fmt: skip


def coverage(record: PageRecord) -> Section:
    """Which writers of the model can be edited, and which are left out and why."""
    title = "Coverage: what can be edited"
    found = mapping(record.document.get("coverage"))
    if not found:
        return Section("coverage", title, missing="The coverage of the model was not kept with the study.")
    facts = [
        ("model family", text(found.get("family"))),
        ("share of the writing parameters that is covered", share(number(found.get("share")))),
        ("matrices that can be edited", text(count(found.get("writers")))),
        ("components", text(found.get("components"))),
    ]
    skipped = [text(line).partition(": ")[::2] for line in sequence(found.get("skipped"))]
    blocks: list[Block] = [Facts(facts)]
    if skipped:
        blocks.append(Table("Matrices left out", ("matrix", "why"), skipped, folded=len(skipped) > OPEN_ROWS))
    else:
        blocks.append(Text(("No matrix that writes to the residual stream is left out.",)))
    return Section("coverage", title, blocks)
