# SPDX-License-Identifier: Apache-2.0
"""The edits themselves as a file of the output folder, so that anybody with the base can make it again, bit
for bit.

`heretic/edits.safetensors` lies in a subfolder: some readers load every safetensors file at the top of a
folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from heretic.architectures.site import Gain, Site
from heretic.exceptions import ModelValidationError
from heretic.export.trace import Target
from heretic.interventions.edit import Edit

EDITS_FILE = "heretic/edits.safetensors"
_PARTS = ("left", "read", "right", "row_gain", "column_gain", "bias")


@dataclass(frozen=True, slots=True, eq=False)
class StoredEdits:
    """edits, where they were applied, and per layer the directions [d, p] whose change the certificate states."""

    edits: Mapping[Site, Edit]
    targets: tuple[Target, ...]
    protected: Mapping[int, Tensor] = field(default_factory=dict)


def save_edits(
    folder: Path,
    edits: Mapping[Site, Edit],
    targets: Sequence[Target],
    protected: Mapping[int, Tensor] | None = None,
) -> None:
    """Write the edits and where they were applied; tensors `<number>.left` and so on, `protected.<layer>`, the sites as
    metadata."""
    tensors: dict[str, Tensor] = {
        f"protected.{layer}": rows.detach().cpu().contiguous().clone()
        for layer, rows in (protected or {}).items()
    }
    sites: list[dict[str, object]] = []
    for number, (site, edit) in enumerate(edits.items()):
        for part in _PARTS:
            value = getattr(edit, part)
            if isinstance(value, Tensor) and value.numel():
                tensors[f"{number}.{part}"] = value.detach().cpu().contiguous().clone()
        places = [
            {"part": target.part, "key": target.key, "expert": target.expert, "transposed": target.transposed}
            for target in targets
            if target.site == site
        ]
        sites.append({"site": asdict(site), "targets": places, "identity": edit.is_identity})
    path = folder / EDITS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    # One key: several would be written in another order each time, and with them other checksums.
    table = json.dumps({"version": 1, "sites": sites})
    path.write_bytes(save(tensors, metadata={"heretic": table}))


def load_edits(folder: Path) -> StoredEdits:
    """Read `save_edits` back; raises `ModelValidationError` when the file is missing or malformed.

    Edits that change nothing are left out.
    """
    try:
        with safe_open(folder / EDITS_FILE, framework="pt") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (no mapping)
            rows = json.loads((stream.metadata() or {})["heretic"])["sites"]
        edits: dict[Site, Edit] = {}
        targets: list[Target] = []
        for number, row in enumerate(rows):
            gain = row["site"].pop("gain")
            site = Site(**row["site"], gain=None if gain is None else Gain(**gain))
            if row["identity"]:
                continue
            factors = {part: tensors.get(f"{number}.{part}") for part in _PARTS[1:]}
            edits[site] = Edit(left=tensors[f"{number}.left"], **factors)
            targets.extend(Target(site, **place) for place in row["targets"])
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise ModelValidationError(
            f"{EDITS_FILE} is missing or malformed ({type(error).__name__}).",
            hint="Without it only the figures can be checked, not every bit.",
        ) from error
    protected = {
        int(key.removeprefix("protected.")): value
        for key, value in tensors.items()
        if key.startswith("protected.")
    }
    return StoredEdits(edits, tuple(targets), protected)
