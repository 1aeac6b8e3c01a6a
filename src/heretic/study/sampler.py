# SPDX-License-Identifier: Apache-2.0
"""Samplers that are a function of (study seed, trial index, finished trials): nothing random lives in the
process.

A sampler restarted with one seed repeats itself: stopped after 10 trials and resumed, 10 of the next 10 were
copies (algorithms section 8). So each trial gets a fresh sampler seeded by its logical index (requirements
R-SEA-06).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import optuna

from heretic.registry import Registry
from heretic.study.points import PointSampler
from heretic.study.refinement import NEEDED, REFINE_EVERY, STARTUP_EVERY, LocalSampler
from heretic.study.space import nearest_legal, sobol_point, value_at
from heretic.study.types import Dimension, Value

_logger = logging.getLogger("heretic.study")

MINIMUM_HISTORY: Final = 10
"""With fewer finished trials than this (or than `n_startup_trials`) a model of them is noise: Sobol goes on.
"""

REFINEMENT_STREAM: Final = 7
"""Keeps the numbers of a refinement apart from those of the sampler at the same index."""

GP_TRIALS: Final = 150
GP_DIMENSIONS: Final = 10
"""Above these the Gaussian process is slow and no better (algorithms section 8)."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a sampler may depend on.

    complete: number of COMPLETE trials in the study. reference: the objectives at which a trial is worth nothing.
    """

    space: tuple[Dimension, ...]
    seed: int
    index: int
    n_startup_trials: int
    complete: int
    reference: tuple[float, float] = (1.0, 1.0)

    @property
    def is_refinement(self) -> bool:
        """True for the refining share of trials once there is something to refine, also during the start-up."""
        every = STARTUP_EVERY if self.is_startup else REFINE_EVERY
        return every > 0 and self.index % every == every - 1 and self.complete >= NEEDED

    @property
    def is_startup(self) -> bool:
        """True while points come from the Sobol sequence."""
        needed = max(1, min(self.n_startup_trials, MINIMUM_HISTORY))
        return self.index < self.n_startup_trials or self.complete < needed


SAMPLERS: Registry[Callable[[Request], optuna.samplers.BaseSampler]] = Registry("sampler")


def seed_of(study_seed: int, index: int, *stream: int) -> int:
    """Seed of trial k: SeedSequence([study seed, k]); other uses add a stream number (reliability 6)."""
    return int(np.random.SeedSequence([study_seed, index, *stream]).generate_state(1)[0])


def startup_sampler(request: Request, given: Mapping[str, Value] | None = None) -> PointSampler:
    """Sobol point k, overlaid by the values of `given` (a warm start), made legal."""
    point = sobol_point(request.space, request.seed, request.index)
    for dimension in request.space:
        if given is not None and given.get(dimension.name) is not None:
            point[dimension.name] = nearest_legal(
                dimension, given[dimension.name], fallback=point[dimension.name]
            )
    return PointSampler(point)


def refining_sampler(request: Request) -> LocalSampler:
    """A variation of one of the best trials."""
    seed = seed_of(request.seed, request.index, REFINEMENT_STREAM)
    fallback = sobol_point(request.space, request.seed, request.index)
    return LocalSampler(request.space, seed, fallback, request.reference)


@SAMPLERS.register("tpe")
def tpe(request: Request) -> optuna.samplers.BaseSampler:
    """Multivariate, grouped TPE with constant liar, and a local refinement in between. With two objectives
    optuna leaves multivariate off unless told.
    """
    if request.is_refinement:
        return refining_sampler(request)
    if request.is_startup:
        return startup_sampler(request)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed_of(request.seed, request.index),
            n_startup_trials=1,
            multivariate=True,
            group=True,
            constant_liar=True,
        )


@SAMPLERS.register("gp")
def gaussian_process(request: Request) -> optuna.samplers.BaseSampler:
    """Gaussian process with a local refinement in between; inactive dimensions fall back to random values."""
    if request.is_refinement:
        return refining_sampler(request)
    if request.is_startup:
        return startup_sampler(request)
    free = sum(
        dimension.kind == "categorical" or dimension.low < dimension.high for dimension in request.space
    )
    if request.index == request.n_startup_trials and free > GP_DIMENSIONS:
        _logger.warning(
            "The gp sampler is meant for up to %d dimensions; this space has %d.", GP_DIMENSIONS, free
        )
    if request.index == GP_TRIALS:
        _logger.warning("The gp sampler becomes slow beyond %d trials; tpe does not.", GP_TRIALS)
    seed = seed_of(request.seed, request.index)
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)


@SAMPLERS.register("random")
def uniform(request: Request) -> optuna.samplers.BaseSampler:
    """Independent uniform values."""
    units = np.random.default_rng(seed_of(request.seed, request.index)).random(len(request.space))
    pairs = zip(request.space, units, strict=True)
    return PointSampler({dimension.name: value_at(dimension, float(unit)) for dimension, unit in pairs})


@SAMPLERS.register("qmc")
def sobol(request: Request) -> optuna.samplers.BaseSampler:
    """The Sobol sequence throughout."""
    return startup_sampler(request)


def suggest(trial: optuna.Trial, dimension: Dimension) -> Value:
    """Asks the trial's sampler for one active dimension (raw value, before the clamp)."""
    name = dimension.name
    if dimension.kind == "categorical":
        choice = trial.suggest_categorical(name, dimension.choices)
        assert isinstance(choice, (str, int, float))
        return choice
    if dimension.kind == "int":
        return trial.suggest_int(name, int(dimension.low), int(dimension.high))
    return trial.suggest_float(name, dimension.low, dimension.high)
