# SPDX-License-Identifier: Apache-2.0
"""A sampler that proposes one whole point instead of sampling dimension by dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from heretic.study.types import Value


class PointSampler(optuna.samplers.BaseSampler):
    """Gives the values of one point. A subclass may choose it from what has been finished."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def point(self, study: optuna.Study) -> Mapping[str, Value]:
        """The values; asked for at every dimension."""
        return self._values

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing is sampled jointly: the point is one."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is sampled jointly: the point is one."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The coordinate of that name."""
        return self.point(study)[param_name]
