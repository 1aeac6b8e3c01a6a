# SPDX-License-Identifier: Apache-2.0
"""A direction from what the model does: the pattern that a linear probe of its behaviour detects (algorithms 3.4).

    z = (x - mean) / sd,   w~ = L2 logistic regression of the labels on z,   w = w~ / sd
    p = Sigma w,           r = p / |p|,   D = w / (wT r)

w is a filter, what to read; the pattern p carries the signal and is what to remove. Labels are what the base model did
with the target prompts, where both happened often enough; otherwise the classes of the prompts, whose topic the probe
then finds as well.

Sigma is the covariance where both labels are equally frequent, Sigma_within + gap gapT / 4. By theory it gives the same
direction as Sigma_within alone, since Sigma_within w is parallel to the gap as well. But where samples are fewer than
coordinates the filter gives nearly the same score to all samples of a label, so that Sigma_within w is made of what is
left over: the cosine with a planted direction was 0.54 (d = 512, 100 samples of each label) against 0.97.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import METHODS, Contrast
from heretic.directions.difference import SCALE_ONLY, forbidden_basis
from heretic.exceptions import SupervisedProbeError
from heretic.linalg.logistic import ITERATIONS, TOLERANCE, InnerProducts, cross_fitted_logits, fit_logistic
from heretic.linalg.lowrank import project_out
from heretic.linalg.separation import auroc

LEAST: Final = 10
"""Samples that each label needs (requirements R-PRB-02)."""

HINT: Final = (
    "Check that the bad prompts trigger the behaviour; leave out the probe with --no-ensemble-probe-pca."
)


@dataclass(frozen=True, slots=True, eq=False)
class ProbeLabels:
    """What a probe learns to tell apart.

    source: "replies", the target prompts by what the base model did with them, or "classes", all prompts by their
    class. positive: [n] bool over the target prompts, or over target and then control prompts. reason: why it is not
    the replies, None where it is.
    """

    source: Literal["replies", "classes"]
    positive: Tensor
    reason: str | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """Samples with and without the behaviour."""
        count = int(self.positive.sum())
        return count, len(self.positive) - count

    def samples(self, contrast: Contrast, layer: int) -> Tensor:
        """The labelled residuals of one layer, [n, d] float64."""
        target, control = contrast.at(layer)
        return target if self.source == "replies" else torch.cat([target, control])


def probe_labels(contrast: Contrast, *, strict: bool = False) -> ProbeLabels:
    """The labels of a contrast: `showed` with at least 10 samples of each, else the classes of the prompts.

    Raises `SupervisedProbeError` where a class has fewer than 10 prompts too, or with `strict`, where the replies do
    not serve.
    """
    if contrast.showed is None:
        reason = "no replies of the base model were labelled"
    else:
        positive = contrast.showed.bool()
        assert len(positive) == len(contrast.target), "one label for each target prompt"
        labels = ProbeLabels("replies", positive)
        if min(labels.counts) >= LEAST:
            return labels
        reason = (
            f"of {len(positive)} replies of the base model {labels.counts[0]} show the behaviour and "
            f"{labels.counts[1]} do not; {LEAST} of each are needed"
        )
    positive = torch.arange(len(contrast.target) + len(contrast.control)) < len(contrast.target)
    labels = ProbeLabels("classes", positive, reason)
    if strict:
        raise SupervisedProbeError(f"A probe of the behaviour itself is not possible: {reason}.", hint=HINT)
    if min(labels.counts) < LEAST:
        raise SupervisedProbeError(
            f"A probe needs {LEAST} prompts of each class; there are {labels.counts[0]} bad and "
            f"{labels.counts[1]} good ones.",
            hint="Use more prompts (bad_prompts, good_prompts); leave out the probe with --no-ensemble-probe-pca.",
        )
    return labels


def probe(
    contrast: Contrast,
    *,
    floor: float = 0.65,
    strict: bool = False,
    seed: int = 0,
    folds: int = 5,
    project: bool = True,
    iterations: int = ITERATIONS,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The pattern of a probe per layer [L, 1, d] with its filter as covector [L, 1, d].

    The sign is from not showing to showing the behaviour: along r the probe's score rises. Protected directions, and
    with `project` the control mean, are taken out of the samples before the probe is fitted, so that neither r nor D
    contains them and the accuracy is that of what may be used: (I - r DT) leaves the control mean where it is.

    spread: length of the difference of the two labels' means along r. Provenance: `label_source`, `label_reason` and
    the counts; held-out balanced accuracy and AUROC per layer from `folds`-fold cross-fitting; `borrowed`, pairs of a
    layer in which the labels do not differ and where its direction comes from. Channels are standardised over all
    samples, which sees no label, so that one Gram matrix per layer serves all folds.

    Raises `SupervisedProbeError` for too few samples (see `probe_labels` for `strict`), a fit that does not converge
    within `iterations`, and where the accuracy of the best layer is below `floor`.
    """
    labels = probe_labels(contrast, strict=strict)
    generator = torch.Generator().manual_seed(seed)
    fits = [
        _fit(
            contrast, layer, labels, folds=folds, project=project, iterations=iterations, generator=generator
        )
        for layer in range(contrast.layers)
    ]
    _require_accuracy(fits, floor, labels)
    usable = [layer for layer, fit in enumerate(fits) if fit.usable]
    donors = [min(usable, key=lambda other: (abs(other - layer), other)) for layer in range(len(fits))]
    chosen = [
        fits[layer] if layer == donor else _borrowed(fits[donor], fits[layer], layer)
        for layer, donor in enumerate(donors)
    ]
    return DirectionBank(
        directions=torch.stack([fit.pattern for fit in chosen]).float()[:, None],
        spread=torch.tensor([[fit.gap] for fit in chosen], dtype=torch.float32),
        covectors=torch.stack([fit.reading for fit in chosen]).float()[:, None],
        provenance={
            "method": "probe",
            "projected": project,
            "label_source": labels.source,
            "label_reason": labels.reason,
            "label_counts": list(labels.counts),
            "accuracy": [fit.accuracy for fit in fits],
            "auroc": [fit.auroc for fit in fits],
            "floor": floor,
            "folds": folds,
            "borrowed": [[layer, donor] for layer, donor in enumerate(donors) if layer != donor],
            **(provenance or {}),
        },
    )


METHODS.register("probe")(probe)


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """One layer. pattern: r. reading: D. gap: r . (difference of means). accuracy, auroc: held out.

    forbidden: [d, q] orthonormal columns of what r and D may not contain.
    """

    forbidden: Tensor
    pattern: Tensor
    reading: Tensor
    gap: float
    accuracy: float = 0.5
    auroc: float = 0.5
    usable: bool = True


def _fit(
    contrast: Contrast,
    layer: int,
    labels: ProbeLabels,
    *,
    folds: int,
    project: bool,
    iterations: int,
    generator: torch.Generator,
) -> _Fit:
    samples, positive = labels.samples(contrast, layer), labels.positive
    # Against the size of the channel before the projection: what rounding leaves of a channel is no signal.
    size = samples.square().mean(dim=0).sqrt()
    forbidden = forbidden_basis(
        contrast.control[:, layer].double().mean(dim=0), contrast.protected_at(layer), project=project
    )
    samples = project_out(samples, forbidden)
    samples = samples - samples.mean(dim=0)
    deviation = samples.square().mean(dim=0).sqrt()
    alive = deviation > NEAR_ZERO * size
    scale = torch.where(alive, deviation, 1.0).reciprocal() * alive
    standardised = samples * scale
    products = InnerProducts.of(standardised)
    fitted = fit_logistic(products, positive, iterations=iterations)
    _require_converged(fitted.error, layer, iterations)
    gap = samples[positive].mean(dim=0) - samples[~positive].mean(dim=0)
    reading = project_out(((standardised.T @ fitted.dual) * scale)[None], forbidden)[0]
    pattern = _covariance_times(samples, positive, gap, reading)
    if float(reading @ gap) < NEAR_ZERO:
        # Logits have no unit: this is no difference at all, and what is left of the pattern is rounding.
        return _Fit(forbidden, torch.zeros_like(gap), torch.zeros_like(gap), 0.0, usable=False)
    logits, error = cross_fitted_logits(
        products, positive, folds=min(folds, *labels.counts), generator=generator
    )
    _require_converged(error, layer, iterations)
    pattern = pattern / pattern.norm()
    right = (logits > 0) == positive
    return _Fit(
        forbidden=forbidden,
        pattern=pattern,
        reading=reading / (reading @ pattern),
        gap=abs(float(pattern @ gap)),
        accuracy=float(right[positive].double().mean() + right[~positive].double().mean()) / 2,
        auroc=auroc(logits[positive], logits[~positive]),
    )


def _borrowed(donor: _Fit, own: _Fit, layer: int) -> _Fit:
    """The donor's pattern outside what this layer forbids, read by itself: here no filter was fitted."""
    pattern = project_out(donor.pattern[None], own.forbidden)[0]
    length = float(pattern.norm())
    if length < SCALE_ONLY:
        raise SupervisedProbeError(
            f"Layer {layer} has no direction: its labels do not differ, and only {length:.2e} of the direction of the "
            "nearest layer is outside what is protected there.",
            hint="Protect fewer directions; leave out the probe with --no-ensemble-probe-pca.",
        )
    return _Fit(own.forbidden, pattern / length, pattern / length, donor.gap)


def _covariance_times(samples: Tensor, positive: Tensor, gap: Tensor, reading: Tensor) -> Tensor:
    """Sigma w [d] without Sigma: the pooled covariance within the labels, and the gap at equal frequency."""
    scores = samples @ reading
    scores = torch.where(positive, scores - scores[positive].mean(), scores - scores[~positive].mean())
    # The scores sum to zero within each label, so the means of the samples need not be taken off.
    return samples.T @ scores / (len(samples) - 2) + gap * (gap @ reading) / 4


def _require_converged(error: float, layer: int, iterations: int) -> None:
    if not error <= TOLERANCE:
        raise SupervisedProbeError(
            f"The probe of layer {layer} did not converge in {iterations} iterations: its optimum is missed by "
            f"{error:.1e}, {TOLERANCE:.0e} is allowed.",
            hint="Check the residuals for extreme values; leave out the probe with --no-ensemble-probe-pca.",
        )


def _require_accuracy(fits: list[_Fit], floor: float, labels: ProbeLabels) -> None:
    best = max(range(len(fits)), key=lambda layer: fits[layer].accuracy)
    accuracy, unusable = fits[best].accuracy, not any(fit.usable for fit in fits)
    if accuracy < floor or unusable:
        told = "what the model did" if labels.source == "replies" else "the classes of prompts"
        raise SupervisedProbeError(
            f"A probe tells {told} apart with a held-out balanced accuracy of {accuracy:.2f} at best (layer {best}), "
            f"below the floor of {floor:.2f}; {labels.counts[0]} and {labels.counts[1]} samples.",
            hint=HINT,
        )
