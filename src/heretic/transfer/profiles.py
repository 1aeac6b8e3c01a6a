# SPDX-License-Identifier: Apache-2.0
"""Where the edit of a model is likely to lie: the table of families, and what is measured for a model of no family."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from heretic.exceptions import NonFiniteError, WarmStartError

UNTOLD: Final = 0.5
"""Effect sizes below it arise without any difference between the classes (algorithms 3.13, shuffled labels)."""

NARROWEST: Final = 0.3
"""The smallest half-width of the table. What one block no longer writes the others still do, so a tent over a single
separable layer would edit next to nothing."""

MEASURED: Final = "measured"
"""Name of a profile that comes from the model itself."""


@dataclass(frozen=True, slots=True)
class FamilyProfile:
    """A prior on the depth kernel (requirements 5.8); depths are relative, 0 = first block, 1 = last.

    peak_weight: strength at the peak. position: depth of the peak. edge_fraction: strength at the edge of the tent as
    a fraction of the peak. half_width: depth between peak and edge. mlp_ratio: factor of the strength of feed-forward
    writers. expected_kl: for information; None where nothing is known. model_types: beginnings of the `model_type`s of
    the family. words: words of model names.
    """

    name: str
    peak_weight: float
    position: float
    edge_fraction: float
    half_width: float
    mlp_ratio: float
    expected_kl: float | None = None
    model_types: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def load_profiles() -> dict[str, FamilyProfile]:
    """The packaged profiles by family name: priors without published evidence (requirements 5.8)."""
    text = (files("heretic") / "data" / "families.toml").read_text(encoding="utf-8")
    profiles: dict[str, FamilyProfile] = {}
    for name, row in tomllib.loads(text).items():
        row |= {key: tuple(row[key]) for key in ("model_types", "words")}
        profiles[name] = FamilyProfile(name, **row)
    return profiles


def detect_family(*, configured: str, model_type: str, name: str) -> str | None:
    """The family of a model, or None when nothing names one (requirements R-WST-02).

    configured: the user's `model_family`; wins, "" = not given. model_type: of the model's *text* configuration, "" =
    unknown. name: Hub name or folder, of which the last part counts. The name is asked only where model_type belongs
    to no family; not at all for distillations, which are called after their teacher or their student alike, and not
    where it holds words of two families. Raises `WarmStartError` for a configured family that the table lacks.
    """
    profiles = load_profiles()
    if configured:
        if configured not in profiles:
            raise WarmStartError(
                f"model_family is {configured!r}, which the table of family profiles does not hold.",
                hint=f"Known: {', '.join(profiles)}. Leave it out to have the family detected.",
            )
        return configured
    return _family_of_type(profiles, model_type.lower()) or _family_of_name(profiles, name.lower())


def _family_of_type(profiles: Mapping[str, FamilyProfile], model_type: str) -> str | None:
    for family, profile in profiles.items():
        if re.match(rf"(?:{'|'.join(profile.model_types)})(?![a-z])", model_type):
            return family
    return None


def _family_of_name(profiles: Mapping[str, FamilyProfile], name: str) -> str | None:
    last = re.split(r"[/\\]", name.rstrip("/\\"))[
        -1
    ]  # an owner's or a folder's name says nothing of the model
    if "distil" in last:
        return None
    found = [
        family
        for family, profile in profiles.items()
        if re.search(rf"(?<![a-z])(?:{'|'.join(profile.words)})(?![a-z])", last)
    ]
    return found[0] if len(found) == 1 else None


def measured_profile(effect_size: Sequence[float]) -> FamilyProfile:
    """The prior for a model of no known family, from the separability of its layers (requirements R-WST-04).

    effect_size: cross-fitted d' of each of the L layers (algorithms 3.13). With m the largest of them and
    u_l = l / (L - 1), a layer weighs w_l = max(0, d'_l - m / 2), its excess over half of m, and

        position   = sum w_l u_l / sum w_l
        half_width = max(0.3, sqrt(3 sum w_l (u_l - position)^2 / sum w_l))

    sqrt(3) times the standard deviation of an even band is half of its width, so the tent spans the layers that
    separate about equally well. At its edge d' is about half of the largest, and so is the strength (edge fraction
    0.5). The other figures are neutral: exact removal, attention and feed-forward alike. Equal d' weigh every layer
    alike, which gives a wide tent in the middle; so does m < 0.5, where there is nothing to go by.

    Separability alone must not choose a layer (algorithms 3.14): it decides here only what is tried first. Raises
    `NonFiniteError` for a d' that is not a finite number.
    """
    assert effect_size, "a model has layers"
    for layer, value in enumerate(effect_size):
        if not math.isfinite(value):
            raise NonFiniteError(
                f"The separability of layer {layer} is {value}.",
                hint="The residuals of that layer overflow; load the model in another dtype.",
            )
    largest = max(effect_size)
    weights = [1.0 if largest < UNTOLD else max(0.0, value - largest / 2) for value in effect_size]
    total = sum(weights)  # at least 0.25: the largest d' weighs half of itself
    depths = [layer / max(1, len(effect_size) - 1) for layer in range(len(effect_size))]
    position = sum(weight * depth for weight, depth in zip(weights, depths, strict=True)) / total
    spread = sum(w * (depth - position) ** 2 for w, depth in zip(weights, depths, strict=True)) / total
    return FamilyProfile(
        MEASURED,
        peak_weight=1.0,
        position=position,
        edge_fraction=0.5,
        half_width=max(NARROWEST, math.sqrt(3.0 * spread)),
        mlp_ratio=1.0,
    )
