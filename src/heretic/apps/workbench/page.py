# SPDX-License-Identifier: Apache-2.0
"""The page as a whole: a title, the line of model and memory, the tabs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from heretic.apps.workbench.chat_tab import build_chat
from heretic.apps.workbench.compare_tab import build_compare
from heretic.apps.workbench.desk import Desk, Visitor
from heretic.apps.workbench.directions_tab import build_directions
from heretic.apps.workbench.markup import notice
from heretic.apps.workbench.study_tab import build_study
from heretic.apps.workbench.wiring import QUIET, status_line

if TYPE_CHECKING:
    from pathlib import Path

    from gradio import Blocks

TITLE: Final = "Heretic workbench"
STATUS_EVERY_S: Final = 3.0
VISITOR_LIFE_S: Final = 3600 * 12


def build_page(desk: Desk, storage: str | None, files: Path) -> Blocks:
    """The page. storage: of the studies; files: the folder whose direction files are listed."""
    import gradio as gr

    page: Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        visitor = gr.State(None, time_to_live=VISITOR_LIFE_S, delete_callback=_leave)
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Talk to a model, compare it with its base, watch a search. Everything stays on "
            "this machine.</p>",
            elem_id="title",
        )
        status = gr.HTML(notice("Connecting ..."), elem_id="status")
        with gr.Tabs() as tabs:
            with gr.Tab("Chat", id="chat") as chat_tab:
                lists = [build_chat(desk, visitor, status)]
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare, of_compare = build_compare(desk, visitor, status, storage)
            with gr.Tab("Study", id="study") as study_tab:
                timer, of_study = build_study(storage, compare, tabs)
            with gr.Tab("Directions", id="directions") as directions_tab:
                lists += [of_compare, of_study, build_directions(storage, files)]
        # Reading a large study takes time, so it is followed only where it is looked at.
        for tab in (chat_tab, compare_tab, study_tab, directions_tab):
            follows = tab is study_tab
            tab.select(
                lambda follows=follows: gr.Timer(active=follows), None, timer, **QUIET(concurrency_limit=None)
            )
        page.load(
            lambda: (Visitor(), status_line(desk)), None, [visitor, status], **QUIET(concurrency_limit=None)
        )
        for one in lists:
            page.load(one.look, one.inputs, one.outputs, **QUIET(concurrency_limit=4))
        gr.Timer(STATUS_EVERY_S).tick(
            lambda: status_line(desk), None, status, **QUIET(concurrency_limit=None)
        )
    return page


def _leave(visitor: Visitor | None) -> None:
    """A closed page needs no reply."""
    if isinstance(visitor, Visitor):
        visitor.stop()
