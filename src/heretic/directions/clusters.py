# SPDX-License-Identifier: Apache-2.0
"""Categories of target prompts, found by the way in which their residuals leave the control mean (algorithms 3.7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.directions.contrast import Contrast, unit_rows
from heretic.exceptions import ConceptConeError

STARTS = 10
"""Runs of k-means, of which the best counts (requirements R-CON-01)."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Categories of the target prompts, the largest first.

    labels: [n+] int64, the cluster of each prompt. silhouettes: mean of each cluster's prompts; silhouette: of all.
    layer: where they were seen. found: False where the caller named the categories. origin, scale: [d] float64, what
    is subtracted and divided by before rows are brought to unit length. centroids: [C, d] float64 of those rows.
    """

    labels: Tensor
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    silhouettes: tuple[float, ...]
    silhouette: float
    layer: int
    found: bool
    origin: Tensor
    scale: Tensor
    centroids: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def assign(self, residuals: Tensor) -> Tensor:
        """The nearest cluster [n] int64 of other prompts, residuals [n, L, d]: for a report on held-out prompts."""
        rows = _features(residuals[:, self.layer].double(), self.origin, self.scale)
        return torch.cdist(rows, self.centroids).argmin(dim=1)


def cluster_prompts(
    contrast: Contrast,
    *,
    count: int,
    minimum: int,
    floor: float,
    seed: int,
    categories: Sequence[str] | None = None,
) -> Clusters:
    """Groups of target prompts by k-means on standardised unit-length rows x_i - mu- of the middle layer.

    count: the most clusters; of 2 ... count the number with the largest silhouette is used, since a forced number cuts
    true clusters apart. minimum: smaller clusters join their nearest. floor: least mean silhouette of found clusters;
    `categories`, one name for each prompt, are used as they are and have none to reach. Independent of the order of
    prompts. Raises `ConceptConeError` with the measured value when fewer than two clusters or no distinct ones exist.
    """
    layer = contrast.layers // 2
    target, control = contrast.at(layer)
    origin, deviation = control.mean(dim=0), target.std(dim=0, correction=0)
    # A channel that never changes says nothing; dividing by infinity leaves it out.
    alive = deviation > NEAR_ZERO * deviation.max()
    scale = torch.where(alive, deviation, torch.inf)
    features = _features(target, origin, scale)
    if categories is None:
        labels = _found(features, (target - origin).norm(dim=1), count, minimum, seed)
        names: tuple[str, ...] = ()
    else:
        labels, names = _named(features, categories, minimum)
    silhouettes = _silhouettes(features, labels)
    clusters = _sorted(labels, names, silhouettes, features)
    if categories is None and clusters.silhouette < floor:
        raise ConceptConeError(
            f"The {len(labels)} target prompts have no distinct categories: silhouette {clusters.silhouette:.3f} with "
            f"{len(clusters)} clusters at layer {layer}, at least {floor:g} is needed.",
            hint="Lower min_silhouette_score, give the prompts a category column, or use strategy = single.",
        )
    return replace(clusters, layer=layer, found=categories is None, origin=origin, scale=scale)


def _features(rows: Tensor, origin: Tensor, scale: Tensor) -> Tensor:
    """Unit rows [n, d]. The origin stays the control mean: from the target mean a large cluster looks like noise."""
    return unit_rows((rows - origin) / scale)


def _found(features: Tensor, lengths: Tensor, count: int, minimum: int, seed: int) -> Tensor:
    """Labels [n] of the best number of clusters."""
    from sklearn.cluster import KMeans

    # Starts are drawn by position, so positions are made independent of the order in which prompts were given.
    order = lengths.argsort()
    points = _coordinates(features[order])
    distinct = len(torch.unique((points * 1e9).round(), dim=0))
    best: tuple[float, Tensor] | None = None
    for number in range(2, min(count, distinct, len(points) - 1) + 1):
        fitted = KMeans(number, n_init=STARTS, random_state=seed % 2**32).fit(points.numpy())
        labels = torch.empty(len(points), dtype=torch.int64)
        labels[order] = torch.as_tensor(fitted.labels_, dtype=torch.int64)
        labels, _ = _merged(features, labels, [""] * number, minimum)
        if int(labels.max()) > 0:
            silhouette = float(_silhouettes(features, labels).mean())
            if best is None or silhouette > best[0]:
                best = silhouette, labels
    if best is None:
        raise _too_few(
            f"{len(points)} target prompts, {distinct} of them distinct, and at most {count} clusters",
            minimum,
        )
    return best[1]


def _named(features: Tensor, categories: Sequence[str], minimum: int) -> tuple[Tensor, tuple[str, ...]]:
    """Labels [n] and names of given categories."""
    if len(categories) != len(features):
        raise ConceptConeError(
            f"There are {len(categories)} categories for {len(features)} target prompts.",
            hint="Each prompt needs one entry in the category column.",
        )
    names = sorted(set(categories))
    given = torch.tensor([names.index(category) for category in categories])
    labels, merged = _merged(features, given, names, minimum)
    if len(merged) < 2:
        sizes = ", ".join(f"{name!r} {categories.count(name)}" for name in names)
        raise _too_few(f"prompts by category: {sizes}", minimum)
    return labels, tuple(merged)


def _too_few(what: str, minimum: int) -> ConceptConeError:
    return ConceptConeError(
        f"Fewer than two categories of at least {minimum} prompts each ({what}).",
        hint="Use more bad prompts, lower min_cone_size, or use strategy = single.",
    )


def _merged(features: Tensor, labels: Tensor, names: list[str], minimum: int) -> tuple[Tensor, list[str]]:
    """Clusters below the minimum size join their nearest, the smallest first; labels [n] become 0 ... C-1."""
    labels, names = labels.clone(), list(names)
    while True:
        values, sizes = labels.unique(return_counts=True)
        if len(values) < 2 or int(sizes.min()) >= minimum:
            break
        centroids = torch.stack([features[labels == value].mean(dim=0) for value in values])
        small = int(sizes.argmin())
        distances = (centroids - centroids[small]).norm(dim=1)
        distances[small] = torch.inf
        source, goal = int(values[small]), int(values[int(distances.argmin())])
        labels[labels == source] = goal
        names[goal] = f"{names[goal]} + {names[source]}"
    return torch.searchsorted(values, labels), [names[int(value)] for value in values]


def _coordinates(rows: Tensor) -> Tensor:
    """[n, min(n, d)] with the distances of rows [n, d]; k-means then costs n, not d, for each distance."""
    triangle: Tensor = torch.linalg.qr((rows - rows.mean(dim=0)).T, mode="r").R
    return triangle.T.contiguous()


def _silhouettes(features: Tensor, labels: Tensor) -> Tensor:
    """[n]; zero where every prompt is a cluster of its own, which says nothing."""
    from sklearn.metrics import silhouette_samples

    if int(labels.max()) + 1 >= len(labels):
        return torch.zeros(len(labels), dtype=torch.float64)
    return torch.as_tensor(silhouette_samples(_coordinates(features).numpy(), labels.numpy()))


def _sorted(labels: Tensor, names: tuple[str, ...], silhouettes: Tensor, features: Tensor) -> Clusters:
    """The record, the largest cluster first and of equal ones the tightest; found clusters are numbered."""
    members = [labels == label for label in range(int(labels.max()) + 1)]
    centroids = [features[own].mean(dim=0) for own in members]
    order = sorted(range(len(members)), key=lambda c: (-int(members[c].sum()), -float(centroids[c].norm())))
    position = torch.empty(len(order), dtype=torch.int64)
    position[order] = torch.arange(len(order))
    return Clusters(
        labels=position[labels],
        names=tuple(names[c] if names else f"cluster {place + 1}" for place, c in enumerate(order)),
        sizes=tuple(int(members[c].sum()) for c in order),
        silhouettes=tuple(float(silhouettes[members[c]].mean()) for c in order),
        silhouette=float(silhouettes.mean()),
        layer=0,
        found=not names,
        origin=torch.empty(0),
        scale=torch.empty(0),
        centroids=torch.stack([centroids[c] for c in order]),
    )
