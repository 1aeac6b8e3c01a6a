# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding of many rows: one protocol, two engines, equal token for token in float32."""

from __future__ import annotations

from heretic.decoding.choice import ENGINES, choose_engine
from heretic.decoding.compiled import compiled_engine
from heretic.decoding.fast import FastEngine
from heretic.decoding.protocol import Decoding, Engine, Reply, Stopper, Thought
from heretic.decoding.reading import read_replies, read_texts
from heretic.decoding.reference import ReferenceEngine

__all__ = [
    "ENGINES",
    "Decoding",
    "Engine",
    "FastEngine",
    "ReferenceEngine",
    "Reply",
    "Stopper",
    "Thought",
    "choose_engine",
    "compiled_engine",
    "read_replies",
    "read_texts",
]
