# SPDX-License-Identifier: Apache-2.0
"""Do two sets hold the same prompts? (R-DAT-09, reliability D05)

Two rows are the same when the model would see the same thing: equal text after normalisation, under the same
system prompt. A behaviour pack may therefore ask one list of questions under two instructions (R-CFG-13).
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from heretic.exceptions import DatasetError
from heretic.prompts.specification import Prompt

_logger = logging.getLogger("heretic.prompts")
_EDGE_PUNCTUATION = " .,;:!?\"'`"

Key = tuple[str, str | None]


@dataclass(frozen=True)
class Overlap:
    """`count` distinct prompts occur in both named sets; `share` is that count over the smaller set."""

    first: str
    second: str
    count: int
    share: float


def normalise_prompt(text: str) -> str:
    """The text with compatibility forms, case, runs of white space and punctuation at the ends made equal."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Text that is nothing but punctuation keeps it; otherwise "?" and "!" would count as one empty prompt.
    collapsed = " ".join(folded.split())
    return collapsed.strip(_EDGE_PUNCTUATION) or collapsed


def prompt_key(prompt: Prompt) -> Key:
    """What makes two prompts the same: normalised text and system prompt."""
    return normalise_prompt(prompt.text), prompt.system_prompt


def count_duplicates(prompts: Sequence[Prompt]) -> int:
    """The number of prompts that repeat an earlier one of the same sequence."""
    return len(prompts) - len({prompt_key(prompt) for prompt in prompts})


def overlap_report(sets: Mapping[str, Sequence[Prompt]]) -> tuple[Overlap, ...]:
    """Every pair of named sets that shares a prompt, pairs in order of the mapping; maybe none."""
    keys = {name: {prompt_key(prompt) for prompt in prompts} for name, prompts in sets.items()}
    found = []
    for (first, left), (second, right) in combinations(keys.items(), 2):
        count = len(left & right)
        if count:
            found.append(Overlap(first, second, count, count / min(len(left), len(right))))
    return tuple(found)


def without(prompts: Sequence[Prompt], others: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], int]:
    """(the prompts that `others` does not hold, in order; how many were dropped)."""
    taken = {prompt_key(prompt) for prompt in others}
    kept = tuple(prompt for prompt in prompts if prompt_key(prompt) not in taken)
    return kept, len(prompts) - len(kept)


def check_classes_differ(bad: Sequence[Prompt], good: Sequence[Prompt]) -> int:
    """The number of distinct prompts in both classes; above 0 it is logged as a warning.

    Raises `DatasetError` when one class holds all of the other, identical sets included: the difference of
    the class means is then zero or measures only what else is in the larger set (reliability D05).
    """
    left, right = {prompt_key(prompt) for prompt in bad}, {prompt_key(prompt) for prompt in good}
    shared = len(left & right)
    if shared and shared == min(len(left), len(right)):
        raise DatasetError(
            f"The two sides of the contrast are not different: {shared} of {len(left)} bad and of "
            f"{len(right)} good prompts are the same, so no direction separates them.",
            hint="Give `bad_prompts` and `good_prompts` other data or other `system_prompt`s.",
            data={"shared": shared, "bad": len(left), "good": len(right)},
        )
    if shared:
        _logger.warning(
            "%d prompts are in both classes (%d bad, %d good); they weaken the direction",
            shared,
            len(left),
            len(right),
        )
    return shared
