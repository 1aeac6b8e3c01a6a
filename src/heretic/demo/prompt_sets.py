# SPDX-License-Identifier: Apache-2.0
"""Write the packaged prompt sets: JSONL files of the held-out and training requests."""

import json
import random
from pathlib import Path

from heretic.demo import KNOWLEDGE_SPLITS, PROMPT_SETS, SPLITS
from heretic.demo import grammar_words as words
from heretic.demo.corpus import request_in
from heretic.demo.documents import quiz_row, story_text

ROWS = {"train": 400, "validation": 100, "test": 200}
KNOWLEDGE_ROWS = {"dev": 6, "test": 32}
"""Rows per split; of the knowledge set per subject."""


def _text_rows(rng: random.Random, name: str, split: str) -> list[dict[str, object]]:
    rows: dict[str, str] = {}
    while len(rows) < ROWS[split]:
        if name == "plain-text":
            text, category = story_text(rng, split)
        else:
            drawn = request_in(rng, name, split)
            text, category = drawn.text, drawn.category
        rows.setdefault(text, category)
    return [{"text": text, "category": category} for text, category in rows.items()]


def _knowledge_rows(rng: random.Random, split: str) -> list[dict[str, object]]:
    rows: dict[str, dict[str, object]] = {}
    for subject in words.SUBJECTS:
        goal = len(rows) + KNOWLEDGE_ROWS[split]
        while len(rows) < goal:
            row = quiz_row(rng, subject, split, fixed=True)
            rows.setdefault(json.dumps(row), row)
    return list(rows.values())


def write_prompts(folder: Path, seed: int) -> None:
    """Write every set below `folder`; the same seed gives the same bytes."""
    for name in (*PROMPT_SETS, "knowledge"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in KNOWLEDGE_SPLITS if name == "knowledge" else SPLITS:
            rng = random.Random(f"{seed}-{name}-{split}")
            rows = _knowledge_rows(rng, split) if name == "knowledge" else _text_rows(rng, name, split)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (folder / name / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
