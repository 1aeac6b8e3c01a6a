# SPDX-License-Identifier: Apache-2.0
"""The model card: what was changed, what was measured, what was not (R-OUT-30, R-GEN-06).

The source's card is kept below our own section, with its licence and its gating text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from heretic.export.manifest import clean_text
from heretic.export.naming import REFUSAL, is_hub_id, public_model_id

logger = logging.getLogger("heretic.export")

REFUSAL_TAGS = ("abliterated", "uncensored", "decensored")
_NOT_OURS = ("model-index", "base_model", "base_model_relation", "new_version", "eval_results", "model_name")
"""Metadata of the source that says something about the source only: its own results and its own base."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure with its 95 % interval and the number of prompts; `low` and `high` None where there is
    none."""

    value: float
    count: int
    low: float | None = None
    high: float | None = None

    def text(self, share: bool) -> str:
        """`12.0 % [7.1, 19.5] (n = 100)`, or the plain number with its interval."""
        scale, unit, digits = (100.0, " %", 1) if share else (1.0, "", 4)
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{self.low * scale:.{digits}f}, {self.high * scale:.{digits}f}]"
        return f"{self.value * scale:.{digits}f}{unit}{interval} (n = {self.count})"


@dataclass(frozen=True, slots=True)
class CardRow:
    """One line of the table. share: the figure is a rate between 0 and 1. separable: None = not compared."""

    metric: str
    dataset: str
    before: Measured | None
    after: Measured | None
    share: bool = True
    separable: bool | None = None


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card tells. model: Hub id or path of the base; strengths: site or component -> text; guards:
    name -> outcome in words; reproduce: the command line."""

    name: str
    model: str
    behaviour: str
    goal: Literal["suppress", "induce"]
    strategy: str
    rows: Sequence[CardRow]
    noise_floor: str
    conditions: str
    reproduce: str
    strengths: Mapping[str, str]
    guards: Mapping[str, str]
    degradations: Sequence[str] = ()
    not_measured: Sequence[str] = ()
    warnings: Sequence[str] = ()
    relation: Literal["finetune", "adapter"] = "finetune"
    revision: str | None = None


def build_card(facts: CardFacts, source_card: str | None) -> str:
    """The text of README.md. source_card: the README.md of the base, kept below; None when it has none."""
    metadata, body = _split(source_card)
    kept = {key: value for key, value in metadata.items() if key not in _NOT_OURS}
    kept["tags"] = _tags(facts, kept.get("tags"))
    if is_hub_id(facts.model):
        kept["base_model"] = facts.model
        kept["base_model_relation"] = facts.relation
    results = _results(facts)
    name = facts.name if results else None
    data = ModelCardData(eval_results=results or None, model_name=name, ignore_metadata_errors=True)
    for key, value in kept.items():
        data[key] = value
    text = _section(facts)
    if body.strip():
        text += f"\n---\n\n# Card of the base model {public_model_id(facts.model)}\n\n{body.strip()}\n"
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _split(source_card: str | None) -> tuple[dict[str, object], str]:
    """Metadata and text of the source's card; broken metadata is left out with a warning, the text is
    kept."""
    if not source_card:
        return {}, ""
    try:
        card = ModelCard(source_card, ignore_metadata_errors=True)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        logger.warning("The metadata of the base model's card cannot be read (%s).", type(error).__name__)
        parts = source_card.split("\n---", 1)
        return {}, parts[1] if source_card.startswith("---") and len(parts) == 2 else source_card
    found = {str(key): value for key, value in vars(card.data).items() if value is not None}
    return found, str(card.text)


def _tags(facts: CardFacts, known: object) -> list[str]:
    """The source's tags, then what was done: the refusal words only for suppressed refusal."""
    ours = ["heretic"]
    if facts.behaviour == REFUSAL and facts.goal == "suppress":
        ours.extend(REFUSAL_TAGS)
    kept = [str(tag) for tag in known] if isinstance(known, list) else []
    return list(dict.fromkeys(tag for tag in (*kept, *ours)))


def _results(facts: CardFacts) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=_slug(row.dataset),
            dataset_name=clean_text(row.dataset),
            metric_type=_slug(row.metric),
            metric_name=row.metric,
            metric_value=round(row.after.value, 6),
        )
        for row in facts.rows
        if row.after is not None
    ]


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in clean_text(text).lower())


def _section(facts: CardFacts) -> str:
    model = public_model_id(facts.model)
    link = f"[{model}](https://huggingface.co/{model})" if is_hub_id(facts.model) else f"`{model}`"
    revision = f" at revision `{facts.revision}`" if facts.revision else ""
    verb = "suppressed" if facts.goal == "suppress" else "strengthened"
    lines = [
        f"# {facts.name}",
        "",
        f"This is {link}{revision} with the behaviour **{facts.behaviour}** {verb} by directional edits "
        f"of its weights (strategy `{facts.strategy}`). Nothing was trained; all other tensors are those of "
        "the base model, bit for bit.",
        "",
        "## What was measured",
        "",
        clean_text(facts.conditions),
        "",
        *_table(facts.rows),
        "",
        f"Noise floor: {facts.noise_floor}. Intervals are 95 %.",
        "",
        *_listing("## Effective strengths", [f"{name}: {text}" for name, text in facts.strengths.items()]),
        *_listing("## Guards", [f"{name}: {text}" for name, text in facts.guards.items()]),
        *_listing("## Degradations", list(facts.degradations)),
        *_listing("## Warnings", list(facts.warnings)),
        *_listing("## Not measured", list(facts.not_measured) or ["Anything that is not in the table."]),
        "## How to reproduce",
        "",
        "```",
        clean_text(facts.reproduce),
        "```",
        "",
        "`heretic_run.json` holds all settings, seeds, versions and hashes; `heretic verify` checks it.",
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[CardRow]) -> list[str]:
    lines = ["| measure | data | before | after | difference |", "|---|---|---|---|---|"]
    words = {None: "not compared", True: "separable", False: "not separable"}
    for row in rows:
        before = row.before.text(row.share) if row.before else "unknown"
        after = row.after.text(row.share) if row.after else "unknown"
        lines.append(
            f"| {row.metric} | {clean_text(row.dataset)} | {before} | {after} | {words[row.separable]} |"
        )
    return lines


def _listing(title: str, entries: Sequence[str]) -> list[str]:
    return [title, "", *(f"- {clean_text(entry)}" for entry in entries), ""] if entries else []
