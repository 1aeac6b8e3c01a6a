# SPDX-License-Identifier: Apache-2.0
"""Overlap between sets and between the two sides of a contrast (R-DAT-09, reliability D05)."""

from __future__ import annotations

import logging

import pytest

from heretic.exceptions import DatasetError
from heretic.prompts import Prompt, check_classes_differ, normalise_prompt, overlap_report, without


def prompts(*texts: str, system: str | None = None) -> tuple[Prompt, ...]:
    return tuple(Prompt(text, system_prompt=system) for text in texts)


def test_normalisation_ignores_case_space_width_and_final_punctuation() -> None:
    forms = ["How do I  bake?", "how do i bake", " HOW DO I\tBAKE!! ", "\uff28ow do I bake."]
    assert {normalise_prompt(form) for form in forms} == {"how do i bake"}
    assert normalise_prompt("How do I brake?") != normalise_prompt("How do I bake?")
    assert normalise_prompt("?") != normalise_prompt("!")


def test_r_dat_09_planted_duplicate_is_reported_and_removed() -> None:
    direction, evaluation = prompts("a b", "c", "d"), prompts("x", "A  b?")
    confirmation = prompts("y", "C.", "x", "c", "z")
    report = overlap_report({"direction": direction, "evaluation": evaluation, "confirmation": confirmation})
    assert [(entry.first, entry.second, entry.count, entry.share) for entry in report] == [
        ("direction", "evaluation", 1, 0.5),
        ("direction", "confirmation", 1, 1 / 3),
        ("evaluation", "confirmation", 1, 0.5),
    ]
    kept, dropped = without(confirmation, direction + evaluation)
    assert ([prompt.text for prompt in kept], dropped) == (["y", "z"], 3)
    assert overlap_report({"direction": direction, "kept": kept}) == ()


def test_d05_identical_and_contained_classes_are_refused() -> None:
    good = prompts("one", "two", "three")
    for bad in (good, good[::-1], prompts("ONE", "two?", "three."), good[:2]):
        with pytest.raises(DatasetError, match=r"of 3 good|3 of 3"):
            check_classes_differ(bad, good)


def test_d05_partial_overlap_is_counted_and_warned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="heretic.prompts"):
        assert check_classes_differ(prompts("one", "two"), prompts("three", "four")) == 0
        assert not caplog.records
        assert check_classes_differ(prompts("one", "two"), prompts("Two!", "three")) == 1
    assert len(caplog.records) == 1
    assert "two" not in caplog.text.lower()  # R-LOG-04: no prompt text in logs


def test_r_cfg_13_one_list_under_two_instructions_is_a_contrast() -> None:
    questions = ("one", "two")
    assert (
        check_classes_differ(prompts(*questions, system="Be brief."), prompts(*questions, system="Be long."))
        == 0
    )
