# SPDX-License-Identifier: Apache-2.0
"""Prepared experiments: prompts, settings, measures and results of one question each (requirements section 11).

The folders beside this file hold the data: `config.toml` (a behaviour pack), `data/*.jsonl`, `README.md` and, where
figures could be made with what the package holds, `results.json`.
"""
