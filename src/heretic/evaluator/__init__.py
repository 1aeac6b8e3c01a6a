# SPDX-License-Identifier: Apache-2.0
"""The base measured once, then batches of trials against it; no search logic."""

from heretic.evaluator.evaluator import Evaluator
from heretic.evaluator.order import by_length, restore_order, spread_first
from heretic.evaluator.outcome import CanWin, Hopeless, KlBound, Lengths, Outcome, Reference

__all__ = [
    "CanWin",
    "Evaluator",
    "Hopeless",
    "KlBound",
    "Lengths",
    "Outcome",
    "Reference",
    "by_length",
    "restore_order",
    "spread_first",
]
