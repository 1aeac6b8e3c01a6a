# SPDX-License-Identifier: Apache-2.0
"""Which query heads carry the behaviour (requirements 5.7, algorithms 4.6)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from heretic.attribution import HeadCache, chosen_heads, head_importance, read_cache, write_cache
from heretic.directions.findings import Findings, Head
from heretic.exceptions import CircuitAblationError
from heretic.interventions.heads import head_layouts
from heretic.interventions.writers import Writers

if TYPE_CHECKING:
    from heretic.phases.direction_extraction import Extraction


def with_heads(work: Extraction, findings: Findings) -> Findings:
    """The findings with the heads that carry the behaviour, strongest first; unchanged for other strategies.

    Only heads that write towards the behaviour are kept: taking the direction from one that writes against it would
    add to the behaviour. Raises `CircuitAblationError` when no head does, or the model has no query heads.
    """
    options, model = work.options, work.captures.model
    if options.strategy != "heads":
        return findings
    layouts = head_layouts(model.network, model.architecture.sites)
    if not layouts:
        raise CircuitAblationError(
            "This model has no output projection that is divided into query heads.",
            hint="Use --strategy single or subspace.",
        )
    cache, key = options.circuit_cache, _key(work, findings)
    known = None if cache is None else read_cache(cache, key)
    heads = _discovered(work, findings) if known is None else known.heads
    if known is None and cache is not None:
        write_cache(cache, HeadCache(key, heads))
    work.notes["heads"] = [[head.layer, head.head, round(head.importance, 4)] for head in heads]
    return replace(
        findings,
        heads=heads,
        head_sites=frozenset(site.path for site in layouts),
    )


def _discovered(work: Extraction, findings: Findings) -> tuple[Head, ...]:
    options, model = work.options, work.captures.model
    layouts = head_layouts(model.network, model.architecture.sites)
    # On prompts that the directions were not made from, or chance along them would count as importance.
    importance = head_importance(
        work.captures.inputs(work.bundle.bad_evaluation.prompts, list(layouts)),
        work.captures.inputs(work.bundle.good_evaluation.prompts, list(layouts)),
        Writers(model.network),
        findings.bank.directions[:, 0],
        layouts,
        seed=options.seed,
    )
    found = chosen_heads(importance, count=options.head_count, threshold=options.head_threshold)
    heads = tuple(head for head in found if head.importance > 0)
    if not heads:
        raise CircuitAblationError(
            f"The heads that matter write against the behaviour (largest {found[0].importance:.2f} of the sum).",
            hint="Use --strategy single or subspace.",
        )
    return heads


def _key(work: Extraction, findings: Findings) -> dict[str, object]:
    options, source = work.options, work.captures.model.source
    directions = hashlib.sha256(findings.bank.directions.numpy().tobytes()).hexdigest()[:16]
    return {
        "model": source.basename,
        "revision": source.commit,
        "data": [work.bundle.bad_evaluation.content_hash, work.bundle.good_evaluation.content_hash],
        "directions": directions,
        "count": options.head_count,
        "threshold": options.head_threshold,
        "seed": options.seed,
    }
