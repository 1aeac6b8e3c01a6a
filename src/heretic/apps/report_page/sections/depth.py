# SPDX-License-Identifier: Apache-2.0
"""What happens at which depth: where the trial edits, where the two classes of prompts separate, what they "
"look like."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from heretic.apps.report_page.auroc import auroc_interval
from heretic.apps.report_page.blocks import Block, Figure, Section, Table, Text
from heretic.apps.report_page.reading import figure, fixed, mapping, share, text
from heretic.apps.report_page.record import LayerRow, PageRecord
from heretic.apps.report_page.strengths import Applied, applied, depth, reversed_writers, shown_trial
from heretic.apps.report_page.strengths import kernels as kernels_of
from heretic.phases.report_store import POINTS

GEOMETRY: Final = (
    "layer", "AUROC", "95 % interval", "d'", "accuracy", "mean with", "mean without", "difference", "cosine of means",
    "cosine to layer before", "silhouette",
)  # fmt: skip
LEGEND: Final = (
    "AUROC and d': how well the direction separates prompts it was not made from; 0.5 and 0 are chance. "
    "Accuracy: estimated cosine with the direction of infinitely many prompts. Mean with, without, "
    "difference: lengths of the mean activations of prompts with and without the behaviour and of their "
    "difference, in activation units. Silhouette: 1 for two tight clouds, 0 for one."
)
OPEN_ROWS: Final = 16
REVERSED: Final = (
    "Reversed: at {} matrices the strength is over 1, which turns the direction round instead of removing it."
)


def kernels(record: PageRecord, drawn: Collection[str]) -> Section:
    """Strength over depth of the chosen trial."""
    trial = shown_trial(record)
    title = "Where it edits: strength over depth"
    written = applied(record, trial)
    searched = kernels_of(trial)
    if not written and not searched:
        return Section("kernels", title, missing="No trial with strengths is known.")
    blocks: list[Block] = []
    name = f"trial {text(trial.get('trial'))}"
    if not record.chosen:
        blocks.append(
            Text((f"No trial was chosen; {name}, the first of the front, is shown.",), tone="warning")
        )
    if reversed_writers(record, trial):
        blocks.append(Text((REVERSED.format(reversed_writers(record, trial)),), tone="warning"))
    if "kernels" in drawn:
        blocks.append(_kernel_figure(record, name, written, depth(record, trial)))
    rows = []
    for component in sorted({*written, *searched}):
        found, strengths = searched.get(component), written.get(component, [])
        layers = sorted({row.layer for row in strengths if row.high > 0})
        peak = max(strengths, key=lambda row: row.high, default=None)
        rows.append(
            (
                component,
                "off" if found is None else figure(found.peak, 3),
                "" if found is None else f"{found.position:.2f}",
                "" if found is None else f"{found.half_width:.2f}",
                "" if found is None else figure(found.floor, 3),
                f"{layers[0]} to {layers[-1]} ({len(layers)})" if layers else "none",
                "" if peak is None else f"{peak.high:.3f} at layer {peak.layer}",
            )
        )
    columns = (
        "component",
        "peak",
        "at layer",
        "half-width",
        "share at the edge",
        "layers edited",
        "strongest applied",
    )
    blocks.append(Table(f"Kernels of {name}", columns, rows, figures=(1, 2, 3, 4)))
    blocks.append(_strength_table(name, written))
    parameters = [(text(key), text(value)) for key, value in mapping(trial.get("parameters")).items()]
    blocks.append(
        Table(f"All parameters of {name}", ("parameter", "value"), parameters, figures=(1,), folded=True)
    )
    return Section("kernels", title, blocks)


def _kernel_figure(record: PageRecord, name: str, written: dict[str, list[Applied]], layers: int) -> Figure:
    edited = sorted({row.layer for rows in written.values() for row in rows if row.high > 0})
    span = f"{len(edited)} of {layers} layers" if edited else "no layer"
    best = record.best_layer
    near = "" if best is None else f" The two classes of prompts separate best at layer {best}."
    meaning = (
        "The larger the strength, the more of the direction is added."
        if record.induces
        else "A strength of 1 takes the whole direction out of what a matrix writes, 0 leaves it alone."
    )
    reading = [f"{name.capitalize()} changes {span}. {meaning}{near}"]
    return Figure(
        "kernels", f"Strength over depth of {name}",
        f"Markers for each matrix over {layers} layers: "
        + "; ".join(f"{component} at layers {_numbers(rows)}" for component, rows in written.items())
        + ".",
        reading,
        "Markers: the strengths that were applied, after kernel, range multipliers, calibration and cap; bars "
        "span experts and components. Broken lines: the kernel as the search drew it, before multipliers and "
        "cap, so markers may lie below it. Not estimates: they have no interval.",
    )  # fmt: skip


def _numbers(rows: list[Applied]) -> str:
    return ", ".join(str(row.layer) for row in rows)


def _strength_table(name: str, written: dict[str, list[Applied]]) -> Table:
    layers = sorted({row.layer for rows in written.values() for row in rows})
    by_place = {(component, row.layer): row for component, rows in written.items() for row in rows}
    rows = [
        (str(layer), *(_cell(by_place.get((component, layer))) for component in written)) for layer in layers
    ]
    columns = ("layer", *written)
    figures = range(1, len(columns))
    return Table(f"Strengths applied by {name}", columns, rows, figures=tuple(figures), folded=True)


def _cell(row: Applied | None) -> str:
    if row is None:
        return "0"
    return f"{row.mean:.3f}" if row.low == row.high else f"{row.mean:.3f} ({row.low:.3f} to {row.high:.3f})"


def separability(record: PageRecord, drawn: Collection[str]) -> Section:
    """How well the two classes separate at each layer, and the geometry table."""
    title = "Where the behaviour is seen: separability per layer"
    if not record.layers:
        return Section("separability", title, missing="The study holds no directions.")
    blocks: list[Block] = []
    if "separability" in drawn:
        blocks.append(_separability_figure(record))
    if record.notes:
        blocks.append(Text(record.notes, tone="warning"))
    rows = [_geometry_row(row, record) for row in record.layers]
    strong = [place for place, row in enumerate(record.layers) if row.layer == record.best_layer]
    blocks.append(
        Table(
            "Geometry of the two classes by layer",
            GEOMETRY,
            rows,
            figures=tuple(range(1, len(GEOMETRY))),
            strong=strong,
            note=LEGEND,
            folded=len(rows) > OPEN_ROWS,
        )  # fmt: skip
    )
    return Section("separability", title, blocks)


def _sizes(record: PageRecord) -> str:
    if record.view is None:
        return "an unknown number of prompts"
    return f"{record.view.target_count} prompts with and {record.view.control_count} without the behaviour"


def _separability_figure(record: PageRecord) -> Figure:
    best = max(record.layers, key=lambda row: row.effect_size)
    verdict = "clearly" if best.auroc >= 0.95 else "partly" if best.auroc >= 0.65 else "hardly"
    reading = [
        f"At layer {best.layer} the activations tell {verdict} whether a prompt draws the behaviour: of a pair "
        f"of prompts, one of each class, the direction orders {share(best.auroc)} rightly, and the classes lie "
        f"{best.effect_size:.1f} standard deviations apart.",
        "Separability says where the behaviour can be read, not where an edit works best; the search decides that.",
    ]
    interval = (
        "Newcombe's 95 % interval, which counts prompts as independent"
        if record.view
        else "no interval is known"
    )
    return Figure(
        "separability", "Separability and geometry over depth",
        f"Curves over {len(record.layers)} layers. AUROC runs from "
        f"{fixed(min(r.auroc for r in record.layers))} to {fixed(max(r.auroc for r in record.layers))}; d' is "
        f"largest, {best.effect_size:.1f}, at layer {best.layer}.",
        reading,
        f"From {_sizes(record)}. AUROC and d' are cross-fitted in five folds ({interval}; d' and the others "
        f"are shown without one). Silhouette of at most {POINTS} prompts a class. The broken line marks the "
        "layer with the largest d'.",
    )  # fmt: skip


def _geometry_row(row: LayerRow, record: PageRecord) -> tuple[str, ...]:
    bounds = ""
    if record.view is not None:
        low, high = auroc_interval(row.auroc, record.view.target_count, record.view.control_count)
        bounds = f"{low:.3f} to {high:.3f}"
    return (
        str(row.layer), fixed(row.auroc), bounds, fixed(row.effect_size, 2), fixed(row.stability),
        *("" if value is None else figure(value) for value in (row.target_norm, row.control_norm, row.difference_norm)),
        fixed(row.mean_cosine), fixed(row.previous_cosine), fixed(row.silhouette),
    )  # fmt: skip


def projections(record: PageRecord, drawn: Collection[str]) -> Section:
    """Both classes as points."""
    title = "What it looks like: prompts as points"
    view = record.view
    if view is None or not view.projections or "projections" not in drawn:
        return Section(
            "projections", title, missing="The residuals of the prompts were not kept with the study."
        )
    columns = ("layer", "points with", "points without", "gap of the means", "share of the rest that y holds")
    rows = []
    for picture in view.projections:
        sides = [
            sum(x for x, _ in points) / len(points) if points else 0.0
            for points in (picture.target, picture.control)
        ]
        rows.append(
            (
                str(picture.layer),
                str(len(picture.target)),
                str(len(picture.control)),
                figure(sides[0] - sides[1]),
                share(picture.share),
            )  # fmt: skip
        )
    clouds = Figure(
        "projections", "Prompts of both classes, a few layers",
        f"Clouds of points of the two classes in {len(view.projections)} layers; their distance along the "
        "direction is in the table.",
        [
            "Each point is one prompt, by what the model holds in mind at its end. To the right: more of the "
            "direction. Two separate clouds mean that the model tells the two classes apart there; an edit along "
            "the direction acts on left and right."
        ],
        f"At most {POINTS} prompts of each class, drawn by the seed of the run. Left to right: projection on "
        "the direction, 0 half-way between the means; up and down: first principal component of what is left. "
        "The direction was made from these prompts, so the gap looks a little larger than it is on new ones; "
        "the AUROC above is free of that.",
    )  # fmt: skip
    return Section(
        "projections", title, [clouds, Table("Numbers of the clouds", columns, rows, figures=(1, 2, 3, 4))]
    )
