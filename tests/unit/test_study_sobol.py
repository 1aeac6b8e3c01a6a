# SPDX-License-Identifier: Apache-2.0
"""The Sobol points of the start-up design are those of scipy, without its import (R-SEA-05, R-PRF-02)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import qmc

from heretic.study.sobol import sobol_units


@pytest.mark.parametrize("dimensions", [1, 2, 10, 37])
@pytest.mark.parametrize(("seed", "start"), [(0, 0), (3, 256), (12345, 1024)])
def test_points_equal_those_of_scipy_bit_for_bit(dimensions: int, seed: int, start: int) -> None:
    """Control: another seed, and the sequence without scrambling, give other points."""
    engine = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    if start:
        engine.fast_forward(start)
    expected = engine.random(256)
    assert np.array_equal(sobol_units(dimensions, seed, start, 256), expected)
    assert not np.array_equal(sobol_units(dimensions, seed + 1, start, 256), expected)
    plain = qmc.Sobol(dimensions, scramble=False)
    assert not np.array_equal(plain.random(256), sobol_units(dimensions, seed, 0, 256))


def test_a_point_needs_no_scipy() -> None:
    """Control: the same question after importing scipy is answered with yes."""
    program = (
        "import sys\n"
        "from heretic.study.space import default_space, sobol_point\n"
        "sobol_point(default_space(('mlp.down_proj',), 8), 0, 0)\n"
        "print('scipy' in sys.modules)\n"
        "import scipy\n"
        "print('scipy' in sys.modules)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "True"]
