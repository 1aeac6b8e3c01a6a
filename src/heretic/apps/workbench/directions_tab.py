# SPDX-License-Identifier: Apache-2.0
"""The tab Directions: what was extracted, how well it separates, what overlaps (requirements of issue 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from heretic.apps import charts
from heretic.apps.study_reading import read_directions, study_names
from heretic.apps.workbench.markup import escape, facts, notice, table
from heretic.apps.workbench.wiring import QUIET, Lists, chosen_of, told
from heretic.directions.bank import DirectionBank
from heretic.directions.file import load_directions
from heretic.exceptions import HereticError, StudyNotFoundError

ENDING: Final = ".direction.safetensors"
NOTHING: Final = (
    "No directions are stored here yet. A search stores them with its study; "
    "'heretic extract MODEL' writes a file."
)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Directions from anywhere. auroc, effect_size, accuracy: one value a block, where they are known."""

    name: str
    bank: DirectionBank
    auroc: tuple[float | None, ...] = ()
    effect_size: tuple[float | None, ...] = ()
    accuracy: tuple[float | None, ...] = ()
    told: tuple[tuple[str, object], ...] = ()


def listed(storage: str | None, files: Path) -> list[tuple[str, str]]:
    """(label, word) of the studies and of the direction files of a folder."""
    try:
        studies = study_names(storage)
    except HereticError:
        studies = ()
    found = [(f"study {name}", f"study:{name}") for name in studies]
    paths = sorted(path for path in files.glob(f"*{ENDING}") if path.is_file() and not path.is_symlink())
    return [*found, *((f"file {path.name}", f"file:{path.name}") for path in paths)]


def read(storage: str | None, files: Path, word: object) -> Shown:
    """The directions of a listed word; raises `StudyNotFoundError`, `DirectionFileError` and those of a storage."""
    if not isinstance(word, str) or word not in [known for _, known in listed(storage, files)]:
        raise StudyNotFoundError("these directions are not listed", hint="Refresh the list and choose again.")
    kind, _, name = word.partition(":")
    if kind == "file":
        file = load_directions(files / name)
        made = (("behaviour", file.behaviour), ("model", file.model))
        return Shown(file.name, file.bank, tuple(file.auroc), tuple(file.effect_size), (), made)
    found = read_directions(storage, name)
    if found is None:
        raise StudyNotFoundError(
            f"the study {name!r} has no stored directions yet", hint="Wait until its search begins."
        )
    return Shown(
        name, found.bank, tuple(found.auroc), tuple(found.effect_size), tuple(found.stability),
        (("sources", ", ".join(found.findings.sources)),),
    )  # fmt: skip


def build_directions(storage: str | None, files: Path) -> Lists:
    """Lay out the tab and connect it."""
    import gradio as gr

    choices = listed(storage, files)
    with gr.Row():
        word = gr.Dropdown(
            choices,
            value=chosen_of(choices, None),
            label="Directions",
            elem_id="directions-name",
            allow_custom_value=True,
            scale=3,
        )
        against = gr.Dropdown(
            [("nothing else", ""), *choices],
            value="",
            label="Overlap with",
            allow_custom_value=True,
            elem_id="directions-other",
            scale=3,
        )
        refresh = gr.Button("Refresh", elem_id="directions-refresh", min_width=120, scale=0)
    words = gr.HTML(notice("" if choices else NOTHING), elem_id="directions-words")
    with gr.Row():
        with gr.Column(min_width=320):
            bank = gr.HTML("", elem_id="directions-bank")
        with gr.Column(min_width=320):
            overlap = gr.HTML("", elem_id="directions-overlap")
    outputs = [words, bank, overlap]

    def show(name: object, other: object) -> tuple[str, str, str]:
        if not name:
            return notice(NOTHING), "", ""
        first = read(storage, files, name)
        second = read(storage, files, other) if other else None
        return "", bank_view(first), overlap_view(first, second)

    def look_again(name: object, other: object) -> tuple[Any, ...]:
        found = listed(storage, files)
        known = [value for _, value in found]
        kept, kept_other = chosen_of(found, name), other if other in known else ""
        return (
            gr.update(choices=found, value=kept),
            gr.update(choices=[("nothing else", ""), *found], value=kept_other),
            *show(kept, kept_other),
        )

    def otherwise(text: str) -> tuple[Any, ...]:
        return text, gr.update(), gr.update()

    quiet = QUIET(concurrency_limit=4, concurrency_id="study")
    for trigger in (word.change, against.change):
        trigger(told(show, otherwise), [word, against], outputs, **quiet)
    look = told(look_again, lambda text: (gr.update(), gr.update(), *otherwise(text)))
    refresh.click(look, [word, against], [word, against, *outputs], **quiet)
    return Lists(look, [word, against], [word, against, *outputs])


def bank_view(shown: Shown) -> str:
    """What there is and how well it separates at each block."""
    series: dict[str, tuple[float | None, ...]] = {
        name: values
        for name, values in (("AUROC", shown.auroc), ("accuracy", shown.accuracy))
        if any(value is not None for value in values)
    }
    separation = charts.lines(
        series, title="Separation of the classes over the blocks", x_label="block", y_label="share"
    )
    effect = charts.lines(
        {"d'": shown.effect_size} if shown.effect_size else {},
        title="Effect size over the blocks",
        x_label="block",
        y_label="d', standard deviations",
    )
    said = facts(
        {
            "blocks": shown.bank.layers,
            "directions a block": shown.bank.components,
            "width": shown.bank.width,
            "read by vectors of their own": "yes" if shown.bank.covectors is not None else "no",
            **dict(shown.told),
        }
    )
    return f"<h3>{escape(shown.name)}</h3>{said}<h3>Separation</h3>{separation}<h3>Effect size</h3>{effect}"


def overlap_view(first: Shown, second: Shown | None) -> str:
    """Cosines between the directions of all blocks; with a second bank, block by block."""
    if second is None:
        matrix = cosines(first.bank, first.bank)
        chart = charts.heat(matrix, title="Cosine between the directions of the blocks", label="block")
        return f"<h3>Overlap between blocks</h3>{chart}" + notice(
            "A strong colour far from the diagonal: the direction stays the same over depth."
        )
    if first.bank.width != second.bank.width or first.bank.layers != second.bank.layers:
        return notice(
            "These directions belong to models of different size, so they have no overlap to speak of."
        )
    matrix = cosines(first.bank, second.bank)
    same = [matrix[block][block] for block in range(len(matrix))]
    chart = charts.lines(
        {"cosine": same}, title="Cosine of the two directions", x_label="block", y_label="cosine"
    )
    rows = [(block, f"{value:.3f}") for block, value in enumerate(same)]
    return f"<h3>Overlap of the two</h3>{chart}{table(('block', 'cosine'), rows, caption='Cosine by block')}"


def cosines(first: DirectionBank, second: DirectionBank) -> list[list[float]]:
    """[L][L] cosine of the first direction of each block of one bank with that of each block of the other."""
    ours = torch.nn.functional.normalize(first.directions[:, 0].double(), dim=-1)
    theirs = torch.nn.functional.normalize(second.directions[:, 0].double(), dim=-1)
    found: list[list[float]] = (ours @ theirs.T).tolist()
    return found
