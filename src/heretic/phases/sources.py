# SPDX-License-Identifier: Apache-2.0
"""Candidate sources of the direction, and which of them the search may choose from (requirements R-DIR-04, 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from heretic.directions.bank import DirectionBank
from heretic.directions.covector import with_covectors
from heretic.directions.ensemble import ensemble_of
from heretic.directions.probe import probe
from heretic.interventions.hooks import Edits
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.writers import Writers
from heretic.linalg.intervals import wilson
from heretic.prompts import Prompt

if TYPE_CHECKING:
    from heretic.phases.direction_extraction import Extraction

CAUSAL_PROMPTS: Final = 16
"""Direction prompts on which the candidates are compared; the first of the set, the same for all."""

BENIGN_PROMPTS: Final = 128
BENIGN_POSITIONS: Final = 4
"""Benign prompts, and positions of each with its reply, that the covariance of co-vectors is measured at. All prompts
would double the time to the first trial on a small model and gain nothing on it."""

Shown = Callable[[Sequence[Edits], Sequence[Prompt]], list[int]]
"""(edits, prompts) -> how many replies show the behaviour under each."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """covector, probe, ensemble: whether each is a candidate. weight_probe, weight_components: shares of the ensemble.
    floor: least held-out balanced accuracy of a probe. shown: measures the effect of an edit; None = no comparison.
    base_rate: of the behaviour on prompts of the same kind without an edit."""

    covector: bool = False
    probe: bool = False
    ensemble: bool = False
    weight_probe: float = 0.7
    weight_components: float = 0.3
    floor: float = 0.65
    shown: Shown | None = None
    base_rate: float = 0.0


def candidate_sources(work: Extraction, bank: DirectionBank, layer: int) -> Mapping[str, DirectionBank]:
    """Name -> bank, `difference` first. A candidate that is clearly worse than it is dropped with the reason.

    layer: the one that separates best, at which the candidates are compared.
    """
    options = work.options.sources
    found = {"difference": bank}
    if work.options.strategy not in ("single", "heads", "caa"):
        return found
    if options.covector:
        read = work.attempt("use_covectors", lambda: read_by_covectors(work, bank))
        found |= {} if read is None else {"covector": read}
    if options.probe or options.ensemble:
        found |= _probed(work, bank)
    return _surviving(work, found, layer)


def read_by_covectors(work: Extraction, bank: DirectionBank) -> DirectionBank:
    """The same directions, measured by co-vectors that benign activity hardly moves at any position (3.6)."""
    options = work.options
    prompts = work.bundle.good.prompts[:BENIGN_PROMPTS]
    benign = work.captures.anywhere(prompts, each=BENIGN_POSITIONS, seed=options.seed)
    return with_covectors(
        bank,
        benign,
        shrinkage=options.shrinkage,
        protected=work.contrast.protected,
        unmoved=work.contrast.means()[1] if options.project else None,
    )


def _probed(work: Extraction, bank: DirectionBank) -> dict[str, DirectionBank]:
    """Probe and ensemble, as far as they are asked for and can be had."""
    options, found = work.options.sources, dict[str, DirectionBank]()
    switch = "use_supervised_probing" if options.probe else "ensemble_probe_pca"
    probed = work.attempt(switch, lambda: _probe(work))
    if probed is None:
        return found
    if options.probe:
        found["probe"] = probed
    if options.ensemble:
        weights = (options.weight_probe, options.weight_components)
        found["ensemble"] = ensemble_of([probed, bank], weights, bank)
    said = {key: probed.provenance[key] for key in ("label_source", "label_reason", "accuracy", "auroc")}
    work.notes["probe"] = said
    if said["label_source"] != "replies":
        work.degradations.append(f"probe: labelled by the class of the prompt ({said['label_reason']})")
    return found


def _probe(work: Extraction) -> DirectionBank:
    showed = work.captures.showed(work.bundle.bad.prompts)
    contrast = replace(work.contrast, showed=showed)
    return probe(
        contrast,
        floor=work.options.sources.floor,
        strict="strict" in work.options.explicit,
        seed=work.options.seed,
        project=work.options.project,
    )


def _surviving(
    work: Extraction, found: Mapping[str, DirectionBank], layer: int
) -> Mapping[str, DirectionBank]:
    """Without the candidates whose full removal leaves clearly more of the behaviour than that of the difference."""
    options = work.options.sources
    shown = options.shown
    if shown is None:
        return found
    prompts = work.bundle.bad.prompts[:CAUSAL_PROMPTS]
    counts = dict(zip(found, shown([_removed(work, b, layer) for b in found.values()], prompts), strict=True))
    work.notes["causal"] = {"layer": layer, "prompts": len(prompts), "shown": counts}
    _note_without_effect(work, round(options.base_rate * len(prompts)), counts, layer)
    highest = wilson(counts["difference"], len(prompts)).high
    kept = {}
    for name, bank in found.items():
        if name != "difference" and wilson(counts[name], len(prompts)).low > highest:
            work.degradations.append(
                f"direction_source {name} left out: its removal leaves the behaviour in {counts[name]} of "
                f"{len(prompts)} replies, that of the difference in {counts['difference']}"
            )
            continue
        kept[name] = bank
    return kept


def _note_without_effect(work: Extraction, before: int, counts: Mapping[str, int], layer: int) -> None:
    """The verdict that nothing causal was found (R-DIR-08): no full removal can be told from no edit at all."""
    total = min(CAUSAL_PROMPTS, len(work.bundle.bad.prompts))
    lowest = wilson(before, total).low
    if before and all(wilson(count, total).high >= lowest for count in counts.values()):
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        work.warnings.append(
            f"Not worth editing, as far as {total} prompts can tell: full removal of the direction of layer {layer} "
            f"leaves the behaviour in as many replies as no edit does ({before} expected; {found})."
        )


def _removed(work: Extraction, bank: DirectionBank, layer: int) -> Edits:
    """Full removal of one layer's direction from every writer."""
    model = work.captures.model
    covectors = None if bank.covectors is None else bank.covectors[layer, :1]
    rows = tuple(
        PlanRow(site, bank.directions[layer, :1], torch.ones(1), covectors=covectors)
        for site in model.architecture.sites
    )
    return Plan(rows).edits(Writers(model.network))
