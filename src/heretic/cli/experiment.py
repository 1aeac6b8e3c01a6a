# SPDX-License-Identifier: Apache-2.0
"""`heretic experiment ...`: prepared experiments from prompts to results (requirements R-CLI-16, section 11)."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from heretic.cli.context import Context, Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.cli.models import show_findings
from heretic.cli.run import STATUS_CODES, conclude, show_plan
from heretic.cli.signals import stop_on_signals
from heretic.exceptions import ConfigurationError
from heretic.model.libraries import quick_imports

if TYPE_CHECKING:
    from heretic.experiments.catalogue import Experiment
    from heretic.experiments.results import Results
    from heretic.experiments.workspace import Workspace

Out = Annotated[str | None, Parameter(help="Folder of the experiment; default experiments/NAME.")]
Flag = Annotated[bool, Parameter(negative=())]
LIST_COLUMNS: Final = ("experiment", "question", "target on held-out prompts")


def register(app: App) -> None:
    """Add the group of commands to `app`."""
    group = App(
        name="experiment", help="Prepared experiments: prompts, settings, measures.", help_formatter="plain"
    )
    app.command(group)
    command(group, "list", Effect.READ)(list_all)
    command(group, "show", Effect.READ)(show)
    command(group, "prepare", Effect.WRITE_LOCAL)(prepare)
    command(group, "run", Effect.WRITE_LOCAL, settings=True)(run)
    command(group, "evaluate", Effect.WRITE_LOCAL, settings=True)(evaluate)
    command(group, "report", Effect.WRITE_LOCAL)(report)


def list_all(*, context: Injected) -> int:
    """List the experiments."""
    from heretic.experiments.catalogue import EXPERIMENTS, target_text

    rows = [(entry.name, entry.question, target_text(entry)) for entry in EXPERIMENTS]
    context.console.document({"experiments": [dict(zip(LIST_COLUMNS, row, strict=True)) for row in rows]})
    context.console.table(LIST_COLUMNS, rows, result=True)
    context.console.next_command(f"heretic experiment show {rows[0][0]}")
    return 0


def show(name: str, *, context: Injected) -> int:
    """Show what one experiment asks, of which prompts, and how it is measured."""
    from heretic.experiments import prepare as rows
    from heretic.experiments.catalogue import find, header, target_text
    from heretic.experiments.workspace import Workspace

    experiment = find(name)
    with tempfile.TemporaryDirectory(prefix="heretic-") as empty:
        planned = Workspace(experiment, Path(empty)).plan()
    found: dict[str, object] = {
        "experiment": experiment.name,
        "question": experiment.question,
        "behaviour": header(experiment).description,
        "target": target_text(experiment),
        "figures": list(experiment.metrics),
        "tokens of scored replies": experiment.tokens,
        "prompts": rows.counts(planned.rows),
        "runs on the demo model": bool(experiment.planted),
    }
    context.console.document(found)
    show_findings(context.console, found)
    context.console.next_command(f"heretic experiment run {experiment.name} --model MODEL")
    return 0


def prepare(
    name: str, *, out: Out = None, good: str | None = None, bad: str | None = None, context: Injected
) -> int:
    """Check the prompts of an experiment, split them, and write its folder.

    Parameters
    ----------
    good
        Your own prompts without the behaviour: a JSON list of texts.
    bad
        Your own prompts that draw it: a JSON list of texts.
    """
    from heretic.experiments import prepare as rows
    from heretic.experiments.catalogue import find

    experiment = find(name)
    workspace = _workspace(experiment, out, demo=False)
    planned = workspace.plan(_lists(good, bad))
    written = {} if context.flags.dry_run else planned.files
    found = {
        "folder": workspace.folder.as_posix(),
        "prompts": rows.counts(planned.rows),
        "written": list(written),
        "kept": list(planned.kept),
    }
    if context.flags.dry_run:
        return show_plan({**found, "written": list(planned.files)}, context)
    workspace.write(planned)
    context.console.document(found)
    show_findings(context.console, found)
    again = (
        f"heretic experiment run {experiment.name} --model MODEL --out {shlex.quote(str(workspace.folder))}"
    )
    context.console.next_command(again)
    return 0


def run(
    name: str, *tokens: Tokens, out: Out = None, demo: Flag = False, quick: Flag = False, context: Injected
) -> int:
    """Prepare, search, save and measure: base, edit and controls on held-out prompts.

    Parameters
    ----------
    name
        The experiment; stands before the settings.
    demo
        Use the bundled model and the prompts on which the behaviour was planted into it.
    quick
        Measure on the small set of prompts that some experiments have.
    """
    from heretic.experiments.catalogue import find

    experiment = find(name)
    workspace = _workspace(experiment, out, demo=demo)
    if context.flags.dry_run:
        with tempfile.TemporaryDirectory(prefix="heretic-") as folder:
            copy = replace(workspace, folder=Path(folder) / experiment.name)
            return _run(copy, tokens, quick, context)
    return _run(workspace, tokens, quick, context)


def _run(workspace: Workspace, tokens: Sequence[str], quick: bool, context: Context) -> int:
    _prepare(workspace, context)
    given = [*_defaults(workspace, tokens, context), *_quick(workspace, quick), *tokens]
    resolved = context.resolve(given, notices=False)
    with quick_imports(compiling=resolved.settings.compile):
        from heretic import main
        from heretic.experiments import runner

    if context.flags.dry_run:
        return show_plan(main.dry_run(resolved, console=context.console), context)
    with stop_on_signals(context.stop, context.console.urgent, terminal=context.console.interactive):
        found, results = runner.run(workspace, resolved, console=context.console, stop=context.stop)
    if results is None:
        return conclude(found, context)
    context.console.document({"status": found.status, "run": found.to_document()})
    _show_results(workspace, results, context)
    return context.stop.exit_code if context.stop else STATUS_CODES.get(found.status, 0)


def evaluate(
    name: str,
    *tokens: Tokens,
    original: str,
    modified: str,
    out: Out = None,
    quick: Flag = False,
    context: Injected,
) -> int:
    """Measure MODIFIED against ORIGINAL on the held-out prompts of an experiment, one model after the other.

    Parameters
    ----------
    name
        The experiment; stands before the settings.
    original
        The base model: Hub id or folder.
    modified
        The model that is compared with it.
    quick
        Measure on the small set of prompts that some experiments have.
    """
    from heretic.experiments.catalogue import find

    workspace = _workspace(find(name), out, demo=False)
    _prepare(workspace, context)
    common = [f"--behaviour={workspace.config.as_posix()}", *_quick(workspace, quick), *tokens]
    first = context.resolve([f"--model={original}", *common])
    second = context.peek([f"--model={modified}", *common], purpose="run")
    with quick_imports(compiling=first.settings.compile):
        from heretic.experiments import runner

    results = runner.evaluate_pair(workspace, first, second, console=context.console, stop=context.stop)
    _show_results(workspace, results, context)
    return 0


def report(name: str, *, out: Out = None, demo: Flag = False, context: Injected) -> int:
    """Make the tables of an experiment again from its results.json, and put them into its page.

    Parameters
    ----------
    demo
        The results of a run on the bundled model.
    """
    from heretic.experiments import runner
    from heretic.experiments.catalogue import find
    from heretic.experiments.results import read_results

    workspace = _workspace(find(name), out, demo=demo)
    results = read_results(workspace.results)
    if results.experiment != workspace.experiment.name:
        raise ConfigurationError(
            f"The results in {workspace.folder} are those of {results.experiment}.",
            hint=f"Write: heretic experiment report {results.experiment} --out {workspace.folder}",
        )
    if not context.flags.dry_run:
        runner.write_report(workspace, results)
    _show_results(workspace, results, context)
    return 0


def _show_results(workspace: Workspace, results: Results, context: Context) -> None:
    from heretic.experiments import report as tables
    from heretic.experiments import runner

    context.console.document({"results": results.document(), "results_file": workspace.results.as_posix()})
    context.console.result(tables.render(workspace.experiment, results))
    context.console.result(f"\nResults: {workspace.results}")
    context.console.next_command(runner.report_command(workspace))


def _workspace(experiment: Experiment, out: str | None, *, demo: bool) -> Workspace:
    from heretic.experiments.workspace import Workspace, require_planted

    if demo:
        require_planted(experiment)
    standard = f"experiments/{experiment.name}{'-demo' if demo else ''}"
    return Workspace(experiment, Path(out or standard).expanduser(), planted=demo)


def _prepare(workspace: Workspace, context: Context) -> None:
    planned = workspace.plan()
    workspace.write(planned)
    for name in planned.kept:
        context.console.note(
            f"{workspace.folder / name} differs from the packaged file and is used as it is."
        )


def _quick(workspace: Workspace, quick: bool) -> list[str]:
    """Settings that put the small set in the place of the held-out prompts."""
    if not quick:
        return []
    workspace.quick_rows()
    return [f"--bad-confirmation-prompts.dataset={(workspace.folder / 'data' / 'quick.jsonl').as_posix()}"]


def _lists(good: str | None, bad: str | None) -> tuple[list[str], list[str]] | None:
    from heretic.experiments.prepare import read_list

    if good is None and bad is None:
        return None
    if good is None or bad is None:
        raise ConfigurationError(
            "Only one class of prompts was given.", hint="Give both --good FILE and --bad FILE."
        )
    return read_list(Path(good)), read_list(Path(bad))


def _defaults(workspace: Workspace, tokens: Sequence[str], context: Context) -> list[str]:
    """Flags for what an experiment sets; what the user's own flags say wins, under every spelling of them."""
    from heretic.experiments.workspace import defaults

    asked = context.peek(tokens)
    said = {path for path, origin in asked.origins.items() if origin.layer == "command line"}
    values = defaults(workspace)
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name not in said]
