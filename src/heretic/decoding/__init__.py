# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding of many rows: one protocol, two engines, equal token for token in float32."""
