# SPDX-License-Identifier: Apache-2.0
"""`heretic study ...`: look into a storage, delete a study, see who owns one (requirements R-CLI-09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from heretic.cli.context import Context, Injected
from heretic.cli.effects import Effect, command
from heretic.cli.report import report
from heretic.trial_display import figure_texts, rate_and_divergence

if TYPE_CHECKING:
    from heretic.study.catalogue import StudySummary
    from heretic.study.types import FinishedTrial

LIST_COLUMNS: Final = ("study", "finished", "failed", "running", "model", "behaviour", "goal", "strategy")
TRIAL_COLUMNS: Final = ("trial", "rate", "KL, nats/token", "feasible", "status")
Storage = Annotated[str | None, Parameter(help="Where studies are kept; as the setting of that name.")]


def register(app: App) -> None:
    """Add the group of commands to `app`."""
    group = App(name="study", help="Look into stored studies; delete or unlock one.", help_formatter="plain")
    app.command(group)
    command(group, "list", Effect.READ)(list_all)
    command(group, "show", Effect.READ)(show)
    command(group, "front", Effect.READ)(front)
    command(group, "delete", Effect.DESTROY_LOCAL)(delete)
    command(group, "unlock", Effect.WRITE_LOCAL)(unlock)
    command(group, "plot", Effect.WRITE_LOCAL)(report)


def list_all(*, storage: Storage = None, context: Injected) -> int:
    """List the studies of a storage."""
    from heretic.study.catalogue import list_studies

    location = _storage(storage, context)
    studies = list_studies(location)
    context.console.document({"storage": location, "studies": [_record(study) for study in studies]})
    if studies:
        rows = [[record[column] for column in LIST_COLUMNS] for record in map(_record, studies)]
        context.console.table(LIST_COLUMNS, rows, right=(1, 2, 3), result=True)
        context.console.next_command(f"heretic study front {studies[0].name}")
    else:
        context.console.result(f"no studies in {location}")
        context.console.next_command("heretic MODEL")
    return 0


def show(name: str, *, storage: Storage = None, context: Injected) -> int:
    """Show one study: its counts, what it was made with, and its trials."""
    from heretic.study.catalogue import load_finished

    location = _storage(storage, context)
    study = find_study(location, name)
    trials = load_finished(location, name)
    made_with = {str(key): value for key, value in study.fingerprint.items()}
    context.console.document(
        {**_record(study), "fingerprint": made_with, "trials": [_trial(one) for one in trials]}
    )
    context.console.facts(_record(study), result=True)
    context.console.facts(made_with, title="\nmade with", result=True)
    _show_trials(trials, "trials", context)
    context.console.next_command(f"heretic study front {name}")
    return 0


def front(name: str, *, storage: Storage = None, context: Injected) -> int:
    """Show the trials that no other trial of the study beats on both objectives."""
    from heretic.study.catalogue import load_finished

    location = _storage(storage, context)
    best = nondominated(load_finished(location, name))
    context.console.document({"study": name, "front": [_trial(one) for one in best]})
    _show_trials(best, f"front of {name}", context)
    if best:
        context.console.next_command(f"heretic export {name} --trial {best[0].index}")
    return 0


def delete(name: str, *, storage: Storage = None, context: Injected) -> int:
    """Delete a study for good; asks for its name, typed."""
    from heretic.study.catalogue import delete_study

    location = _storage(storage, context)
    study = find_study(location, name)
    context.console.confirm_word(
        f"Delete the study {name!r} in {location}?",
        name,
        lost=(f"{study.finished} finished and {study.failed} failed trials of {name!r} in {location}",),
    )
    delete_study(location, name)
    context.console.document({"deleted": name, "finished_trials": study.finished})
    context.console.result(f"deleted {name} ({study.finished} finished trials)")
    context.console.next_command("heretic study list")
    return 0


def unlock(name: str, *, storage: Storage = None, context: Injected) -> int:
    """Give back the open trials of workers that are gone, or say who owns the study.

    The lock of a dead process frees itself. Workers of other machines are watched for one lease at most.
    """
    from heretic.cli.unlocking import return_leases
    from heretic.lease import held
    from heretic.study.storage import locate

    location = _storage(storage, context)
    study = find_study(location, name)
    shared = return_leases(location, name, context)
    if shared is not None:
        return shared
    place = locate(location)
    if place.file is not None:
        with held(place.beside(name, "lock"), f"the study {name!r}"):
            context.console.detail("the lock could be taken, so nobody holds it")
    context.console.document({"study": name, "locked": False, "open_trials": study.running})
    context.console.result(f"{name} is free; {study.running} open trials will be taken up by the next run")
    context.console.next_command(f"heretic study show {name}")
    return 0


def find_study(storage: str | None, name: str) -> StudySummary:
    """The summary of a stored study. Raises `StudyNotFoundError` naming near ones."""
    from heretic.study.catalogue import list_studies, load_finished

    for study in list_studies(storage):
        if study.name == name:
            return study
    load_finished(storage, name)
    raise AssertionError(f"{name} is stored and not listed")


def nondominated(trials: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """The feasible trials, measured in full, that none beats in one objective without losing in the other, by
    behaviour objective.
    """
    feasible = sorted(
        (trial for trial in trials if trial.scores.feasible and _status(trial) == "complete"),
        key=lambda trial: (*trial.scores.objectives, trial.index),
    )
    best: list[FinishedTrial] = []
    for trial in feasible:
        if not best or trial.scores.objectives[1] < best[-1].scores.objectives[1]:
            best.append(trial)
    return best


def _storage(storage: str | None, context: Context) -> str | None:
    given = [] if storage is None else [f"--storage={storage}"]
    location: str | None = context.peek(given).settings.storage
    return location


def _record(study: StudySummary) -> dict[str, object]:
    settings = study.fingerprint.get("settings")
    chosen = settings if isinstance(settings, Mapping) else {}
    made_with: dict[str, object] = {
        key: study.fingerprint.get(key, chosen.get(key, "")) for key in LIST_COLUMNS[4:]
    }
    made_with["behaviour"] = _name_of(made_with["behaviour"])
    counts = {"finished": study.finished, "failed": study.failed, "running": study.running}
    return {"study": study.name, **counts, **made_with}


def _name_of(behaviour: object) -> object:
    return behaviour.get("name", "") if isinstance(behaviour, Mapping) else behaviour


def _status(trial: FinishedTrial) -> object:
    return trial.scores.measured.get("status", "complete")


def _trial(trial: FinishedTrial) -> dict[str, object]:
    """What was not measured is null; the bounds that were found stand beside it."""
    measured = trial.scores.measured
    rate, divergence = rate_and_divergence(trial)
    bounds = ("hits_at_least", "prompts_seen", "n", "kl_at_least", "kl_prompts_seen")
    return {
        "trial": trial.index,
        "behaviour_rate": None if "rate" in measured and measured["rate"] is None else rate,
        "kl_mean": None if "kl_at_least" in measured else divergence,
        **(
            {}
            if _status(trial) == "complete"
            else {name: measured[name] for name in bounds if name in measured}
        ),
        "feasible": trial.scores.feasible,
        "status": _status(trial),
        "parameters": dict(trial.parameters),
    }


def _show_trials(trials: Sequence[FinishedTrial], title: str, context: Context) -> None:
    rows = [
        (trial.index, *figure_texts(trial), "yes" if trial.scores.feasible else "no", str(_status(trial)))
        for trial in trials
    ]
    context.console.table(TRIAL_COLUMNS, rows, title=title, right=(0, 1, 2), result=True)
