# SPDX-License-Identifier: Apache-2.0
"""Numbers and words used in more than one place, each with its source (requirements R-ERR-03)."""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 1
"""Version of everything that outlives the process: study attributes, manifest, result document."""

ALGORITHM_VERSION: Final = 2
"""Raised when a change of formula makes old trials incomparable; part of the fingerprint."""

DEFAULT_SYSTEM_PROMPT: Final = "You are a helpful assistant."

NEAR_ZERO: Final = 1e-6
"""Below this fraction of its natural scale a quantity counts as zero (algorithms section 0)."""

DIVISION_GUARD: Final = 1e-8
FLOAT_TOLERANCE: Final = 1e-4

LAYER_RANGE_PROFILES: Final = ((0.0, 0.4, 0.5), (0.4, 0.7, 1.0), (0.7, 1.0, 0.8))
"""(start, end, multiplier) over relative depth l/(L-1); the last interval is closed (requirements 3.5)."""

INDEX_RANGE: Final = (0.4, 1.0)
POSITION_FLOOR: Final = 0.4
"""Wider than requirements 7.2 has them: docs/decisions/0013-wider-space-and-anchors.md."""

DISTANCE_FRACTION: Final = 0.6
STRENGTH_LIMIT: Final = 2.0
"""Above 2 a removed component returns larger than before, mirrored (algorithms 4.8)."""

KL_FLOOR: Final = 1e-3
"""KL below this earns nothing in the search (algorithms 5.2)."""

MINIMUM_EFFECT: Final = 0.1
"""A feasible trial lowers the behaviour by at least this share of the base rate (algorithms 5.2)."""

NETWORK_ATTEMPTS: Final = 3
NETWORK_DELAY_CAP_S: Final = 60.0
HIDDEN_MANIFEST: Final = "heretic_run.json"
CHECKSUM_FILE: Final = "SHA256SUMS"
