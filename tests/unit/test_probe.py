# SPDX-License-Identifier: Apache-2.0
"""Probes: filter and pattern, labels, held-out accuracy (algorithms 3.4, requirements 5.3)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from heretic.directions.contrast import METHODS, Contrast
from heretic.directions.difference import difference
from heretic.directions.probe import probe, probe_labels
from heretic.exceptions import ExtractionError, SupervisedProbeError
from heretic.linalg.logistic import InnerProducts, cross_fitted_logits, fit_logistic

L, D, N = 2, 48, 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def axes(count: int = 4, width: int = D) -> Tensor:
    """Orthonormal rows [count, width]: ordinary activity, behaviour, topic, another one."""
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator(7)))
    return torch.as_tensor(basis.T[:count].contiguous())


def noise(count: int, seed: int, width: int = D) -> Tensor:
    """[count, L, width] with variances that fall as 1 / index along axes of their own."""
    source = generator(seed)
    rows = torch.randn(count, L, width, generator=source) * torch.arange(1, width + 1) ** -0.5
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator(8)))
    return torch.as_tensor(rows @ turn)


def planted(
    signal: float, topic: float = 0.0, *, showed: int | None = None, width: int = D, count: int = N
) -> Contrast:
    """Prompts on a topic, of which the first `showed` (None = all) show the behaviour."""
    ordinary, behaviour, about, _ = axes(width=width)
    target = noise(count, 1, width) + 4 * ordinary + topic * about
    target[:showed] += signal * behaviour
    labels = None if showed is None else torch.arange(count) < showed
    return Contrast(target, noise(count, 2, width) + 4 * ordinary, showed=labels)


def rebuilt(contrast: Contrast, matrix: Tensor) -> Contrast:
    return Contrast(contrast.target @ matrix, contrast.control @ matrix, showed=contrast.showed)


def figures(bank_provenance: object) -> list[float]:
    assert isinstance(bank_provenance, list)
    return [float(value) for value in bank_provenance]


@pytest.mark.parametrize(("count", "width"), [(60, 150), (150, 20)])
def test_the_regression_is_the_optimum_in_the_span_of_the_samples(count: int, width: int) -> None:
    """The loss in all coordinates has no slope at w = XT a, 1e-6; control: at the optimum of another penalty it has."""
    samples = torch.randn(count, width, generator=generator(), dtype=torch.float64)
    positive = torch.arange(count) < count // 3
    samples[positive, 0] += 2.0
    products = InnerProducts.of(samples)
    assert products.is_gram == (count < width)

    def slope(strength: float) -> float:
        fitted = fit_logistic(products, positive, strength=strength)
        assert fitted.converged
        weights = (samples.T @ fitted.dual).requires_grad_()
        intercept = torch.tensor(fitted.intercept, dtype=torch.float64, requires_grad=True)
        signs = torch.where(positive, 1.0, -1.0)
        # C N / (2 N_y) with C = 1: one third and two thirds of the samples.
        costs = torch.where(positive, 3 / 2, 3 / 4)
        losses = costs * softplus(-signs * (samples @ weights + intercept))
        (weights.square().sum() / 2 + losses.sum()).backward()
        assert weights.grad is not None
        assert intercept.grad is not None
        return float(weights.grad.norm() + intercept.grad.abs())

    assert slope(1.0) < 1e-6
    assert slope(0.5) > 0.1
    assert not fit_logistic(products, positive, iterations=2).converged


def test_held_out_scores_do_not_see_their_own_labels() -> None:
    """A sample's score stays the same when its fold's labels are hidden from the fit; in sample it would not."""
    samples = torch.randn(40, 100, generator=generator(), dtype=torch.float64)
    positive = torch.arange(40) < 20
    products = InnerProducts.of(samples)
    logits, _ = cross_fitted_logits(products, positive, folds=20, generator=generator(1))
    # 20 folds of one sample of each label: find the partner of sample 0 by refitting without both.
    without = torch.ones(40, dtype=torch.bool)
    without[0] = False
    scores = []
    for partner in range(20, 40):
        kept = without.clone()
        kept[partner] = False
        fitted = fit_logistic(InnerProducts.of(samples[kept]), positive[kept])
        scores.append(float(samples[0] @ (samples[kept].T @ fitted.dual)) + fitted.intercept)
    assert min(abs(score - float(logits[0])) for score in scores) < 1e-6
    full = fit_logistic(products, positive)
    assert abs(float(samples[0] @ (samples.T @ full.dual)) + full.intercept - float(logits[0])) > 0.1


@pytest.mark.parametrize("width", [D, 4 * N])
def test_the_pattern_is_the_planted_direction_and_the_filter_is_not(width: int) -> None:
    """Sections 3.0 and 3.4: cosine above 0.95 with the plant, D . r = 1; control: what is read points elsewhere."""
    contrast = planted(3.0, width=width)
    bank = probe(contrast)
    behaviour = axes(width=width)[1]
    assert bank.directions.shape == (L, 1, width)
    assert bank.covectors is not None
    read = bank.covectors[:, 0]
    assert float((bank.directions[:, 0] @ behaviour).min()) > 0.95
    assert torch.allclose(bank.directions.norm(dim=2), torch.ones(L, 1), atol=1e-6)
    assert torch.allclose((bank.directions[:, 0] * read).sum(dim=1), torch.ones(L), atol=1e-5)
    assert float(cosine_similarity(read, behaviour[None]).max()) < 0.95
    assert torch.allclose(bank.spread, torch.full((L, 1), 3.0), rtol=0.1)
    back = probe(Contrast(contrast.control, contrast.target), project=False)
    assert float((back.directions[:, 0] @ behaviour).max()) < -0.95
    assert METHODS["probe"] is probe


def test_the_behaviour_is_found_beside_a_topic_that_the_classes_differ_in() -> None:
    """R-PRB-05: labels within the target prompts; control: the difference and the class labels find the topic too."""
    contrast = planted(3.0, topic=6.0, showed=N // 2)
    bank = probe(contrast)
    _, behaviour, topic, _ = axes()
    assert float((bank.directions[:, 0] @ behaviour).min()) > 0.93
    assert float((bank.directions[:, 0] @ topic).abs().max()) < 0.1
    assert bank.provenance["label_source"] == "replies"
    assert bank.provenance["label_reason"] is None
    assert bank.provenance["label_counts"] == [N // 2, N // 2]
    assert min(figures(bank.provenance["accuracy"])) > 0.8
    by_class = probe(Contrast(contrast.target, contrast.control))
    for other in (difference(contrast), by_class):
        assert float((other.directions[:, 0] @ topic).min()) > 0.9
    showed = contrast.showed
    assert showed is not None
    flipped = probe(Contrast(contrast.target, contrast.control, showed=~showed))
    assert float((flipped.directions[:, 0] @ behaviour).max()) < -0.93, "from not showing to showing"


def test_too_few_replies_of_a_kind_fall_back_to_the_classes_and_say_so() -> None:
    """R-PRB-02: 10 of each; strict settings refuse. A model that always shows the behaviour is no error."""
    for showed, counts in ((N, "60 show the behaviour and 0"), (9, "9 show the behaviour and 51")):
        bank = probe(planted(3.0, topic=3.0, showed=showed))
        assert bank.provenance["label_source"] == "classes"
        assert bank.provenance["label_counts"] == [N, N]
        assert counts in str(bank.provenance["label_reason"])
        with pytest.raises(SupervisedProbeError, match=counts) as caught:
            probe(planted(3.0, showed=showed), strict=True)
        assert "--no-ensemble-probe-pca" in str(caught.value.hint)
    assert "no replies" in str(probe_labels(planted(3.0)).reason)
    assert probe_labels(planted(3.0, showed=10), strict=True).source == "replies", "control: 10 are enough"
    with pytest.raises(SupervisedProbeError, match="9 bad and 60 good"):
        probe(Contrast(planted(3.0).target[:9], planted(3.0).control))


def test_shuffled_labels_do_not_pass_the_floor() -> None:
    """Held out they are worth one half; control: in the sample the same probe tells every prompt apart."""
    width = 2 * N
    pool = torch.cat([planted(0.0, width=width).target, planted(0.0, width=width).control])
    pool = pool[torch.randperm(2 * N, generator=generator())]
    contrast = Contrast(pool[:N], pool[N:])
    bank = probe(contrast, floor=0.0)
    for key in ("accuracy", "auroc"):
        assert all(0.35 < figure < 0.65 for figure in figures(bank.provenance[key]))
    best = max(figures(bank.provenance["accuracy"]))
    with pytest.raises(
        SupervisedProbeError, match=rf"accuracy of {best:.2f} .*below the floor of 0\.65"
    ) as caught:
        probe(contrast)
    assert "trigger the behaviour" in str(caught.value.hint)
    samples = pool[:, 0].double() - pool[:, 0].double().mean(dim=0)
    samples = samples / samples.std(dim=0)
    fitted = fit_logistic(InnerProducts.of(samples), torch.arange(2 * N) < N)
    scores = samples @ (samples.T @ fitted.dual) + fitted.intercept
    assert bool(((scores > 0) == (torch.arange(2 * N) < N)).all())


def test_unequal_numbers_of_labels_do_not_hide_a_separable_behaviour() -> None:
    """Both labels count alike in the fit and in the accuracy: 12 against 48 still pass."""
    bank = probe(planted(6.0, showed=12))
    assert min(figures(bank.provenance["accuracy"])) > 0.9
    with pytest.raises(SupervisedProbeError):
        probe(planted(0.0, showed=12), floor=0.7)


def test_neither_direction_nor_reading_contains_what_is_protected() -> None:
    """Also not the control mean, a fixed point of the edit; control: without protection and projection both do."""
    contrast = planted(3.0, topic=3.0)
    ordinary, behaviour, topic, _ = axes()
    shared = (0.8 * topic + 0.6 * axes()[3])[None, None].expand(L, 1, D)
    bank = probe(contrast.guarded(shared))
    open_bank = probe(contrast, project=False)
    assert bank.covectors is not None
    assert open_bank.covectors is not None
    mean = contrast.means()[1].float()
    mean = mean / mean.norm(dim=1, keepdim=True)
    for rows, others in (
        (bank.directions, open_bank.directions),
        (bank.covectors, open_bank.covectors),
    ):
        assert float((rows[:, 0] * shared[:, 0]).sum(dim=1).abs().max()) < 1e-6
        assert float((rows[:, 0] * mean).sum(dim=1).abs().max()) < 1e-6
        assert float((others[:, 0] * shared[:, 0]).sum(dim=1).abs().min()) > 0.1
    assert float((open_bank.covectors[:, 0] * mean).sum(dim=1).abs().max()) > 1e-2
    assert float((bank.directions[:, 0] @ behaviour).min()) > 0.7
    assert bool(ordinary.any())


def test_a_behaviour_that_is_wholly_protected_is_an_error() -> None:
    everything = torch.eye(D)[None].expand(L, D, D)
    with pytest.raises(ExtractionError, match="0\\.50"):
        probe(planted(6.0).guarded(everything))
    behaviour = axes()[1:2][None].expand(L, 1, D)
    with pytest.raises(SupervisedProbeError, match="below the floor"):
        probe(planted(6.0).guarded(behaviour))


def test_a_channel_in_another_unit_changes_the_units_of_the_result_only() -> None:
    """Standardising: fit(X S) has the pattern p S and the filter w S^-1; control: without scaling it does not."""
    contrast = planted(2.0)
    scale = torch.logspace(-2, 2, D)
    plain, scaled = probe(contrast, project=False), probe(rebuilt(contrast, scale.diag()), project=False)
    assert plain.covectors is not None
    assert scaled.covectors is not None
    moved = plain.directions * scale
    assert torch.allclose(scaled.directions, moved / moved.norm(dim=2, keepdim=True), atol=1e-4)
    read = plain.covectors / scale * moved.norm(dim=2, keepdim=True)
    assert float((scaled.covectors - read).norm() / read.norm()) < 1e-4
    before, after = figures(plain.provenance["auroc"]), figures(scaled.provenance["auroc"])
    assert before == pytest.approx(after, abs=1e-6)
    unscaled = [difference(c, project=False).directions for c in (contrast, rebuilt(contrast, scale.diag()))]
    assert not torch.allclose(unscaled[0], unscaled[1], atol=0.1)


def test_the_order_of_prompts_and_dead_channels_change_nothing() -> None:
    contrast = planted(3.0, showed=N // 2)
    order = torch.randperm(N, generator=generator(4))
    assert contrast.showed is not None
    shuffled = Contrast(contrast.target[order], contrast.control, showed=contrast.showed[order])
    assert torch.allclose(probe(shuffled).directions, probe(contrast).directions, atol=1e-5)
    for row in (contrast.target, contrast.control):
        row[:, :, 0] = 100.0
    bank = probe(contrast, project=False)
    assert not bool(bank.directions[:, 0, 0].any())
    assert bool(torch.isfinite(bank.directions).all())


def test_classes_without_a_difference_are_an_error_and_a_single_such_layer_is_not() -> None:
    contrast = planted(6.0)
    with pytest.raises(SupervisedProbeError, match=r"0\.\d\d at best"):
        probe(Contrast(contrast.control, contrast.control), floor=0.0)
    contrast.target[:, 1] = contrast.control[:, 1]
    bank = probe(contrast)
    assert bank.provenance["borrowed"] == [[1, 0]]
    assert float(bank.directions[1, 0] @ bank.directions[0, 0]) > 0.95
    assert bank.covectors is not None
    assert torch.equal(bank.covectors[1], bank.directions[1])
    assert figures(bank.provenance["accuracy"])[1] == 0.5


def test_a_fit_that_does_not_converge_is_an_error_with_its_figures() -> None:
    with pytest.raises(
        SupervisedProbeError, match=r"layer 0 did not converge in 2 iterations.* \d\.\de[-+]\d\d"
    ):
        probe(planted(3.0), iterations=2)
    broken = planted(3.0)
    broken.target[3, 1, 5] = math.inf
    with pytest.raises(SupervisedProbeError, match="layer 1 did not converge"):
        probe(broken)
