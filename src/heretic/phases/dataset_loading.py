# SPDX-License-Identifier: Apache-2.0
"""Step 3 of the flow: every prompt set the run needs, loaded and compared before a weight is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from heretic.config import DatasetSettings, Settings
from heretic.exceptions import DatasetError, NetworkError
from heretic.prompts import (
    DatasetSpecification,
    PromptSet,
    check_classes_differ,
    load_prompts,
    overlap_report,
    without,
)

logger = logging.getLogger("heretic.phases")

MINIMUM_PER_CLASS = 8
"""Fewer prompts than this give no direction worth searching for; below 32 the stability warning speaks."""


@dataclass(frozen=True, slots=True)
class DatasetBundle:
    """All prompt sets of a run. Confirmation and borderline sets are None when a default one could not be reached."""

    good: PromptSet
    bad: PromptSet
    good_evaluation: PromptSet
    bad_evaluation: PromptSet
    good_confirmation: PromptSet | None
    bad_confirmation: PromptSet | None
    over_behaviour: PromptSet | None
    degradations: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    overlaps: Mapping[str, int] = field(default_factory=dict)

    def records(self) -> dict[str, Mapping[str, object]]:
        """Hash, source, revision and counts of each set (requirements R-DAT-10)."""
        sets = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value.record() for name, value in sets.items() if isinstance(value, PromptSet)}


def specification(dataset: DatasetSettings) -> DatasetSpecification:
    """The plain record that the prompts room takes."""
    names = {entry.name for entry in fields(DatasetSpecification)}
    values = {name: value for name, value in dataset.model_dump().items() if name in names}
    if isinstance(values.get("data_files"), list):
        values["data_files"] = tuple(values["data_files"])
    return DatasetSpecification(**values)


def load_datasets(settings: Settings, explicit: frozenset[str] = frozenset()) -> DatasetBundle:
    """Load direction, evaluation and confirmation prompts.

    explicit: names of the settings the user stated. A default auxiliary set that cannot be reached is left out with a
    degradation; an explicit one fails the run (requirements R-DAT-07, R-GEN-08). Overlaps are reported, and removed
    from the confirmation sets (R-DAT-09). Raises `DatasetError` and its kin.
    """
    degradations: list[str] = []
    notices: list[str] = []

    def needed(name: str, minimum: int) -> PromptSet:
        return load_prompts(
            specification(getattr(settings, name)), offline=settings.offline, minimum=minimum, role=name
        )

    def optional(name: str) -> PromptSet | None:
        try:
            return needed(name, 1)
        except (DatasetError, NetworkError) as error:
            if any(entry == name or entry.startswith(f"{name}.") for entry in explicit):
                raise
            degradations.append(f"{name} left out: {error.message}")
            return None

    bad, good = needed("bad_prompts", MINIMUM_PER_CLASS), needed("good_prompts", MINIMUM_PER_CLASS)
    check_classes_differ(bad.prompts, good.prompts)
    bad_evaluation, good_evaluation = (
        needed("bad_evaluation_prompts", 1),
        needed("good_evaluation_prompts", 1),
    )
    used = {"bad_prompts": bad, "good_prompts": good}
    used |= {"bad_evaluation_prompts": bad_evaluation, "good_evaluation_prompts": good_evaluation}
    overlaps = {
        f"{pair.first} / {pair.second}": pair.count
        for pair in overlap_report({name: entry.prompts for name, entry in used.items()})
    }
    notices += [f"{count} prompts occur in both {names}" for names, count in overlaps.items()]
    seen = [prompt for entry in used.values() for prompt in entry.prompts]

    def fresh(name: str) -> PromptSet | None:
        loaded = optional(name)
        if loaded is None:
            return None
        kept, dropped = without(loaded.prompts, seen)
        if dropped:
            notices.append(f"{dropped} prompts of {name} were used before and are left out")
        if not kept:
            degradations.append(f"{name} left out: all of its prompts were used before")
            return None
        return loaded.keeping(kept)

    return DatasetBundle(
        good=good,
        bad=bad,
        good_evaluation=good_evaluation,
        bad_evaluation=bad_evaluation,
        good_confirmation=fresh("good_confirmation_prompts"),
        bad_confirmation=fresh("bad_confirmation_prompts"),
        over_behaviour=fresh("over_behaviour_prompts"),
        degradations=tuple(degradations),
        notices=tuple(notices),
        overlaps=overlaps,
    )
