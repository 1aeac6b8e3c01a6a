# SPDX-License-Identifier: Apache-2.0
"""The bundled demo chat model and its prompt sets.

The model and every prompt file are written by ``python -m heretic.demo.train``; the recipe, the seed and
the measured figures are in ``README.md`` beside this file. Importing this package loads no torch.
"""

from pathlib import Path

PROMPT_SETS: tuple[str, ...] = (
    "refusal-bad",
    "refusal-good",
    "refusal-borderline",
    "verbosity-bad",
    "verbosity-good",
    "hedging-bad",
    "hedging-good",
    "plain-text",
)
"""Names of the packaged text sets; each has the splits of `SPLITS`."""

SPLITS: tuple[str, ...] = ("train", "validation", "test")
KNOWLEDGE_SPLITS: tuple[str, ...] = ("dev", "test")
_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """Return the folder of the bundled model (config, weights, tokenizer, chat template)."""
    return _HERE / "model"


def prompts_path(name: str, split: str) -> Path:
    """Return the JSONL file of one packaged set.

    `name` is one of `PROMPT_SETS` (rows ``{"text", "category"}``) or ``knowledge`` (rows ``{"question",
    "choices", "answer", "subject"}``, splits `KNOWLEDGE_SPLITS`). Raises `ValueError` naming the known values.
    """
    known = (*PROMPT_SETS, "knowledge")
    if name not in known:
        raise ValueError(f"unknown demo prompt set {name!r}; known: {', '.join(known)}")
    splits = KNOWLEDGE_SPLITS if name == "knowledge" else SPLITS
    if split not in splits:
        raise ValueError(f"unknown split {split!r} of demo prompt set {name!r}; known: {', '.join(splits)}")
    return _HERE / "prompts" / name / f"{split}.jsonl"
