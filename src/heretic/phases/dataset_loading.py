# SPDX-License-Identifier: Apache-2.0
"""Step 3 of the flow: every prompt set the run needs, loaded and compared before a weight is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from heretic.config import DatasetSettings, Settings
from heretic.exceptions import DatasetError, NetworkError
from heretic.prompts import (
    DatasetSpecification,
    Prompt,
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
    """All prompt sets of a run. Confirmation, borderline and contrast sets are None when a default one could not be
    reached; contrast sets (helpfulness, sacred) also where the settings do not use them."""

    good: PromptSet
    bad: PromptSet
    good_evaluation: PromptSet
    bad_evaluation: PromptSet
    good_confirmation: PromptSet | None
    bad_confirmation: PromptSet | None
    over_behaviour: PromptSet | None
    helpfulness: PromptSet | None = None
    unhelpfulness: PromptSet | None = None
    sacred: PromptSet | None = None
    sacred_baseline: PromptSet | None = None
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


@dataclass(slots=True)
class _Loader:
    """Loads sets by setting name and keeps what was noticed."""

    settings: Settings
    explicit: frozenset[str]
    degradations: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def needed(self, name: str, minimum: int = 1) -> PromptSet:
        """A set without which there is no run."""
        spec = specification(getattr(self.settings, name))
        return load_prompts(spec, offline=self.settings.offline, minimum=minimum, role=name)

    def auxiliary(self, name: str, switch: str = "") -> PromptSet | None:
        """A set without which the run goes on; None when a default one cannot be had (R-DAT-07). It has to be there
        where it, or the switch that needs it, is the user's word."""
        try:
            return self.needed(name)
        except (DatasetError, NetworkError) as error:
            if switch in self.explicit or any(
                entry == name or entry.startswith(f"{name}.") for entry in self.explicit
            ):
                raise
            self.degradations.append(f"{name} left out: {error.message}")
            return None

    def pair(self, first: str, second: str, switch: str) -> tuple[PromptSet | None, PromptSet | None]:
        """Two contrast sets that are only useful together, where the settings use them."""
        if not getattr(self.settings, switch):
            return None, None
        found = self.auxiliary(first, switch)
        other = None if found is None else self.auxiliary(second, switch)
        if other is None:
            self.degradations.append(f"{switch} is off: its prompts could not be loaded")
            return None, None
        return found, other

    def fresh(self, name: str, seen: Sequence[Prompt]) -> PromptSet | None:
        """A held-out set without prompts used before; None when a default one cannot be had (R-DAT-07, R-DAT-09)."""
        loaded = self.auxiliary(name)
        if loaded is None:
            return None
        kept, dropped = without(loaded.prompts, seen)
        if dropped:
            self.notices.append(f"{dropped} prompts of {name} were used before and are left out")
        if not kept:
            self.degradations.append(f"{name} left out: all of its prompts were used before")
            return None
        return loaded.keeping(kept)


def load_datasets(settings: Settings, explicit: frozenset[str] = frozenset()) -> DatasetBundle:
    """Load direction, evaluation and confirmation prompts.

    explicit: names of the settings the user stated. A default auxiliary set that cannot be reached is left out with a
    degradation; an explicit one fails the run (requirements R-DAT-07, R-GEN-08). Overlaps are reported, and removed
    from the confirmation sets (R-DAT-09). Raises `DatasetError` and its kin.
    """
    loader = _Loader(settings, explicit)
    used = {
        "bad_prompts": loader.needed("bad_prompts", MINIMUM_PER_CLASS),
        "good_prompts": loader.needed("good_prompts", MINIMUM_PER_CLASS),
    }
    check_classes_differ(used["bad_prompts"].prompts, used["good_prompts"].prompts)
    used |= {name: loader.needed(name) for name in ("bad_evaluation_prompts", "good_evaluation_prompts")}
    overlaps = {
        f"{pair.first} / {pair.second}": pair.count
        for pair in overlap_report({name: entry.prompts for name, entry in used.items()})
    }
    loader.notices += [f"{count} prompts occur in both {names}" for names, count in overlaps.items()]
    seen = [prompt for entry in used.values() for prompt in entry.prompts]
    helpful = loader.pair("helpfulness_prompts", "unhelpfulness_prompts", "orthogonalize_directions")
    sacred = loader.pair("sacred_prompts", "sacred_baseline_prompts", "use_sacred_directions")
    return DatasetBundle(
        good=used["good_prompts"],
        bad=used["bad_prompts"],
        good_evaluation=used["good_evaluation_prompts"],
        bad_evaluation=used["bad_evaluation_prompts"],
        good_confirmation=loader.fresh("good_confirmation_prompts", seen),
        bad_confirmation=loader.fresh("bad_confirmation_prompts", seen),
        over_behaviour=loader.fresh("over_behaviour_prompts", seen),
        helpfulness=helpful[0],
        unhelpfulness=helpful[1],
        sacred=sacred[0],
        sacred_baseline=sacred[1],
        degradations=tuple(loader.degradations),
        notices=tuple(loader.notices),
        overlaps=overlaps,
    )
