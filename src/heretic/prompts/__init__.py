# SPDX-License-Identifier: Apache-2.0
"""Where prompts come from: one specification in, one frozen set of prompts out.

`load_prompts(DatasetSpecification(...))` reads a packaged set, a local file or folder, or a Hub data set,
cuts the slice, drops blank rows, and says what it read (requirements 3.8). The package imports no third-party
library until a source needs one.
"""

from __future__ import annotations

from heretic.prompts.load import load_prompts, load_rows
from heretic.prompts.overlap import (
    Overlap,
    check_classes_differ,
    normalise_prompt,
    overlap_report,
    without,
)
from heretic.prompts.slices import Bound, SplitPart, parse_split
from heretic.prompts.specification import DatasetSpecification, Prompt, PromptSet, content_hash
from heretic.prompts.tables import LoadedRows, Row

__all__ = [
    "Bound",
    "DatasetSpecification",
    "LoadedRows",
    "Overlap",
    "Prompt",
    "PromptSet",
    "Row",
    "SplitPart",
    "check_classes_differ",
    "content_hash",
    "load_prompts",
    "load_rows",
    "normalise_prompt",
    "overlap_report",
    "parse_split",
    "without",
]
