# SPDX-License-Identifier: Apache-2.0
"""Directions that no edit may touch: helpfulness and capability (requirements 5.9, 5.10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from heretic.directions.contrast import Contrast
from heretic.directions.difference import difference
from heretic.directions.preserve import Protection, capability, helpfulness
from heretic.model.tokens import PromptEncoder
from heretic.phases.captures import Captures
from heretic.phases.dataset_loading import DatasetBundle
from heretic.prompts import Prompt


def apply_helpfulness_orthogonalization(
    captures: Captures, bundle: DatasetBundle, contrast: Contrast
) -> Protection | None:
    """What helpful requests have and plain texts have not, of matched length; None where the sets are not there."""
    if bundle.helpfulness is None or bundle.unhelpfulness is None:
        return None
    helpful, plain = matched_lengths(
        captures.model.encoder, bundle.helpfulness.prompts, bundle.unhelpfulness.prompts
    )
    ordinary = contrast.means()[1]
    return helpfulness(
        captures.residuals(helpful), captures.residuals(plain), difference(contrast), ordinary=ordinary
    )


def extract_sacred_directions(
    captures: Captures, bundle: DatasetBundle, contrast: Contrast, *, count: int
) -> Protection | None:
    """Capability directions of knowledge questions against plain text; None where the sets are not there."""
    if bundle.sacred is None or bundle.sacred_baseline is None:
        return None
    found = capability(
        captures.residuals(bundle.sacred.prompts),
        captures.residuals(bundle.sacred_baseline.prompts),
        count=count,
    )
    return found.measured(difference(contrast), ordinary=contrast.means()[1])


def matched_lengths(
    encoder: PromptEncoder, first: Sequence[Prompt], second: Sequence[Prompt]
) -> tuple[list[Prompt], list[Prompt]]:
    """Both sets cut to one distribution of token lengths (R-HLP-02): the n-th longest of each to the shorter of both.

    Without it a difference of format and length is mistaken for helpfulness.
    """
    count = min(len(first), len(second))
    ranked = [sorted(_tokens(encoder, prompts[:count]), key=_length) for prompts in (first, second)]
    cut: tuple[list[Prompt], list[Prompt]] = ([], [])
    for pair in zip(*ranked, strict=True):
        length = min(len(tokens) for _, tokens in pair)
        for (prompt, tokens), chosen in zip(pair, cut, strict=True):
            text = encoder.tokenizer.decode(tokens[:length], skip_special_tokens=True)
            chosen.append(prompt if length == len(tokens) else replace(prompt, text=str(text)))
    return cut


def _tokens(encoder: PromptEncoder, prompts: Sequence[Prompt]) -> list[tuple[Prompt, list[int]]]:
    ids = encoder.tokenizer([prompt.text for prompt in prompts], add_special_tokens=False)["input_ids"]
    return list(zip(prompts, ids, strict=True))


def _length(entry: tuple[Prompt, list[int]]) -> int:
    return len(entry[1])
