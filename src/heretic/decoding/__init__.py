# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding of many rows: one protocol, two engines, equal token for token in float32."""

from __future__ import annotations

from heretic.decoding.fast import FastEngine
from heretic.decoding.protocol import Decoding, Engine, Reply, Stopper
from heretic.decoding.reference import ReferenceEngine
from heretic.registry import Registry

ENGINES: Registry[type[FastEngine] | type[ReferenceEngine]] = Registry("engine")
ENGINES.register("fast")(FastEngine)
ENGINES.register("reference")(ReferenceEngine)

__all__ = ["ENGINES", "Decoding", "Engine", "FastEngine", "ReferenceEngine", "Reply", "Stopper"]
