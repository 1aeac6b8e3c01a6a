# SPDX-License-Identifier: Apache-2.0
"""Which query heads write a direction: inputs and outputs of writers, divided among the heads (algorithms 4.6).

    c_(l,h)(x) = rT W[:, h] z_h,      sum_h c_(l,h) + rT b = rT y
    importance_(l,h) = mean over target - mean over control of c_(l,h)

Behind a norm with gain the stream receives G v / rms(v), so r becomes G r there and c is divided by rms(v).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from heretic.architectures.site import Site
from heretic.constants import NEAR_ZERO
from heretic.directions.findings import Head
from heretic.exceptions import CircuitAblationError, ConfigurationError
from heretic.interventions.heads import HeadLayout
from heretic.interventions.writers import Writers
from heretic.linalg.lowrank import read_rows
from heretic.model.model import Model
from heretic.publish import translate_os_error, write_file
from heretic.residuals import Prepare, Run, Tap, Tokens, captured

logger = logging.getLogger("heretic.attribution")

CHANCE = 0.99
"""Share of shuffled labellings whose largest head stays below the chance level."""

SHUFFLES = 200
"""Twenty shuffles cannot tell a 99th percentile of their maximum."""


def capture_inputs(
    model: Model,
    sequences: Sequence[Tokens],
    sites: Sequence[Site],
    *,
    run: Run,
    prepare: Prepare | None = None,
    replies: Sequence[Tokens] | None = None,
) -> dict[Site, Tensor]:
    """Writer -> its input z [n, m] float32, after any gate or norm on it, at the last position of each sequence.

    With replies the mean over the reply's tokens. `run` and `prepare` as in `residuals.capture`. Raises
    `ConfigurationError` for writers whose input no module shows (routed experts), else as `residuals.captured`.
    """
    for site in sites:
        if (
            site.experts is not None
            or site.hook != site.path.rpartition(".")[0]
            or site.component == "embedding"
        ):
            raise ConfigurationError(
                f"What {site.path} is given cannot be read: no module of its own sees every token.",
                hint="Leave routed experts and the embedding out.",
            )
    taps = [Tap(site.hook, site.path, inputs=True) for site in sites]
    return _at_sites(model, sequences, sites, taps, run, prepare, replies)


def capture_writes(
    model: Model,
    sequences: Sequence[Tokens],
    sites: Sequence[Site],
    *,
    run: Run,
    prepare: Prepare | None = None,
    replies: Sequence[Tokens] | None = None,
) -> dict[Site, Tensor]:
    """Writer -> what it writes, y [n, d] float32 with its bias and before any norm behind it; else as `capture_inputs`.

    Writers that share a hook (the experts of a block) all have the sum that their hook returns.
    """
    taps = [Tap(site.hook, site.path) for site in sites]
    return _at_sites(model, sequences, sites, taps, run, prepare, replies)


def _at_sites(
    model: Model,
    sequences: Sequence[Tokens],
    sites: Sequence[Site],
    taps: Sequence[Tap],
    run: Run,
    prepare: Prepare | None,
    replies: Sequence[Tokens] | None,
) -> dict[Site, Tensor]:
    if not sites:
        return {}
    flat, widths = captured(model, sequences, taps, run=run, prepare=prepare, replies=replies)
    return dict(zip(sites, flat.split(widths, dim=1), strict=True))


def head_contributions(
    inputs: Mapping[Site, Tensor],
    writers: Writers,
    directions: Tensor,
    layouts: Mapping[Site, HeadLayout],
) -> dict[Site, Tensor]:
    """Writer -> c [n, H] float64: what each query head adds to the stream along the direction of its layer.

    inputs: from `capture_inputs`, [n, m] each. directions: [L, d]. layouts: of the writers to divide (`head_layouts`);
    others are left out. They add up to rT (y - b) within 1e-6 of |y| (`attribution_error`); behind a norm, where rms is
    no linear function, for inputs of single positions only.
    """
    return {
        site: _contributions(inputs[site], writers, directions[site.layer], site, layout)
        for site, layout in layouts.items()
    }


def _contributions(
    inputs: Tensor, writers: Writers, direction: Tensor, site: Site, layout: HeadLayout
) -> Tensor:
    weight = writers.weight(site)
    reading, divisor = direction.to(weight), torch.ones(len(inputs), dtype=torch.float64)
    gamma = writers.gain(site)
    if gamma is not None:
        assert site.gain is not None
        reading = gamma.to(weight) * reading
        bias, given = writers.bias(site), inputs.to(weight)
        written = given @ (weight.T if site.residual_axis == 0 else weight)
        written = written if bias is None else written + bias
        if site.gain.kind == "layer":
            reading = reading - reading.mean()
            written = written - written.mean(dim=1, keepdim=True)
        divisor = written.double().square().mean(dim=1).sqrt().cpu()
    row = read_rows(weight, reading[:, None], site.residual_axis)[0].double().cpu()
    parts = (inputs.double() * row).view(len(inputs), layout.heads, layout.size).sum(dim=2)
    return parts / divisor.clamp_min(torch.finfo(torch.float32).tiny)[:, None]


def attribution_error(contributions: Tensor, writes: Tensor, bias: Tensor | None, direction: Tensor) -> float:
    """Largest |sum_h c + rT b - rT y| / |y| over prompts: whether the heads explain what was written.

    For a writer without a norm behind it. contributions: [n, H]. writes: y [n, d]. bias: [d] or None. direction: [d].
    """
    unit, written = direction.double(), writes.double()
    total = contributions.sum(dim=1) - written @ unit
    total = total if bias is None else total + bias.double().cpu() @ unit
    return float((total.abs() / written.norm(dim=1).clamp_min(NEAR_ZERO)).max())


@dataclass(frozen=True, slots=True, eq=False)
class HeadImportance:
    """All query heads of a model, in the order of their sites.

    places: (layer, head). importance: [N] float64, signed, in units of the direction. chance: [N] float64: in 99 of 100
    shuffled labellings no head exceeds its own; the level differs with the spread of a head's contributions.
    """

    places: tuple[tuple[int, int], ...]
    importance: Tensor
    chance: Tensor

    @property
    def shares(self) -> Tensor:
        """[N] importance relative to the sum of all its absolute values."""
        total = self.importance.abs().sum()
        return self.importance / total if float(total) > 0 else torch.zeros_like(self.importance)


def head_importance(
    target: Mapping[Site, Tensor],
    control: Mapping[Site, Tensor],
    writers: Writers,
    directions: Tensor,
    layouts: Mapping[Site, HeadLayout],
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> HeadImportance:
    """The contrast of both classes, and what chance makes of it (algorithms 4.6).

    target, control: inputs of the writers, see `head_contributions` for these and the next three. The chance level is
    the 99th percentile, over shuffled labels, of the largest head, each measured in its own standard errors: a
    percentile over heads would let one in a hundred through whatever the labels are.
    """
    if not layouts:
        return HeadImportance((), torch.zeros(0), torch.zeros(0))
    sides = []
    for inputs in (target, control):
        parts = head_contributions(inputs, writers, directions, layouts)
        sides.append(torch.cat([parts[site] for site in layouts], dim=1))
    scores = torch.cat(sides)
    labels = torch.zeros(1, len(scores), dtype=torch.bool)
    labels[0, : len(sides[0])] = True
    difference, error = _contrast(scores, labels)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(scores), generator=generator) for _ in range(shuffles)]
    differences, errors = _contrast(scores, torch.cat([labels[:, order] for order in orders]))
    largest = (differences.abs() / errors).amax(dim=1)
    level = torch.quantile(largest, CHANCE, interpolation="higher")
    places = tuple((site.layer, head) for site, layout in layouts.items() for head in range(layout.heads))
    return HeadImportance(places, difference[0], level * error[0])


def _contrast(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of class means and its standard error, both [s, N]; scores [n, N], labels [s, n] bool."""
    centred = scores - scores.mean(dim=0)
    means, errors = [], []
    for chosen in (labels, ~labels):
        mask = chosen.to(scores.dtype)
        size = mask.sum(dim=1, keepdim=True)
        mean = mask @ centred / size
        variance = (mask @ centred.square() / size - mean.square()).clamp_min(0.0)
        means.append(mean)
        errors.append(variance / (size - 1.0).clamp_min(1.0))
    error = (errors[0] + errors[1]).sqrt()
    # A head that writes the same always has none: beside the others it counts as exactly so little.
    floor = NEAR_ZERO * error.square().mean(dim=1, keepdim=True).sqrt()
    return means[0] - means[1], error.clamp_min(torch.finfo(error.dtype).tiny).maximum(floor)


def chosen_heads(importance: HeadImportance, *, count: int, threshold: float) -> tuple[Head, ...]:
    """At most `count` heads by falling |importance|, each above its chance level and `threshold` times the strongest.

    Their importance is given relative to the sum over all heads, with its sign. Raises `CircuitAblationError` with the
    largest value seen when none passes.
    """
    sizes = importance.importance.abs()
    if not len(sizes):
        raise CircuitAblationError(
            "This model has no query heads that write into the residual stream.",
            hint="Use a strategy that edits whole layers: --strategy single.",
        )
    order = sizes.argsort(descending=True, stable=True).tolist()
    strongest = order[0]
    passing = [
        head
        for head in order
        if sizes[head] > importance.chance[head] and sizes[head] >= threshold * sizes[strongest]
    ]
    if not passing:
        layer, head = importance.places[strongest]
        raise CircuitAblationError(
            f"No attention head carries the behaviour: the largest importance is {float(sizes[strongest]):.3g} (head "
            f"{head} of layer {layer}, {float(importance.shares[strongest].abs()):.0%} of the sum), where chance alone "
            f"reaches {float(importance.chance[strongest]):.3g}.",
            hint="Use more prompts, or a strategy that edits whole layers: --strategy single.",
            data={"largest": _plain(sizes[strongest]), "chance": _plain(importance.chance[strongest])},
        )
    shares = importance.shares.tolist()
    places = [importance.places[number] for number in passing[:count]]
    return tuple(
        Head(layer, head, shares[number]) for (layer, head), number in zip(places, passing, strict=False)
    )


def _plain(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


CACHE_VERSION = 1
LARGEST_CACHE = 2**20


@dataclass(frozen=True, slots=True)
class HeadCache:
    """Heads and what they were found with (R-FMT-06). key: model revision, data hash, direction hash and parameters, as
    JSON values. heads: by falling importance."""

    key: Mapping[str, object]
    heads: tuple[Head, ...]


def write_cache(path: Path, cache: HeadCache) -> None:
    """Write the file, all of it or nothing; raises `FileOperationError`, `DiskSpaceError`."""
    document = {
        "version": CACHE_VERSION,
        "key": dict(cache.key),
        "heads": [asdict(head) for head in cache.heads],
    }
    write_file(path, (json.dumps(document, indent=1) + "\n").encode("utf-8"))


def read_cache(path: Path, key: Mapping[str, object]) -> HeadCache | None:
    """The stored heads; None where there is no file or it was made with another key: they have to be found again.

    Raises `ConfigurationError` for a file that is no circuit cache: it might be somebody's work.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST_CACHE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translate_os_error(error, path) from error
    try:
        document = json.loads(data.decode("utf-8"))
        version, stored, heads = document["version"], document["key"], document["heads"]
        if not isinstance(stored, dict) or not isinstance(heads, list) or not heads:
            raise ValueError("it names no heads")
        found = tuple(_head(entry) for entry in heads) if version == CACHE_VERSION else ()
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is not a circuit cache ({type(error).__name__}: {error}).",
            hint="Delete it, or name another file with --circuit-cache-path.",
        ) from error
    wanted = json.loads(json.dumps(dict(key)))
    if version != CACHE_VERSION or stored != wanted:
        changed = sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name))
        logger.info(
            "%s was made with other %s; the heads are found again", path, ", ".join(changed) or "version"
        )
        return None
    return HeadCache(wanted, found)


def _head(entry: Mapping[str, object]) -> Head:
    layer, head, importance = entry["layer"], entry["head"], entry["importance"]
    numbers = [value for value in (layer, head) if isinstance(value, int) and not isinstance(value, bool)]
    if len(numbers) < 2 or min(numbers) < 0:
        raise ValueError(f"a head at layer {layer!r}, number {head!r}")
    if not isinstance(importance, int | float) or not math.isfinite(importance):
        raise ValueError(f"an importance of {importance!r}")
    return Head(numbers[0], numbers[1], float(importance))
