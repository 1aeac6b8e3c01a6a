# SPDX-License-Identifier: Apache-2.0
"""The tab Compare: one message, two answers (requirements R-UI-08, R-UI-23)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from heretic.apps import charts
from heretic.apps.study_reading import read_study, study_names, texts
from heretic.apps.workbench.desk import Desk, View, Visitor, Wishes
from heretic.apps.workbench.markup import notice, read_tokens
from heretic.apps.workbench.wiring import (
    QUIET,
    REPLIES_AT_ONCE,
    Lists,
    chosen_of,
    connect_stop,
    present,
    status_line,
    told,
    told_stream,
)
from heretic.exceptions import HereticError

SAME: Final = ("The same model, at two strengths", "")
SIDES: Final = ("Left", "Right")
NO_TRIALS: Final = (
    "No stored trial was found. Search with 'heretic MODEL' first, or choose a second model to compare with."
)
PLACEHOLDER: Final = "Both sides get the same message."


def trial_choices(storage: str | None) -> list[tuple[str, str]]:
    """(label, STUDY:N) of the trials that no other trial of their study beats."""
    found: list[tuple[str, str]] = []
    try:
        for name in study_names(storage):
            reading = read_study(storage, name)
            for trial in reading.best_first():
                rate, divergence = texts(trial)
                label = f"{name}, trial {trial.index}: rate {rate}, KL {divergence}"
                found.append((label, f"{name}:{trial.index}"))
    except HereticError:
        return found  # the tab Study says why
    return found


@dataclass(slots=True, eq=False)
class CompareParts:
    """The components that handlers and other tabs read and write."""

    model: Any
    other: Any
    words: Any
    logs: list[Any]
    strengths: list[Any]
    readings: list[Any]
    text: Any
    send: Any
    stop: Any
    system: Any
    temperature: Any
    tokens: Any
    status: Any

    def written(self) -> list[Any]:
        """The outputs of a step of a reply."""
        return [*self.logs, *self.readings, self.words, self.text, self.send, self.stop, self.status]


def build_compare(desk: Desk, visitor: Any, status: Any, storage: str | None) -> tuple[CompareParts, Lists]:
    """Lay out the tab and connect it."""
    import gradio as gr

    trials = trial_choices(storage)
    models = [*trials, *desk.choices()]
    # What a list may hold is checked by the desk, and not by the list.
    shared: dict[str, Any] = {"allow_custom_value": True, "min_width": 280}
    with gr.Row():
        model = gr.Dropdown(
            models,
            value=chosen_of(models, None),
            label="Trial or model",
            info="A trial answers as base and edited model from one batch",
            elem_id="compare-model",
            **shared,
        )
        other = gr.Dropdown(
            [SAME, *models],
            value="",
            label="Against",
            info="Two different models answer one after the other",
            elem_id="compare-other",
            **shared,
        )
        refresh = gr.Button("Refresh", elem_id="compare-refresh", min_width=120, scale=0)
    words = gr.HTML(notice("" if trials else NO_TRIALS), elem_id="compare-words")
    logs, strengths = _build_sides(gr)
    text, (send, stop, clear) = _build_message(gr)
    readings = _build_readings(gr)
    with gr.Accordion("Parameters", open=False):
        system = gr.Textbox(label="System prompt", lines=2)
        temperature = gr.Slider(
            0, 2, 0, step=0.05, label="Temperature", info="At 0 both sides differ by the edit alone"
        )
        tokens = gr.Slider(64, 2048, 256, step=64, label="Longest reply, tokens")
    parts = CompareParts(
        model, other, words, logs, strengths, readings, text, send, stop, system, temperature, tokens, status
    )
    _connect(desk, visitor, parts, clear)
    return parts, _connect_lists(desk, parts, refresh, storage)


def _build_sides(gr: Any) -> tuple[list[Any], list[Any]]:
    """The two conversations, each under its strength."""
    logs, strengths = [], []
    with gr.Row(equal_height=False):
        for number, side in enumerate(SIDES):
            with gr.Column(min_width=300):
                strengths.append(
                    gr.Slider(
                        0,
                        2,
                        float(number),
                        step=0.05,
                        label=f"{side}: strength of the edit",
                        info="0 is the base model, 1 the trial as it was",
                        elem_id=f"compare-strength-{side.lower()}",
                    )
                )
                logs.append(_log(gr, side))
    return logs, strengths


def _build_message(gr: Any) -> tuple[Any, list[Any]]:
    """The message and the buttons send, stop, clear."""
    text = gr.Textbox(
        label="Message to both",
        placeholder="Enter sends, Shift+Enter makes a new line",
        lines=1,
        max_lines=8,
        elem_id="compare-text",
    )
    with gr.Row():
        buttons = [
            gr.Button("Send to both", variant="primary", elem_id="compare-send", min_width=120),
            gr.Button("Stop", interactive=False, elem_id="compare-stop", min_width=120),
            gr.Button("Clear", elem_id="compare-clear", min_width=120),
        ]
    return text, buttons


def _build_readings(gr: Any) -> list[Any]:
    """Shaded text under each side, and one chart of both."""
    with gr.Row():
        shaded = []
        for side in SIDES:
            with gr.Column(min_width=300):
                shaded.append(gr.HTML("", elem_id=f"compare-reading-{side.lower()}"))
    return [*shaded, gr.HTML("", elem_id="compare-reading-chart")]


def _log(gr: Any, side: str) -> Any:
    return gr.Chatbot(
        label=f"{side} answers",
        height=340,
        placeholder=PLACEHOLDER,
        sanitize_html=True,
        latex_delimiters=[],
        buttons=["copy"],
        feedback_options=None,
        allow_file_downloads=False,
        elem_id=f"compare-log-{side.lower()}",
    )


def updates(view: View, desk: Desk, text: object) -> tuple[Any, ...]:
    """A view as the values of `CompareParts.written`."""
    import gradio as gr

    return (
        *view.turns,
        *_readings(view.pieces),
        view.words,
        text if view.failed else "",
        gr.update(interactive=not view.busy),
        gr.update(interactive=view.busy),
        status_line(desk),
    )


def _readings(pieces: Sequence[Sequence[tuple[str, float | None]]]) -> list[Any]:
    """Both texts shaded by the reading of the direction, on one scale, with a line over the tokens."""
    import gradio as gr

    values = [reading for side in pieces for _, reading in side if reading is not None]
    if not values:
        return [gr.update(value="")] * 3
    low, high = min(values), max(values)
    shaded = [gr.update(value=read_tokens(side, low, high)) for side in pieces]
    chart = charts.lines(
        {
            name: [reading for _, reading in side if reading is not None]
            for name, side in zip(SIDES, pieces, strict=True)
        },
        title="Reading of the direction in both answers, token by token",
        x_label="token",
        y_label="reading, activation units",
    )
    words = notice("Shading and lines: how far each token stood along the direction when it was chosen.")
    return [*shaded, gr.update(value=f"{words}{chart}")]


def _connect(desk: Desk, visitor: Any, parts: CompareParts, clear: Any) -> None:
    import gradio as gr

    def unexpected(words: str) -> tuple[Any, ...]:
        kept = [gr.update()] * 5
        return (
            *kept,
            words,
            gr.update(),
            gr.update(interactive=True),
            gr.update(interactive=False),
            status_line(desk),
        )

    def send(
        who: Visitor | None,
        text: object,
        word: object,
        other: object,
        left: float,
        right: float,
        system: str,
        temperature: float,
        tokens: int,
    ) -> Iterator[tuple[Any, ...]]:
        wishes = Wishes(word, system, temperature, tokens)
        for view in desk.compare(present(who), text, wishes, (left, right), other):
            yield updates(view, desk, text)

    def forget(who: Visitor | None) -> tuple[Any, ...]:
        return updates(desk.clear_sides(present(who)), desk, "")

    inputs = [
        visitor,
        parts.text,
        parts.model,
        parts.other,
        *parts.strengths,
        parts.system,
        parts.temperature,
        parts.tokens,
    ]
    options = QUIET(concurrency_limit=REPLIES_AT_ONCE, concurrency_id="replies", trigger_mode="multiple")
    for trigger in (parts.text.submit, parts.send.click):
        trigger(told_stream(send, unexpected), inputs, parts.written(), **options)
    quiet = QUIET(concurrency_limit=None)
    connect_stop(parts.stop, visitor)
    for trigger in (clear.click, *(log.clear for log in parts.logs)):
        trigger(told(forget, unexpected), [visitor], parts.written(), **quiet)


def _connect_lists(desk: Desk, parts: CompareParts, refresh: Any, storage: str | None) -> Lists:
    import gradio as gr

    def look_again(word: object, other: object) -> tuple[Any, ...]:
        trials = trial_choices(storage)
        models = [*trials, *desk.choices()]
        known = [value for _, value in models]
        return (
            gr.update(choices=models, value=word or chosen_of(models, None)),
            gr.update(choices=[SAME, *models], value=other if other in known else ""),
            notice(f"{len(trials)} trials and {len(models) - len(trials)} models are listed."),
        )

    lists = [parts.model, parts.other]
    look = told(look_again, lambda words: (gr.update(), gr.update(), words))
    refresh.click(look, lists, [*lists, parts.words], **QUIET(concurrency_limit=None))

    def quietly(word: object, other: object) -> tuple[Any, ...]:
        return tuple(look(word, other)[:2])

    return Lists(quietly, lists, lists)
