# SPDX-License-Identifier: Apache-2.0
"""Steps 9 and 10 of the flow: choose by the rule or in the menu, save, upload (requirements 7.5 to 7.7)."""

from __future__ import annotations

from heretic.apps.trial_menu import TrialMenu
from heretic.phases.choice import choose
from heretic.phases.publication import save, upload
from heretic.phases.reporting import Result, fill_front
from heretic.phases.state import Run


def finish(run: Run, result: Result) -> str:
    """Choose and save, or show the menu; the returned word is the report's status."""
    fill_front(run, result)
    if not result.outcome.finished and not run.stop:
        run.console.warn(
            f"No trial was finished ({result.outcome.reason}), so there is nothing to choose from.",
            details=sorted(set(result.outcome.failed.values()))[:5],
        )
    if run.stop.urgent or not result.outcome.finished:
        return "interrupted" if run.stop else "nothing_qualified"
    result.selection = choose(run, result.confirmation, result.confirmed)
    settings = run.settings
    if settings.auto_select or settings.trial is not None:
        return _automatic(run, result)
    if run.console.interactive:
        return TrialMenu(run, result).show()
    result.selection = None
    return "interrupted" if run.stop else "not_saved"


def _automatic(run: Run, result: Result) -> str:
    selection = result.selection
    assert selection is not None
    fill_front(run, result)
    run.console.note(f"Chosen: {selection.reason}")
    if result.chosen is None:
        return "nothing_qualified"
    save(run, result, result.chosen)
    if run.settings.hf_upload is not None:
        upload(run, result, run.settings.hf_upload)
    if run.stop:
        return "interrupted"
    return "complete" if selection.qualified else "nothing_qualified"
