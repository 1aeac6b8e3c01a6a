# SPDX-License-Identifier: Apache-2.0
"""Behaviour packs: TOML files that say what is edited, each a layer of the cascade (R-CFG-10 to R-CFG-13)."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from heretic.config import schema
from heretic.config.files import load_toml, table_layer
from heretic.config.layers import Entry, Finding, Layer
from heretic.config.settings import Settings
from heretic.config.types import Frozen, Text, setting

PROMPT_SETS: Final = (
    "good_prompts",
    "bad_prompts",
    "good_evaluation_prompts",
    "bad_evaluation_prompts",
    "good_confirmation_prompts",
    "bad_confirmation_prompts",
    "over_behaviour_prompts",
)
"""Every pack names all of them: a set inherited from another behaviour would measure the wrong thing."""

PACK_SETTINGS: Final = (
    *PROMPT_SETS,
    "goal",
    "scorers",
    "system_prompt",
    "residual_position",
    "refusal_markers",
    "soft_refusal_markers",
    "evasive_patterns",
    "refusal_detection_mode",
    "detect_soft_refusals",
    "detect_evasive_responses",
    "neural_detection_threshold",
    "max_prompt_tokens",
    "max_response_length",
    "refusal_check_tokens",
    "kl_divergence_tokens",
    "n_trials",
    "n_startup_trials",
    "max_batch_size",
    "helpfulness_prompts",
    "unhelpfulness_prompts",
    "sacred_prompts",
    "sacred_baseline_prompts",
    "mmlu_source",
)


class LabelSettings(Frozen):
    """Labels of the NLI judge: name to hypothesis, and which of them count as the behaviour."""

    hypotheses: dict[str, str] = setting({}, "label to a grammatical sentence about the reply")
    counted: tuple[Text, ...] = setting((), "labels that count")


class PackHeader(Frozen):
    """What a pack says beside settings."""

    name: Text = setting("", "used for the output folder and the model card")
    description: str = setting("", "one sentence")
    markers: str = setting("", "table of the packaged marker file; empty = none")
    labels: LabelSettings = setting(LabelSettings(), "NLI labels")
    instructions: dict[str, str] = setting(
        {}, "goal to the sentence that asks for it in the prompt, a control"
    )
    targets: dict[str, float] = setting({}, "figures an experiment aims at")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """An active pack. key: as the user named it; sha256: of its content, comments and order left out."""

    key: str
    header: PackHeader
    sha256: str
    text: str
    source: str

    @property
    def name(self) -> str:
        """Name of the behaviour, `refusal` for the demo pack too."""
        return self.header.name


@cache
def built_in_behaviours() -> tuple[str, ...]:
    """Names of the packaged packs."""
    folder = resources.files("heretic") / "data" / "behaviours"
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml")))


def load_behaviour(key: str, cwd: Path) -> tuple[Behaviour, Layer]:
    """The pack a name or path means, with its layer; what is wrong with it stands in the layer's findings."""
    if key in built_in_behaviours():
        with resources.as_file(resources.files("heretic") / "data" / "behaviours" / f"{key}.toml") as path:
            return _load(key, path, f"behaviour {key}", None)
    if key.endswith(".toml") or "/" in key or "\\" in key:
        path = cwd / Path(key).expanduser()
        return _load(key, path, key, path.parent)
    near = difflib.get_close_matches(key, built_in_behaviours(), n=1)
    hint = (
        f"did you mean {near[0]}?" if near else f"known: {', '.join(built_in_behaviours())}, or a TOML path"
    )
    layer = Layer("behaviour", findings=[Finding("value", f"there is no behaviour called {key!r}; {hint}")])
    return Behaviour(key, PackHeader(name=key), "", "", key), layer


def _load(key: str, path: Path, shown: str, folder: Path | None) -> tuple[Behaviour, Layer]:
    values, text, problem = load_toml(path, shown)
    header_values = {name: values.pop(name) for name in PackHeader.model_fields if name in values}
    layer = table_layer(
        "behaviour", {name: values[name] for name in values if name in PACK_SETTINGS}, text, shown
    )
    layer.findings += [problem] if problem else _problems(values, shown)
    header, wrong = _header(header_values, shown)
    if problem is None:
        layer.findings += wrong
    if folder is not None:
        _resolve_files(layer, folder)
    content = {"header": schema.plain(header), "settings": values}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return Behaviour(key, header, digest, text, shown), layer


def _problems(values: Mapping[str, object], shown: str) -> list[Finding]:
    findings = [
        Finding("value", f"{shown}: a behaviour pack should name {name}")
        for name in PROMPT_SETS
        if name not in values
    ]
    known = [*PACK_SETTINGS, *PackHeader.model_fields]
    for name in values:
        if name in PACK_SETTINGS:
            continue
        if name in Settings.model_fields:
            findings.append(Finding("value", f"{shown}: {name} cannot be set by a behaviour pack"))
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        findings.append(Finding("unknown", f"{shown}: a behaviour pack has no key {name!r}{hint}"))
    return findings


def _header(values: Mapping[str, object], shown: str) -> tuple[PackHeader, list[Finding]]:
    try:
        header = PackHeader.model_validate(schema.deep_tuples(values))
    except ValidationError as error:
        lines = [
            Finding("value", f"{shown}: {'.'.join(map(str, item['loc']))}: {item['msg']}")
            for item in error.errors()
        ]
        return PackHeader(name="unnamed"), lines
    foreign = [label for label in header.labels.counted if label not in header.labels.hypotheses]
    findings = [
        Finding("value", f"{shown}: labels.counted names {label!r}, which has no sentence")
        for label in foreign
    ]
    if not header.name:
        findings.append(Finding("value", f"{shown}: a behaviour pack should have a name"))
    return header, findings


def _resolve_files(layer: Layer, folder: Path) -> None:
    """A file named by a user's pack is looked up beside the pack, so that the folder can be moved whole."""
    for path, entry in layer.entries.items():
        if path[-1] == "dataset" and isinstance(entry.value, str) and (folder / entry.value).exists():
            layer.entries[path] = Entry((folder / entry.value).resolve().as_posix(), entry.source)
