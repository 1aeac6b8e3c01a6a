# SPDX-License-Identifier: Apache-2.0
"""What protection of capability directions is worth on the bundled model: its quiz under a strong edit (R-SAC-06)."""

from __future__ import annotations

import torch

from heretic.demo import model_path, prompts_path
from heretic.demo.measure import Subject, rows
from heretic.interventions.hooks import Edits
from heretic.interventions.probe import edited_weights
from heretic.linalg.intervals import bonett_price
from heretic.phases.state import Run

from .test_strategies import PLAIN, prepared

QUESTIONS = 256
HARD = (*PLAIN, "--max-strength=2", "--no-enable-layer-profiles")


def strong(run: Run) -> Edits:
    """Twice the direction of the last layer but one, from every writer: more than any search would try."""
    assert run.model is not None
    last = float(run.model.architecture.layers - 1)
    point: dict[str, float | int | str | None] = {"direction_scope": "global", "direction_index": last - 1.0}
    for component in run.model.architecture.components:
        point[f"{component}.max_weight"] = 2.0
        point[f"{component}.max_weight_position"] = last / 2
        point[f"{component}.min_weight"] = 1.0
        point[f"{component}.min_weight_distance"] = last
    return run.edits(point)


def right(subject: Subject, quiz: list[dict[str, object]], shots: list[dict[str, object]]) -> list[bool]:
    """Whether each question is answered rightly, one at a time."""
    return [subject.letters([question], shots, 3) == 1.0 for question in quiz]


def test_protection_does_not_lower_the_accuracy_and_keeps_its_coordinates() -> None:
    """R-SAC-06: the paired difference of the accuracies is not below zero, and the switch changes the edit. What is
    promised is exact: coordinates along the protected directions do not move (control: without protection they do)."""
    torch.set_num_threads(1)
    plain, guarded = prepared(*HARD), prepared("--use-sacred-directions", *HARD)
    assert guarded.extraction is not None and plain.extraction is not None
    protected = guarded.extraction.findings.protected
    assert protected is not None
    folder = prompts_path("knowledge", "test").parents[2]
    quiz, shots = rows(folder, "knowledge", "test", QUESTIONS), rows(folder, "knowledge", "dev")
    subject = Subject(model_path())
    answers, moved = [], []
    for run in (plain, guarded):
        edits = strong(run)
        moved.append(
            max(
                float((protected[site.layer] @ edit.left).abs().max())
                for site, edit in edits.items()
                if edit.read is not None
            )
        )
        with edited_weights(subject.model, edits):
            answers.append(right(subject, quiz, shots))
    assert moved[1] < 1e-5 < 1e-2 < moved[0]
    more = sum(b and not a for a, b in zip(*answers, strict=True))
    less = sum(a and not b for a, b in zip(*answers, strict=True))
    interval = bonett_price(more, less, len(quiz))
    print(f"right without {sum(answers[0])}, with {sum(answers[1])} of {len(quiz)}; difference {interval}")
    assert interval.high >= 0 and sum(answers[1]) >= sum(answers[0])
