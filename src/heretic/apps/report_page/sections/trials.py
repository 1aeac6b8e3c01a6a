# SPDX-License-Identifier: Apache-2.0
"""The trials: the front between behaviour and damage, and what decided whether a trial was good."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from heretic.apps.report_page.blocks import Block, Figure, Section, Table, Text
from heretic.apps.report_page.importance import GOOD, MINIMUM, RESAMPLES, Importance, ObjectiveImportance
from heretic.apps.report_page.reading import (
    count,
    divergence,
    figure,
    interval,
    mapping,
    number,
    rate,
    rate_interval,
    sequence,
    share,
    text,
)
from heretic.apps.report_page.record import PageRecord

COLUMNS = (
    "trial", "search: rate", "95 % interval", "KL, nats/token", "held-out: rate", "95 % interval", "KL, nats/token",
    "broken guards",
)  # fmt: skip
FAILURES = 5


def front(record: PageRecord, drawn: Collection[str]) -> Section:
    """The trials that no other trial beats in both figures."""
    title = "The front: behaviour against damage"
    if not record.front and not record.points:
        return Section("front", title, missing="No trial has been measured in full yet.")
    blocks: list[Block] = []
    if "front" in drawn:
        blocks.append(_picture(record))
    chosen = record.chosen.get("trial")
    rows = [_row(trial, chosen) for trial in record.front]
    strong = [
        place
        for place, trial in enumerate(record.front)
        if chosen is not None and trial.get("trial") == chosen
    ]
    if rows:
        blocks.append(
            Table(
                "Trials of the front, finalists first",
                COLUMNS,
                rows,
                figures=(1, 2, 3, 4, 5, 6),
                strong=strong,
                note="+- is one standard error. * one prompt supplies over half of the mean.",
                folded=len(rows) > 14,
            )  # fmt: skip
        )
    blocks += _failed(record)
    return Section("front", title, blocks)


def _row(trial: Mapping[str, object], chosen: object) -> tuple[str, ...]:
    search, held = mapping(trial.get("search")), mapping(trial.get("held_out"))
    mark = " (chosen)" if chosen is not None and trial.get("trial") == chosen else ""
    after = (rate(held), interval(rate_interval(held)), divergence(held)) if held else ("-", "", "-")
    flags = ", ".join(text(name, 60) for name in sequence(trial.get("flags")))
    return (
        f"{text(trial.get('trial'))}{mark}",
        rate(search),
        interval(rate_interval(search)),
        divergence(search),
        *after,
        flags or ("none" if held else ""),
    )


def _picture(record: PageRecord) -> Figure:
    search = mapping(record.front[0].get("search")) if record.front else {}
    held = next((mapping(trial.get("held_out")) for trial in record.front if trial.get("held_out")), {})
    sizes = f"Rates are counted over {count(search.get('n')) or 'an unknown number of'} prompts of the search"
    if held:
        sizes += f" and {count(held.get('n')) or 'an unknown number of'} held-out ones"
    kl = mapping(search.get("kl"))
    tokens = (
        f" over {count(kl.get('n'))} prompts and {count(kl.get('tokens'))} tokens"
        if count(kl.get("n"))
        else ""
    )
    floor = number(record.document.get("noise_floor"))
    ground = "" if floor is None else f" Noise floor of the KL: {figure(floor, 2)}."
    short = (
        f" {record.cut_short} trials were ended early or broke off and are not drawn."
        if record.cut_short
        else ""
    )
    direction = "upper" if record.induces else "lower"
    reading = [
        f"Each dot is one edit that was tried. Good ones lie in the {direction} left corner: much of the "
        "wanted change for little damage. The front joins those that no other edit beats in both.",
        "Where bars overlap widely, so few prompts hardly tell two trials apart. Figures of the search are a little "
        "too good, because the best were picked by them; the held-out ones are not.",
    ]
    return Figure(
        "front", "Behaviour rate against KL of all trials", _front_alt(record), reading,
        f"{sizes}, with 95 % Wilson intervals; the KL{tokens}, bars are 1.96 standard errors.{ground}{short}",
    )  # fmt: skip


def _front_alt(record: PageRecord) -> str:
    rates = [point.rate for point in record.points]
    spread = f", rates from {share(min(rates))} to {share(max(rates))}" if rates else ""
    chosen = record.chosen
    mark = (
        f" The chosen one is trial {text(chosen.get('trial'))}: {rate(chosen)}, KL {divergence(chosen)}."
        if chosen
        else ""
    )
    return (
        f"Scatter plot of {len(record.points)} trials{spread}; {len(record.front)} of them form the "
        f"front.{mark} The table below has the numbers."
    )


def _failed(record: PageRecord) -> list[Block]:
    if not record.failures:
        return []
    rows = [(str(index), text(reason)) for index, reason in sorted(record.failures.items())]
    return [Table("Trials that could not be measured", ("trial", "why"), rows, folded=len(rows) > FAILURES)]


def importance(record: PageRecord, drawn: Collection[str]) -> Section:
    """Which parameters decided whether a trial was good."""
    title = "What decided: importance of the parameters"
    blocks: list[Block] = []
    found = [entry for entry in record.importance if entry.rows]
    if found and "importance" in drawn:
        blocks.append(_bars(found))
    for entry in record.importance:
        if entry.rows:
            blocks.append(
                Table(
                    f"Importance for a small {entry.objective}, {entry.trials} trials",
                    ("parameter", "share", "10th to 90th percentile"),
                    [_line(row) for row in entry.rows],
                    figures=(1, 2),
                    folded=True,
                )
            )
        else:
            blocks.append(
                Text((f"Not known for a small {entry.objective}: {entry.missing}.",), tone="warning")
            )
    return Section("importance", title, blocks)


def _line(row: Importance) -> tuple[str, str, str]:
    return text(row.parameter), share(row.share), interval((row.low, row.high))


def _bars(found: Sequence[ObjectiveImportance]) -> Figure:
    first = [
        f"{entry.objective}: {text(entry.rows[0].parameter)} ({share(entry.rows[0].share)})"
        for entry in found
    ]
    wide = any(row.low < 0.1 < 0.3 < row.high for entry in found for row in entry.rows)
    reading = [
        "The larger the share, the more the value of this parameter tells good trials from the others. First "
        f"for a small {'; for a small '.join(first)}."
    ]
    if wide:
        reading.append("Some bars are very long: so few trials do not settle the order of these parameters.")
    return Figure(
        "importance", "Importance of each parameter",
        f"Points with bars, largest share first. {'. '.join(first)}.", reading,
        f"PED-ANOVA in its conditional form: what sets the best {GOOD:.0%} of the trials apart. Trials in "
        f"which the figure was not measured in full are left out; below {MINIMUM} trials nothing is said. "
        f"Bars: 10th to 90th percentile over {RESAMPLES} resamples of the trials, seed 0. The sampler chose "
        "the trials, so they are no random sample of the space.",
    )  # fmt: skip
