# SPDX-License-Identifier: Apache-2.0
"""The method on one screen: settings, prompts, model, residuals, directions, edits, scores, study, export."""

from __future__ import annotations

from heretic.apps.ending import finish
from heretic.config import Resolved
from heretic.console import Console
from heretic.direction_tasks import apply_directions, extract_directions, require_extraction
from heretic.phases import steps
from heretic.phases.application import Strength, load_parts, plan_application
from heretic.phases.optimization import create_study
from heretic.phases.reporting import Result, build_report, keep_report
from heretic.phases.state import Run
from heretic.report import RunReport
from heretic.reproduction import read_run_file, reproduce
from heretic.stop import StopFlag
from heretic.tasks import chat_model, doctor, dry_run, evaluate_pair, export_trial, inspect, verify

__all__ = [
    "Strength",
    "apply_directions",
    "chat_model",
    "doctor",
    "dry_run",
    "evaluate_pair",
    "export_trial",
    "extract_directions",
    "inspect",
    "load_parts",
    "plan_application",
    "read_run_file",
    "reproduce",
    "require_extraction",
    "run",
    "verify",
]


def run(resolved: Resolved, *, console: Console, stop: StopFlag) -> RunReport:
    """Search for the edit of a model that changes a behaviour with the least damage, save it and measure it again.

    Raises the errors of `heretic.exceptions`; a run that found nothing within the limits returns a report with the
    status `nothing_qualified`, an interrupted one `interrupted`.
    """
    run = Run(resolved, console, stop)
    steps.announce(run)
    source = steps.preflight(run)
    run.bundle = steps.load_prompts(run)
    steps.prepare_validation(run)
    run.model = steps.load_network(run, source)
    run.evaluator, run.baseline = steps.measure_base(run)
    with create_study(run) as run.study:
        run.extraction = steps.extract(run)
        run.context = steps.plan_context(run)
        outcome = steps.search(run)
        confirmation, confirmed = steps.confirm_finalists(run, outcome)
        result = Result(outcome, confirmation, confirmed)
        status = finish(run, result)
        report = build_report(run, result, status)
        keep_report(run, result, report)
    return report
