# SPDX-License-Identifier: Apache-2.0
"""What was done and what came of it, for somebody who was not there; the figures before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from heretic.apps.report_page.blocks import Block, Facts, Section, Table, Text
from heretic.apps.report_page.reading import (
    count,
    divergence,
    figure,
    interval,
    mapping,
    measured,
    number,
    pair,
    public,
    rate,
    rate_interval,
    sequence,
    share,
    text,
)
from heretic.apps.report_page.record import PageRecord

WHERE: Final = {"search": "search", "held_out": "held-out", "saved": "held-out"}
WORDS: Final = (
    (
        "behaviour rate",
        "How many of the replies show the behaviour. The interval holds the true rate of such prompts in 95 "
        "of 100 cases.",
    ),
    (
        "KL",
        "How far the probabilities of the next token have moved from those of the unedited model, on prompts "
        "that have nothing to do with the behaviour; 0 is no change. In nats per token.",
    ),
    ("held-out prompts", "Prompts that nothing was chosen by; only their figures are free of selection."),
    (
        "noise floor",
        "The KL of the unedited model with itself, computed in two ways; less than that is nothing.",
    ),
    (
        "guard",
        "A check that the replies are still replies: not empty, not in a loop, no behaviour elsewhere.",
    ),
    (
        "direction",
        "The line in the model's activations that separates prompts with the behaviour from the others.",
    ),
    ("over-rate", "The behaviour rate on prompts that look like it and should not show it."),
)
STATUS: Final = {
    "nothing_qualified": "No trial met the limits; what is shown as chosen is the best of those that did not.",
    "interrupted": "The run was interrupted before its end.",
    "not_saved": "Nothing was chosen or saved.",
    "failed": "The run failed.",
}
FLAGS: Final = {
    "over_behaviour": "the behaviour on prompts that should not show it rose",
    "finite": "the KL is not finite",
    "empty": "more replies are empty",
    "loop": "more replies run in a loop",
    "degenerate": "more replies are degenerate",
    "thinking_loop": "more thoughts run in a loop",
    "thinking_exhausted": "more thoughts do not end",
    "reversed": "the edit turns the behaviour around instead of removing it",
    "kl": "the KL is over the cap of a trial",
    "effect": "the behaviour rate hardly changed",
}


def flags_of(trial: Mapping[str, object]) -> str:
    """The flags of a trial in words."""
    names = [text(name, 60) for name in sequence(trial.get("flags"))]
    return "; ".join(f"{name}: {FLAGS[name]}" if name in FLAGS else name for name in names)


def in_short(record: PageRecord) -> Section:
    """What this was about and how it ended."""
    blocks: list[Block] = [Text((_task(record), *_result(record)))]
    status = text(record.document.get("status"))
    if status in STATUS:
        blocks.append(Text((STATUS[status],), tone="warning"))
    if record.chosen and flags_of(record.chosen):
        blocks.append(Text((f"Broken guards of the chosen trial: {flags_of(record.chosen)}.",), tone="bad"))
    if record.missing:
        blocks.append(Text(record.missing, tone="warning"))
    blocks.append(Facts(tuple(_facts(record))))
    blocks.append(
        Table("Words used on this page", ("word", "what it means"), WORDS, folded=True),
    )
    return Section("summary", "In short", blocks)


def _task(record: PageRecord) -> str:
    done = record.summary.finished
    aim = "show up more often" if record.induces else "disappear"
    return (
        f"{done} edits of the weights of {_model(record)} were tried that should make the behaviour "
        f"'{record.fact('behaviour') or 'unknown'}' {aim} while everything else stays as it is."
    )


def _model(record: PageRecord) -> str:
    return public(record.fact("model")).rstrip("/").rsplit("/", 1)[-1] or "an unknown model"


def _result(record: PageRecord) -> Iterator[str]:
    chosen, base = record.chosen, mapping(record.document.get("baseline"))
    if not chosen:
        return
    if measured(chosen) and measured(base):
        where = "held-out prompts" if mapping(chosen.get("held_out")) else "prompts of the search"
        yield (
            f"Trial {text(chosen.get('trial'))} was chosen. On {where} the behaviour shows in {rate(base)} of "
            f"the replies before the edit and in {rate(chosen)} after it (95 % interval "
            f"{interval(rate_interval(chosen))})."
        )
    kl, floor = number(chosen.get("kl_mean")), number(record.document.get("noise_floor"))
    if kl is not None:
        ground = "" if floor is None else f"; the noise floor is {figure(floor, 2)}"
        yield f"On prompts that should not change, the KL is {divergence(chosen)} nats per token{ground}."
    if record.document.get("separable"):
        yield f"The closest rival: {text(record.document.get('separable'))}."


def _facts(record: PageRecord) -> Iterator[tuple[str, str]]:
    document = record.document
    yield "study", text(record.name)
    yield "model", public(record.fact("model"))
    yield "behaviour", f"{record.fact('behaviour')} ({record.fact('goal') or 'goal unknown'})"
    yield "strategy", record.fact("strategy")
    failed = f", {record.summary.failed} failed" if record.summary.failed else ""
    running = f", {record.summary.running} unfinished" if record.summary.running else ""
    yield "trials", f"{record.summary.finished} finished{failed}{running}"
    if document:
        yield "status", text(document.get("status")).replace("_", " ")
    if text(document.get("reason")):
        yield "why this trial", text(document.get("reason"), 1_000)
    if text(document.get("output")):
        yield "saved as", public(document.get("output"))
    if text(document.get("uploaded")):
        yield "uploaded to", public(document.get("uploaded"))


def before_and_after(record: PageRecord) -> Section:
    """One row a measurement: base, chosen trial, saved files, controls."""
    rows = list(_rows(record))
    if not rows:
        return Section(
            "before-after", "Before and after", missing="Nothing was chosen, so there is no after."
        )
    columns = (
        "model",
        "prompts",
        "behaviour rate",
        "95 % interval",
        "KL, nats/token",
        "KL, first token",
        "over-rate",
    )
    floor = number(record.document.get("noise_floor"))
    note = (
        "The interval is Wilson's, of graded replies that of the mean. +- is one standard error. The noise "
        f"floor of the KL is {figure(floor, 2)}; KL, first token: the same at the first token of the reply "
        "alone, for comparison with other tools. * one prompt supplies over half of the mean."
    )
    table = Table(
        "The behaviour and the damage, before and after", columns, [row for _, row in rows],
        figures=(2, 3, 4, 5, 6), strong=[place for place, (strong, _) in enumerate(rows) if strong], note=note,
    )  # fmt: skip
    return Section("before-after", "Before and after", [table, *_controls(record), *_categories(record)])


def _rows(record: PageRecord) -> Iterator[tuple[bool, tuple[str, ...]]]:
    document, chosen = record.document, record.chosen
    base = mapping(document.get("baseline"))
    trial = f"trial {text(chosen.get('trial'))}"
    entries = [
        (False, "unedited model", mapping(base.get("search"))),
        (
            False,
            "unedited model",
            base if text(base.get("where")) != "search" or not base.get("search") else {},
        ),
        (False, trial, mapping(chosen.get("search"))),
        (True, trial, mapping(chosen.get("held_out"))),
        (True, "saved files, loaded again", mapping(document.get("verified"))),
    ]
    controls = mapping(document.get("controls"))
    entries += [(False, f"control: {text(name)}", mapping(found)) for name, found in controls.items()]
    for strong, name, entry in entries:
        if entry:
            yield strong, _row(name, entry)
        thinking = mapping(entry.get("thinking"))
        if thinking:
            yield strong, _row(f"{name}, thinking", thinking)


def _row(name: str, entry: Mapping[str, object]) -> tuple[str, ...]:
    where = text(entry.get("where"))
    over = mapping(entry.get("over_rate"))
    hits, total = count(over.get("hits")), count(over.get("n"))
    value = number(over.get("mean"))
    if value is None and hits is not None and total:
        value = hits / total
    kl = "0, by definition" if name.startswith("unedited") else divergence(entry)
    first = number(entry.get("kl_first_token"))
    return (
        name,
        WHERE.get(where.removesuffix("_thinking"), where),
        rate(entry),
        interval(rate_interval(entry)),
        kl,
        "" if first is None else f"{first:.4f}",
        "" if not total or value is None else f"{share(value)} ({hits}/{total})",
    )


def _controls(record: PageRecord) -> list[Block]:
    if not mapping(record.document.get("controls")):
        return []
    return [
        Text(
            (
                "Controls: what an edit of the same strength along random directions does, and what the "
                "unedited model does when it is told in words. The chosen trial is only worth something as "
                "far as it beats them.",
            ),
            tone="quiet",
        )
    ]


def _categories(record: PageRecord) -> list[Block]:
    rows = []
    for found in sequence(record.document.get("categories")):
        entry = mapping(found)
        sides = [_category_rate(mapping(entry.get(name))) for name in ("before", "after")]
        rows.append((text(entry.get("name")), *sides[0], *sides[1]))
    if not rows:
        return []
    columns = ("category", "before", "95 % interval", "after", "95 % interval")
    return [
        Table(
            "The behaviour rate by category of prompt",
            columns,
            rows,
            figures=(1, 2, 3, 4),
            folded=len(rows) > 12,
        )
    ]


def _category_rate(found: Mapping[str, object]) -> tuple[str, str]:
    hits, total = count(found.get("hits")), count(found.get("n"))
    if hits is None or not total:
        return "not measured", ""
    value = number(found.get("mean"))
    value = hits / total if value is None else value
    return f"{share(value)} ({hits}/{total})", interval(pair([found.get("low"), found.get("high")]))
