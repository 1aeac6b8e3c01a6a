# SPDX-License-Identifier: Apache-2.0
"""`heretic MODEL`, `heretic run`, `heretic demo`, `heretic evaluate`: the commands that search or measure."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from heretic.cli import ui as page
from heretic.cli.context import Context, Injected, Tokens
from heretic.cli.effects import EFFECTS, TAKES_SETTINGS, Effect, command
from heretic.cli.models import show_findings
from heretic.cli.signals import stop_on_signals
from heretic.exceptions import ConfigurationError
from heretic.experiments.catalogue import planted_settings
from heretic.model.libraries import quick_imports
from heretic.report import RunReport
from heretic.report_view import FRONT_COLUMNS, FRONT_FIGURES, front_rows
from heretic.stop import EXIT_INTERRUPTED

DEMO_DEFAULTS: Final = {
    "behaviour": "demo",
    "n_trials": "40",
    "n_startup_trials": "20",
    "auto_select": "true",
    "storage": "",
    "offline": "true",
}
"""What the demo sets unless the user says otherwise; everything else is as in any run (R-CLI-32)."""
STATUS_CODES: Final = {"nothing_qualified": 3, "interrupted": EXIT_INTERRUPTED, "failed": 1}
"""Exit code by the status of a finished report; every other status is a success."""

COMPARISON: Final = ("model", "behaviour rate", "95 % interval", "KL, nats/token")
FIGURES: Final = ("figure", "base", "edited", "change", "95 % interval")


def register(app: App) -> None:
    """Add the commands to `app`; the run is also what happens without a command."""
    EFFECTS["heretic"] = Effect.WRITE_LOCAL
    TAKES_SETTINGS.add("heretic")
    app.default(run)
    command(app, "run", Effect.WRITE_LOCAL, settings=True)(run)
    command(app, "demo", Effect.WRITE_LOCAL, settings=True)(demo)
    command(app, "evaluate", Effect.READ, settings=True)(evaluate)


def run(*tokens: Tokens, context: Injected) -> int:
    """Search for the edit of MODEL, let you choose, and save it."""
    return _search(tokens, context)


def _search(tokens: Sequence[str], context: Context) -> int:
    """The run that `run` and `demo` share; with --dry-run its plan, with `evaluate_model` a comparison."""
    resolved = context.resolve(tokens, notices=False)
    # After the settings: a mistake in them is told before torch is loaded.
    with quick_imports(compiling=resolved.settings.compile):
        from heretic import main

    if context.flags.dry_run:
        return show_plan(main.dry_run(resolved, console=context.console), context)
    if resolved.settings.evaluate_model:
        return _evaluate(tokens, context)
    with stop_on_signals(context.stop, context.console.urgent, terminal=context.console.interactive):
        report = main.run(resolved, console=context.console, stop=context.stop)
    return conclude(report, context)


def show_plan(plan: Mapping[str, object], context: Context) -> int:
    """Show what would be done (R-CLI-25), and the same command line without --dry-run."""
    context.console.document({"status": "planned", "plan": plan})
    context.console.result("Plan; nothing was done\n")
    show_findings(context.console, plan)
    again = [word for word in sys.argv[1:] if word != "--dry-run"]
    context.console.next_command(shlex.join(["heretic", *again]))
    return 0


def without_trials(plan: Mapping[str, object]) -> dict[str, object]:
    """The plan of a command that searches nothing."""
    return {name: value for name, value in plan.items() if name != "trials"}


def demo(*tokens: Tokens, out: str | None = None, ui: bool = False, context: Injected) -> int:
    """Run the whole method offline on the bundled model, in about a minute.

    Parameters
    ----------
    out
        Folder for the edited model; without it a temporary one.
    ui
        Open the browser page afterwards.
    """
    from heretic.demo import model_path

    place = Path(tempfile.mkdtemp(prefix="heretic-"))
    given = planted_behaviour(tokens)
    try:
        folder = out or str(place / "demo-heretic")
        words = [*demo_defaults(given, folder, context), *given]
        ended = _search([f"--model={model_path()}", *words], context)
        return page.ui(f"--models-dir={Path(folder).parent}", context=context) if ui and not ended else ended
    finally:
        with contextlib.suppress(OSError):  # it holds the saved model, or was not needed
            place.rmdir()


PLANTED: Final = {"refusal": "demo", "verbosity": "demo-verbosity", "hedging": "demo-hedging"}
"""Behaviours of the bundled model, by the name of what was planted into it."""


def planted_behaviour(tokens: Sequence[str]) -> list[str]:
    """The tokens with the pack of the bundled model in place of the behaviour that it stands for."""
    found = list(tokens)
    for number, token in enumerate(tokens):
        flag, equals, value = token.partition("=")
        if flag not in ("--behaviour", "--behavior"):
            continue
        if equals:
            found[number] = f"{flag}={PLANTED.get(value, value)}"
        elif number + 1 < len(tokens):
            found[number + 1] = PLANTED.get(tokens[number + 1], tokens[number + 1])
    return found


def demo_defaults(tokens: Sequence[str], folder: str, context: Context) -> list[str]:
    """Flags for what the demo sets; what the user's own flags say wins, under every spelling of them."""
    asked = context.peek(tokens)
    said = {path for path, origin in asked.origins.items() if origin.layer == "command line"}
    values = {**DEMO_DEFAULTS, "auto_select_path": folder, **planted_settings(asked.settings.behaviour)}
    if "n_trials" in said:
        values["n_startup_trials"] = str(asked.settings.n_trials // 2)
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name not in said]


def evaluate(
    model: str,
    *tokens: Tokens,
    against: Annotated[str | None, Parameter(negative=())] = None,
    context: Injected,
) -> int:
    """Measure MODEL against a base model with the configured scorers.

    Parameters
    ----------
    model
        The edited model: Hub id or folder; stands before the settings.
    against
        The base model it is compared with.
    """
    if against is None:
        raise ConfigurationError(
            f"there is nothing to compare {model} with",
            hint=f"Write: heretic evaluate {model} --against BASE",
        )
    return _evaluate([f"--model={against}", f"--evaluate-model={model}", *tokens], context)


def _evaluate(tokens: Sequence[str], context: Context) -> int:
    resolved = context.resolve(tokens)
    with quick_imports(compiling=resolved.settings.compile):
        from heretic import main

    found = main.evaluate_pair(resolved, console=context.console)
    context.console.document(found)
    rows = []
    for key in ("base", "model"):
        side = found.get(key)
        if isinstance(side, Mapping):
            rows.append(comparison_row(side))
    context.console.table(COMPARISON, rows, right=(1, 2, 3), result=True)
    validation = found.get("validation")
    if isinstance(validation, Mapping):
        context.console.table(FIGURES, list(validation["figures"]), right=(1, 2, 3, 4), result=True)
        context.console.result(f"capability {validation['verdict']}: {validation['reason']}")
    context.console.result(f"KL noise floor {found.get('noise_floor', 'unknown')} (the base against itself)")
    context.console.next_command(f"heretic chat {resolved.settings.evaluate_model}")
    return 0


def comparison_row(side: Mapping[str, object]) -> tuple[str, str, str, str]:
    """One model of a comparison, from its flat measurement, as a row of `COMPARISON`."""
    interval, divergence = side.get("interval"), side.get("kl")
    rate = f"{side.get('behaviour_rate', 0.0):.1%} ({side.get('hits')}/{side.get('n')})"
    shown = "-"
    if isinstance(divergence, Mapping):
        shown = f"{divergence['mean']:.4f} +- {divergence['standard_error']:.4f}"
    between = (
        "" if not isinstance(interval, Sequence) else " to ".join(f"{100 * end:.1f}" for end in interval)
    )
    return str(side.get("model", "")), rate, f"{between} %", shown


def resume_command(report: RunReport) -> str:
    """The same command line again (R-CLI-26); what the interrupted run has saved already would be replaced."""
    words = ["heretic", *sys.argv[1:]]
    return shlex.join(words if report.output is None or "--overwrite" in words else [*words, "--overwrite"])


def conclude(report: RunReport, context: Context) -> int:
    """Show the report and, where nothing was chosen, the front and how to export it (R-HDL-01)."""
    console = context.console
    if report.chosen is None and report.front:
        console.table(
            FRONT_COLUMNS, front_rows(report.front), title="Front", right=FRONT_FIGURES, result=True
        )
        storage, name = report.study.get("storage"), str(report.study.get("name", "heretic_study"))
        for trial in report.front if storage else ():
            line = ["heretic", "export", name, "--trial", str(trial.trial), "--model", report.model]
            console.result(shlex.join([*line, "--storage", str(storage)]))
    console.report(report)
    if context.stop:
        if report.study.get("storage"):
            console.note(f"continue with: {resume_command(report)}")
        return context.stop.exit_code
    return STATUS_CODES.get(report.status, 0)
