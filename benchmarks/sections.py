# SPDX-License-Identifier: Apache-2.0
"""All sections of the generated page, in order, from the result documents of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import floor, profile, scaling
from benchmarks.page import render

ORDER = ("demo", "grown", "other", "random")


def sections(folder: Path, page_folder: Path) -> list[str]:
    """One Markdown section per comparison, then floors, scaling and profiles. Links are relative to `page_folder`."""
    known: dict[str, list[Mapping[str, Any]]] = {}
    places: dict[int, Path] = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        group = "run" if "runs" in document else str(document["kind"])
        known.setdefault(group, []).append(document)
        places[id(document)] = path
    runs = sorted(known.get("run", []), key=lambda found: ORDER.index(found.get("kind", "demo")))
    made = [render(found) for found in runs]
    made += [_floor(found) for found in known.get("floor", [])]
    made += [
        _scaling(found, places[id(found)].with_suffix(".png"), page_folder)
        for found in known.get("scaling", [])
    ]
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for found in known.get("profile", []):
        by_model.setdefault(str(found["model"]), []).append(found)
    return made + [_profile(model, found) for model, found in sorted(by_model.items())]


def _machine(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    return (
        f"- Machine: {machine['processor']}, {document['threads']} thread(s) on {machine['cores']} cores, load before "
        f"{machine['load_before']}."
    )


def _floor(document: Mapping[str, Any]) -> str:
    parts = document["floors"]["plain"]["parts"]
    lines = [
        f"### Arithmetic floor: {document['model']} ({document['date']})",
        "",
        _machine(document),
        f"- {document['parameters'] / 1e6:.1f} M parameters, {document['prompts']} prompts of each kind with "
        f"{document['prompt_tokens']:.1f} tokens (the first {document['prefix_tokens']} common to all), replies of "
        f"{document['reply_tokens']:.1f} tokens, {document['together']} trial(s) in one call, {document['trials']} "
        "measured. Obtained by `python -m benchmarks.floor`: multiply-adds over the rate of torch's matrix products at "
        f"these shapes (in replies {document['decode_gflops']:.0f}, at best {document['best_gflops']:.0f} GF/s).",
        "",
        *floor.lines(document),
        "",
        f"- First floor by part, s: {', '.join(f'{name} {value:.2f}' for name, value in parts.items())}.",
    ]
    return "\n".join(lines) + "\n"


def _scaling(document: Mapping[str, Any], image: Path, page_folder: Path) -> str:
    lines = [
        f"### Growth of the cost: {document['model']} ({document['date']})",
        "",
        _machine(document),
        f"- Obtained by `python -m benchmarks.scaling`: {document['trials']} trials a point, {document['repeats']} "
        f"rounds over all points, medians; otherwise {document['prompts']} prompts of each kind and "
        f"{document['together']} trials in one call.",
        "",
        *scaling.lines(document),
    ]
    if image.is_file():
        link = Path(os.path.relpath(image, page_folder)).as_posix()
        lines += ["", f"![Time of a trial against prompts, layers, trials in one call, and trials]({link})"]
    return "\n".join(lines) + "\n"


def _profile(model: str, documents: Sequence[Mapping[str, Any]]) -> str:
    # `before` stands left of `after`, whatever their dates.
    ordered = sorted(documents, key=lambda found: (found["label"] != "before", str(found["label"])))
    told = ordered[-1]
    lines = [
        f"### Profile: {model} ({told['date']})",
        "",
        _machine(told),
        f"- Obtained by `python -m benchmarks.profile`: {told['trials']} trials, {told['together']} in one call, "
        f"{told['prompts']} prompts of each kind; the profiler charges every operator a few microseconds. Batched "
        "products are edits of several trials, and attention where it is written out.",
        "",
        *profile.table(ordered),
    ]
    return "\n".join(lines) + "\n"
