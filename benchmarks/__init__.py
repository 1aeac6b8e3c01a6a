# SPDX-License-Identifier: Apache-2.0
"""Side-by-side measurements of this project and heretic-llm on one model, one set of prompts and one machine.

`python -m benchmarks.run` runs both, interleaved, and writes `benchmarks/results/*.json` and the generated
part of `docs/performance.md`. heretic-llm is only installed, run and read through its terminal and its output
files.
"""

from __future__ import annotations
