# SPDX-License-Identifier: Apache-2.0
"""Settings that are tables: prompt sets, scorers, layer ranges, ranges of the search space."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from heretic.config.types import STRICT, Count, Fraction, Frozen, NonNegative, Positive, Text, setting

SOURCE_KEYS: Final = ("config", "split", "column", "data_files", "revision")
"""What belongs to one data set and means nothing in another (R-CFG-05)."""

BUILT_IN_SCORERS: Final = (
    "markers",
    "nli",
    "classifier",
    "log_odds",
    "length",
    "padding",
    "hedging",
    "regex",
    "judge",
    "kl_divergence",
    "over_behaviour",
    "degeneration",
)
_PLUG_IN = re.compile(r"[\w./\\:-]+:[A-Za-z_]\w*")


class DatasetSettings(Frozen):
    """Where prompts come from (requirements 3.8)."""

    dataset: Text = Field(
        description="Hub id, folder, file, or heretic:NAME for a packaged set",
        json_schema_extra={"score": True, "consent": False, "secret": False},
    )
    config: Text | None = setting(None, "variant of the data set")
    data_files: tuple[Text, ...] | None = setting(None, "files inside a Hub set or folder")
    revision: Text | None = setting(None, "commit of the data set")
    split: Text = setting("train", "split with an optional slice, such as train[:400]; a+b joins")
    column: Text = setting("text", "text column; of chat columns the first user turn")
    category: Text | None = setting(None, "column with category names")
    prefix: str | None = setting(None, "text put before every prompt of this set")
    suffix: str | None = setting(None, "text put after every prompt of this set")
    system_prompt: str | None = setting(None, "system turn of this set instead of the common one")
    sample: Positive | None = setting(None, "rows drawn at random after the slice")
    sample_seed: Count = setting(0, "seed of that draw")
    stream: bool | Literal["auto"] = setting("auto", "read row by row without downloading the whole set")


class ScorerSettings(Frozen):
    """A scorer: built-in name, `module:Class` or `file.py:Class`, with options (R-EVA-01, R-EVA-02)."""

    name: Text = Field(description="scorer")
    options: dict[str, object] = Field(default_factory=dict, description="its own settings")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in BUILT_IN_SCORERS and not _PLUG_IN.fullmatch(name):
            raise ValueError(f"there is no scorer called {name!r}; known: {', '.join(BUILT_IN_SCORERS)}")
        return name

    @property
    def is_plug_in(self) -> bool:
        """True for code of the user."""
        return self.name not in BUILT_IN_SCORERS


class LayerRange(Frozen):
    """Relative depths [start, end) whose strength is multiplied; a range that ends at 1 includes it."""

    start: Fraction = Field(description="relative depth, inclusive")
    end: Fraction = Field(description="relative depth, exclusive")
    multiplier: NonNegative = Field(description="factor")

    @model_validator(mode="after")
    def _ordered(self) -> LayerRange:
        if self.start >= self.end:
            raise ValueError(f"start {self.start} should be below end {self.end}")
        return self


def check_ranges(ranges: tuple[LayerRange, ...]) -> tuple[LayerRange, ...]:
    """Refuse ranges that overlap; gaps are allowed and mean 1.0."""
    ordered = sorted(ranges, key=lambda item: item.start)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if after.start < before.end:
            raise ValueError(f"ranges {before.start}-{before.end} and {after.start}-{after.end} overlap")
    return ranges


def _as_bounds(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | tuple | list):
        raise ValueError("should be [low, high] or one number")
    pair = (value, value) if isinstance(value, int | float) else tuple(value)
    pair = pair * 2 if len(pair) == 1 else pair
    if len(pair) == 2 and all(isinstance(item, int | float) for item in pair) and pair[0] > pair[1]:
        raise ValueError(f"low {pair[0]} should not be above high {pair[1]}")
    return pair


Bounds = Annotated[tuple[float, float], BeforeValidator(_as_bounds)]
RelativeBounds = Annotated[tuple[Fraction, Fraction], BeforeValidator(_as_bounds)]
CountBounds = Annotated[tuple[Positive, Positive], BeforeValidator(_as_bounds)]
Strengths = Annotated[
    tuple[Annotated[float, Field(ge=-1, le=2)], Annotated[float, Field(ge=-1, le=2)]],
    BeforeValidator(_as_bounds),
]


class ComponentRanges(Frozen):
    """Ranges of one component's kernel; positions and distances are fractions of L-1."""

    max_weight: Strengths | None = setting(None, "peak strength [low, high]; below 0 means off")
    max_weight_position: RelativeBounds | None = setting(None, "depth of the peak as a fraction of L-1")
    min_weight: RelativeBounds | None = setting(None, "strength at the edge as a fraction of the peak")
    min_weight_distance: RelativeBounds | None = setting(None, "half-width as a fraction of L-1")


class SearchSpace(ComponentRanges):
    """Overrides of the search space (requirements 7.2): for all components, or in a table named after one.

    `[search_space]` speaks of every component, `[search_space."mlp.down_proj"]` of one; null = the built-in
    range.
    """

    model_config = ConfigDict(frozen=True, extra="allow", **STRICT)
    __pydantic_extra__: dict[str, ComponentRanges] = Field(init=False)

    direction_scope: tuple[Literal["global", "per_layer"], ...] | None = setting(None, "choices")
    direction_index: RelativeBounds | None = setting(None, "entry as a fraction of L-1")
    direction_source: tuple[Literal["difference", "covector", "probe", "ensemble"], ...] | None = setting(
        None, "choices"
    )
    n_components: CountBounds | None = setting(None, "directions of one edit")
    norm_mode: tuple[Literal["column", "row"], ...] | None = setting(None, "choices")
    n_heads: CountBounds | None = setting(None, "heads of one edit")
    addition_strength: Bounds | None = setting(None, "signed shift in calibrated units")
    amplification: RelativeBounds | None = setting(None, "strengthening of what is there")
    shrinkage: Fraction | None = setting(None, "covariance shrinkage; null = estimated")
    center: tuple[bool, ...] | None = setting(None, "choices")

    def component(self, name: str) -> ComponentRanges:
        """The ranges of one component: its own table where it states one, else those for all components."""
        own = self.__pydantic_extra__.get(name, ComponentRanges())
        fields = ComponentRanges.model_fields
        return ComponentRanges(**{key: getattr(own, key) or getattr(self, key) for key in fields})

    @property
    def components(self) -> dict[str, ComponentRanges]:
        """The tables named after a component, as given."""
        return dict(self.__pydantic_extra__)
