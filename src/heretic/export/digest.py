# SPDX-License-Identifier: Apache-2.0
"""A hash that tells whether two folders hold the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

FULL_BELOW = 2 * 10**9
BLOCK = 1 << 20
SAMPLES = 64


def weight_digest(folder: Path) -> str:
    """SHA-256 (hex) over the safetensors files of a folder, by name.

    Folders under 2 GB are hashed whole; of larger shards the size, the first megabyte (with the header) and 64 evenly
    spaced megabytes count, so that a 70B model takes seconds. An unknown Hub commit is told apart by its own hash.
    """
    files = sorted(folder.glob("*.safetensors"))
    whole = sum(path.stat().st_size for path in files) < FULL_BELOW
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        count = -(-size // BLOCK) if whole else min(SAMPLES, -(-size // BLOCK))
        step = BLOCK if whole else max(BLOCK, size // max(1, count))
        with path.open("rb") as stream:
            for number in range(count):
                stream.seek(number * step)
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()
