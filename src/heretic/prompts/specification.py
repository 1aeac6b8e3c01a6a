# SPDX-License-Identifier: Apache-2.0
"""The values of this room: what to load, one prompt, one loaded set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from heretic.exceptions import ConfigurationError


@dataclass(frozen=True)
class DatasetSpecification:
    """Where prompts come from (requirements 3.8; field names are those of the settings).

    `dataset` is a Hub id, a local file or folder, or `heretic:NAME`. `split` is a split name with an optional
    slice, several joined by `+`. `sample` draws that many non-blank rows, without replacement and in source
    order, after the slice. `stream` is True, False or "auto".

    Raises `ConfigurationError` for an empty `dataset` or `column` and a `sample` below 1.
    """

    dataset: str
    config: str | None = None
    data_files: tuple[str, ...] | None = None
    revision: str | None = None
    split: str = "train"
    column: str = "text"
    category: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    system_prompt: str | None = None
    sample: int | None = None
    sample_seed: int = 0
    stream: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not self.dataset.strip():
            raise ConfigurationError(
                "A data set has an empty name.", hint="Give a Hub id, a path or heretic:NAME."
            )
        if not self.column:
            raise ConfigurationError(f"The data set {self.dataset} has an empty `column`.")
        if self.sample is not None and self.sample < 1:
            raise ConfigurationError(
                f"`sample` of the data set {self.dataset} is {self.sample}; it must be at least 1."
            )


@dataclass(frozen=True)
class Prompt:
    """One user turn: `text` with prefix and suffix applied; `system_prompt` None means the run's own."""

    text: str
    category: str | None = None
    system_prompt: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """A loaded set of prompts and what was found on the way (requirements R-DAT-03, R-DAT-10).

    `source` is the set in words; `resolved_revision` the commit of a Hub set, None for the rest. `rows_read`
    counts the rows of the slice, `blank_dropped` those without text, `duplicates` the kept rows whose
    normalised text had already occurred. `truncated` counts prompts cut to the token limit and
    `overlap_dropped` those removed because another set holds them; both are filled in later, by
    `dataclasses.replace` and `keeping`.
    """

    prompts: tuple[Prompt, ...]
    content_hash: str
    source: str
    resolved_revision: str | None = None
    rows_read: int = 0
    blank_dropped: int = 0
    duplicates: int = 0
    streamed: bool = False
    truncated: int = 0
    overlap_dropped: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def texts(self) -> tuple[str, ...]:
        """The user texts, in order."""
        return tuple(prompt.text for prompt in self.prompts)

    def by_category(self) -> dict[str | None, tuple[Prompt, ...]]:
        """The prompts of each category, categories in order of first appearance."""
        groups: dict[str | None, list[Prompt]] = {}
        for prompt in self.prompts:
            groups.setdefault(prompt.category, []).append(prompt)
        return {name: tuple(group) for name, group in groups.items()}

    def keeping(self, kept: Sequence[Prompt]) -> PromptSet:
        """This set reduced to `kept`, with a new content hash and the difference counted in
        `overlap_dropped`.
        """
        dropped = self.overlap_dropped + len(self.prompts) - len(kept)
        return dataclasses.replace(
            self, prompts=tuple(kept), content_hash=content_hash(kept), overlap_dropped=dropped
        )

    def record(self) -> dict[str, str | int | None]:
        """What fingerprint and manifest store about this set (R-DAT-10): plain JSON values, no texts."""
        return {
            "source": self.source,
            "revision": self.resolved_revision,
            "content_hash": self.content_hash,
            "rows": len(self.prompts),
            "rows_read": self.rows_read,
            "blank_dropped": self.blank_dropped,
            "duplicates": self.duplicates,
            "overlap_dropped": self.overlap_dropped,
            "truncated": self.truncated,
        }


def content_hash(prompts: Iterable[Prompt]) -> str:
    """SHA-256 (hex) over one canonical JSON line for each prompt, in order.

    The line holds text, category and system prompt byte for byte, so that a cache keyed by the hash misses
    when a single byte of a prompt changes (reliability E07).
    """
    digest = hashlib.sha256()
    for prompt in prompts:
        line = json.dumps([prompt.text, prompt.category, prompt.system_prompt], ensure_ascii=True)
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()
