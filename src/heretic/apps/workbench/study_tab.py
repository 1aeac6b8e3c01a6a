# SPDX-License-Identifier: Apache-2.0
"""The tab Study: a search as it runs, read from its storage (requirements R-UI-24)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from heretic.apps import charts
from heretic.apps.study_reading import (
    StudyReading,
    figures,
    importances,
    kernels,
    read_study,
    samples,
    study_names,
    texts,
)
from heretic.apps.workbench.compare_tab import CompareParts
from heretic.apps.workbench.markup import escape, facts, notice, table
from heretic.apps.workbench.wiring import QUIET, Lists, chosen_of, told
from heretic.study.types import FinishedTrial
from heretic.trial_display import duration, speed

EVERY_S: Final = 2.0
ROWS: Final = 200
NO_STUDIES: Final = "No study is stored here yet. Start one with 'heretic MODEL' in the same folder."
COLUMNS: Final = ("trial", "rate", "KL, nats/token", "within limits", "state")


@dataclass(slots=True, eq=False)
class StudyParts:
    """The components that handlers read and write. seen: what was drawn last."""

    study: Any
    trial: Any
    follow: Any
    status: Any
    drawn: list[Any]
    seen: Any

    def written(self) -> list[Any]:
        """The outputs of a look at the study."""
        return [self.trial, self.status, *self.drawn, self.seen]


def build_study(storage: str | None, compare: CompareParts, tabs: Any) -> tuple[Any, Lists]:
    """Lay out the tab and connect it; `compare` and `tabs`: where a trial can be taken. Returns the timer that follows
    the search, which is to run while the tab is open, and the lists."""
    import gradio as gr

    names, words = _names(storage)
    # What a list may hold is checked here, against the study as it is, and not by the list.
    shared: dict[str, Any] = {"allow_custom_value": True, "scale": 3, "min_width": 200}
    with gr.Row():
        study = gr.Dropdown(
            names, value=names[0] if names else None, label="Study", elem_id="study-name", **shared
        )
        trial = gr.Dropdown([], label="Trial", info="Front first", elem_id="study-trial", **shared)
        with gr.Column(scale=1, min_width=200):
            follow = gr.Checkbox(True, label="Follow the search", elem_id="study-follow")
            refresh = gr.Button("Refresh", elem_id="study-refresh")
            take = gr.Button("Compare this trial", elem_id="study-take")
    status = gr.HTML(words, elem_id="study-status")
    parts = StudyParts(study, trial, follow, status, _build_drawn(gr), gr.State(None))
    found = _connect(storage, parts, refresh)
    _connect_compare(parts, take, compare, tabs)
    return found


def _build_drawn(gr: Any) -> list[Any]:
    with gr.Row():
        with gr.Column(min_width=320):
            front = gr.HTML("", elem_id="study-front")
        with gr.Column(min_width=320):
            kernel = gr.HTML("", elem_id="study-kernel")
    trials = gr.HTML("", elem_id="study-trials")
    with gr.Accordion("Parameters and replies of the trial", open=True):
        details = gr.HTML("", elem_id="study-details")
    with gr.Accordion(
        "History, importance of parameters, parallel coordinates, timeline, failures", open=False
    ):
        more = gr.HTML("", elem_id="study-more")
    return [front, kernel, trials, details, more]


class Looks:
    """The handlers that read a study."""

    def __init__(self, storage: str | None) -> None:
        self.storage = storage

    def show(self, name: object, number: object, before: object = None) -> tuple[Any, ...]:
        """The study as it is; only its status line where nothing is new since `before`."""
        import gradio as gr

        if not isinstance(name, str) or not name:
            return (gr.update(choices=[], value=None), notice(NO_STUDIES), *[""] * 5, None)
        reading = read_study(self.storage, name)
        stamp = (name, number, len(reading.trials), len(reading.failed))
        if stamp == before:
            return (gr.update(), status_text(reading), *[gr.update()] * 5, stamp)
        return (_trial_update(gr, reading, number), *shown(reading, number), stamp)

    def tick(self, name: object, number: object, before: object, following: bool) -> tuple[Any, ...]:
        """What happened since the last look."""
        import gradio as gr

        return self.show(name, number, before) if following else tuple(gr.update() for _ in range(8))

    def again(self, name: object, number: object) -> tuple[Any, ...]:
        """The list of studies anew, and one of them."""
        import gradio as gr

        found = study_names(self.storage)
        kept = name if name in found else chosen_of([(entry, entry) for entry in found], None)
        return (gr.update(choices=list(found), value=kept), *self.show(kept, number))

    def otherwise(self, words: str) -> tuple[Any, ...]:
        """Words in place of a look."""
        import gradio as gr

        return (gr.update(), words, *[gr.update()] * 6)


def _connect(storage: str | None, parts: StudyParts, refresh: Any) -> tuple[Any, Lists]:
    import gradio as gr

    looks, outputs = Looks(storage), parts.written()
    quiet = QUIET(concurrency_limit=4, concurrency_id="study")
    chosen = [parts.study, parts.trial]
    for trigger in (parts.study.change, parts.trial.input):
        trigger(told(looks.show, looks.otherwise), chosen, outputs, **quiet)
    again = told(looks.again, lambda words: (gr.update(), *looks.otherwise(words)))
    refresh.click(again, chosen, [parts.study, *outputs], **quiet)
    timer = gr.Timer(EVERY_S, active=False)
    timer.tick(told(looks.tick, looks.otherwise), [*chosen, parts.seen, parts.follow], outputs, **quiet)
    return timer, Lists(again, chosen, [parts.study, *outputs])


def _connect_compare(parts: StudyParts, take: Any, compare: CompareParts, tabs: Any) -> None:
    import gradio as gr

    def take_along(name: object, number: object) -> tuple[Any, ...]:
        if not isinstance(name, str) or number is None:
            return gr.update(), gr.update(), gr.update(), notice("Choose a trial first.")
        word = f"{name}:{str(number).partition(' ')[0]}"
        return gr.update(value=word), gr.update(value=""), gr.update(selected="compare"), gr.update()

    take.click(
        told(take_along, lambda words: (gr.update(), gr.update(), gr.update(), words)),
        [parts.study, parts.trial],
        [compare.model, compare.other, tabs, parts.status],
        **QUIET(concurrency_limit=4, concurrency_id="study"),
    )


def _names(storage: str | None) -> tuple[list[str], str]:
    found = told(lambda: (list(study_names(storage)), ""), lambda words: ([], words))()
    names, words = found
    return names, words or notice("" if names else NO_STUDIES)


def _trial_update(gr: Any, reading: StudyReading, number: object) -> Any:
    """The list of trials, the front first; the chosen one is kept, else the best of the front is taken."""
    best = [trial.index for trial in reading.best_first()]
    rest = [trial.index for trial in reading.trials if trial.index not in set(best)]
    choices = [(f"{index} (front)", index) for index in best] + [(str(index), index) for index in rest]
    return gr.update(choices=choices, value=chosen_number(reading, number))


def chosen_number(reading: StudyReading, number: object) -> int | None:
    """The number of the trial that is shown."""
    known = [trial.index for trial in (*reading.best_first(), *reading.trials)]
    if str(number).isdecimal() and int(str(number)) in known:
        return int(str(number))
    return known[0] if known else None


def shown(reading: StudyReading, number: object) -> tuple[str, str, str, str, str, str]:
    """(status, front, kernels, table, details, more) of a study as HTML."""
    index = chosen_number(reading, number)
    trial = reading.trial(index)
    return (
        status_text(reading),
        front_chart(reading, index),
        kernel_chart(trial),
        trial_table(reading, index),
        trial_details(trial),
        more_charts(reading),
    )


def status_text(reading: StudyReading) -> str:
    """How far the search is, in one paragraph."""
    done = len(reading.trials)
    of = "" if reading.wanted is None else f" of {reading.wanted}"
    parts = [f"{done}{of} trials are finished", f"{len(reading.front)} on the front"]
    if reading.running:
        parts.append(f"{reading.running} running")
    if reading.failed:
        parts.append(f"{len(reading.failed)} failed")
    if reading.per_second:
        parts.append(speed(reading.per_second))
    if reading.eta_s is not None:
        parts.append(f"{duration(reading.eta_s)} left")
    if reading.idle_s is not None:
        parts.append(f"last result {duration(reading.idle_s)} ago")
    settings = reading.made_with.get("settings", {})
    goal, strategy = settings.get("goal", "?"), settings.get("strategy", "?")
    made = f"{reading.made_with.get('model', '')}, goal {goal}, strategy {strategy}"
    return (
        f'<p class="status" role="status"><strong>{escape(reading.name)}</strong>: {escape(", ".join(parts))}.<br>'
        f"{escape(made)}</p>"
    )


def front_chart(reading: StudyReading, index: int | None) -> str:
    """Every measured trial by rate and KL, the front joined."""
    best = {trial.index for trial in reading.front}
    dots = []
    for trial in reading.trials:
        if trial.scores.measured.get("status", "complete") != "complete" and trial.index != index:
            continue
        rate, divergence = figures(trial)
        note = f"trial {trial.index}: rate {texts(trial)[0]}, KL {texts(trial)[1]}"
        dots.append(charts.Dot(divergence, rate, trial.index in best, trial.index == index, note))
    chart = charts.scatter(
        dots, title="Behaviour rate over KL", x_label="KL, nats/token", y_label="behaviour rate"
    )
    return f"<h3>Front</h3>{chart}"


def kernel_chart(trial: FinishedTrial | None) -> str:
    """How strongly the trial edits each component over depth."""
    if trial is None:
        return f"<h3>Kernels</h3>{charts.empty('No trial is finished yet.')}"
    chart = charts.lines(
        kernels(trial),
        title=f"Strength of trial {trial.index} over the blocks",
        x_label="block",
        y_label="share removed",
    )
    return f"<h3>Kernels of trial {trial.index}</h3>{chart}"


def trial_table(reading: StudyReading, index: int | None) -> str:
    """The newest trials first."""
    rows = []
    marked = -1
    for place, trial in enumerate(reversed(reading.trials[-ROWS:])):
        rate, divergence = texts(trial)
        feasible = "yes" if trial.scores.feasible else "no"
        status = trial.scores.measured.get("status", "complete")
        rows.append((trial.index, rate, divergence, feasible, str(status).replace("_", " ")))
        marked = place if trial.index == index else marked
    if not rows:
        return charts.empty("No trial is finished yet.")
    return table(COLUMNS, rows, caption=f"Trials of {reading.name}, newest first", marked=marked)


def trial_details(trial: FinishedTrial | None) -> str:
    """Parameters and stored replies."""
    if trial is None:
        return charts.empty("No trial is finished yet.")
    named = {
        name: f"{value:.4g}" if isinstance(value, float) else value
        for name, value in trial.parameters.items()
        if value is not None
    }
    replies = "".join(f'<p class="example">{escape(reply[:600])}</p>' for reply in samples(trial))
    empty = charts.empty("No replies are stored with this trial: it was not measured to the end.")
    return f"<h3>Trial {trial.index}</h3>{facts(named)}<h3>Replies</h3>{replies or empty}"


def more_charts(reading: StudyReading) -> str:
    """History, importance, parallel coordinates, timeline, failures."""
    complete = [
        trial for trial in reading.trials if trial.scores.measured.get("status", "complete") == "complete"
    ]
    best: list[float | None] = []
    for trial in complete:
        rate = figures(trial)[0]
        best.append(rate if not best or best[-1] is None else min(best[-1], rate))
    history = charts.lines(
        {"rate": [figures(trial)[0] for trial in complete], "lowest so far": best},
        title="Behaviour rate over the measured trials",
        x_label="measured trial",
        y_label="behaviour rate",
    )
    front = {trial.index for trial in reading.front}
    rows = [
        (
            {
                name: float(value)
                for name, value in trial.parameters.items()
                if isinstance(value, int | float)
            },
            trial.index in front,
        )
        for trial in complete
    ]
    ends = [seconds for _, seconds in sorted(reading.ended.items())]
    timeline = charts.lines(
        {"finished": ends}, title="Time at which each trial ended", x_label="trial", y_label="seconds"
    )
    importance = charts.bars(importances(complete), title="Share of the rank variance explained alone")
    failures = (
        table(("trial", "reason"), sorted(reading.failed.items()), caption="Trials that failed")
        if reading.failed
        else charts.empty("No trial failed.")
    )
    return "".join(
        f"<h3>{heading}</h3>{chart}"
        for heading, chart in (
            ("History", history),
            ("Importance of parameters", importance),
            (
                "Parallel coordinates",
                charts.parallel(rows, title="Parameters of the trials, front in colour"),
            ),
            ("Timeline", timeline),
            ("Failures", failures),
        )
    )
