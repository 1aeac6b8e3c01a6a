# SPDX-License-Identifier: Apache-2.0
"""The menu without a terminal, and its views; the terminal itself is in the end-to-end tests (requirements 7.6)."""

from __future__ import annotations

import io

import pytest

from heretic.apps.menu import Menu, TrialAction, trial_line
from heretic.console import Console
from heretic.exceptions import ConfirmationRequiredError
from heretic.report import Divergence, Measurement, Rate, TrialReport


def trial(number: int, hits: int, kl: float, held_hits: int | None = None) -> TrialReport:
    def measured(count: int, where: str) -> Measurement:
        divergence = Divergence(kl, 0.01, kl, kl, kl, kl, 100, 500)
        return Measurement(where, Rate(count, 100, 0.0, 0.1), divergence, replies=("reply one", "reply two"))

    held = None if held_hits is None else measured(held_hits, "held_out")
    return TrialReport(number, {}, measured(hits, "search"), held, strengths={"mlp": (0.5, 1.0)})


def menu(*trials: TrialReport) -> tuple[Menu, io.StringIO]:
    err = io.StringIO()
    console = Console(stdout=io.StringIO(), stderr=err)
    return Menu(console, trials, actions=[TrialAction("Save", lambda entry: None, chooses=True)]), err


def test_without_terminal_the_menu_names_the_flags() -> None:
    """R-HDL-03."""
    chosen, err = menu(trial(1, 5, 0.1))
    with pytest.raises(ConfirmationRequiredError) as caught:
        chosen.run()
    assert "--auto-select" in str(caught.value.hint) and "--trial" in str(caught.value.hint)
    assert "5.0% (5/100)" in err.getvalue()


def test_order_is_by_held_out_figures_and_turns() -> None:
    """R-MEN-01: search figures are optimistic by selection, so they do not decide where held-out ones exist."""
    chosen, _ = menu(trial(1, 1, 0.3, held_hits=9), trial(2, 5, 0.2), trial(3, 5, 0.1))
    assert [entry.trial for entry in chosen._shown()] == [3, 2, 1]
    chosen._turn_order()
    assert [entry.trial for entry in chosen._shown()] == [3, 2, 1]
    assert "by KL" in chosen._title()


def test_a_line_says_where_its_figures_come_from() -> None:
    assert "9.0% (9/100)" in trial_line(trial(1, 1, 0.3, held_hits=9)) and "held out" in trial_line(
        trial(1, 1, 0.3, 9)
    )
    assert "search" in trial_line(trial(1, 1, 0.3))


def test_replies_and_strengths_come_from_the_report() -> None:
    """R-MEN-02."""
    chosen, err = menu(trial(1, 5, 0.1))
    chosen._replies(chosen.trials[0])
    chosen._strengths(chosen.trials[0])
    assert "reply two" in err.getvalue() and "0.500" in err.getvalue() and "mlp" in err.getvalue()
