# SPDX-License-Identifier: Apache-2.0
"""Step 2 of the flow: find the files, check them, check memory, load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from heretic.config import Settings
from heretic.exceptions import (
    DiskSpaceError,
    FileOperationError,
    HostMemoryError,
    HubAccessError,
    OutputExistsError,
)
from heretic.export.folder import inspect_folder
from heretic.export.verify import require_intact
from heretic.interventions.probe import probe
from heretic.model.loading import LoadOptions, load_config, load_model, require_tokenizer
from heretic.model.model import Model
from heretic.model.source import ModelSource, locate
from heretic.phases.workers import own_device
from heretic.publish import refuse_taken_target

BYTES_SHARE = {"none": 1.0, "bnb_8bit": 0.55, "bnb_4bit": 0.35}
"""Memory of the loaded weights as a share of 16-bit files, embeddings and norms included."""


def load_options(settings: Settings) -> LoadOptions:
    """The plain record that the model room takes."""
    return LoadOptions(
        dtypes=tuple(settings.dtypes),
        quantization=settings.quantization,
        device_map=own_device(settings),
        max_memory=settings.max_memory,  # type: ignore[arg-type]  # numbers and texts both pass through
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        allow_partial=settings.allow_partial,
        system_prompt=settings.system_prompt,
        chat_template=settings.chat_template,
        response_prefix=settings.response_prefix,
        max_prompt_tokens=settings.max_prompt_tokens,
        thinking=settings.thinking == "on",
        thinking_tokens=settings.thinking_tokens,
        answer_tokens=settings.max_response_length,
    )


def find_model(settings: Settings, name: str | None = None) -> ModelSource:
    """The model's files, complete and intact; nothing is loaded yet (requirements R-CLI-43, R-CLI-44)."""
    revision = settings.model_revision if name is None else None
    source = locate(name or settings.model, revision=revision, offline=settings.offline)
    load_config(source, trust_remote_code=settings.trust_remote_code)
    require_tokenizer(source)
    inspect_folder(source.path)
    require_intact(source.path)
    return source


def weight_bytes(source: ModelSource) -> int:
    """Bytes of the tensors in the files."""
    return inspect_folder(source.path).weight_bytes


def host_memory() -> int | None:
    """Available host memory in bytes; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def device_memory() -> int | None:
    """Free memory of all accelerators in bytes, or of the host without one; None when unknown."""
    if torch.cuda.is_available():
        return sum(int(torch.cuda.mem_get_info(number)[0]) for number in range(torch.cuda.device_count()))
    return host_memory()


def check_memory(settings: Settings, source: ModelSource) -> None:
    """Refuse before loading what cannot fit (requirements R-MOD-04, R-CLI-48)."""
    need = int(weight_bytes(source) * BYTES_SHARE[settings.quantization])
    free = device_memory()
    total = None if free is None else free + (host_memory() or 0 if torch.cuda.is_available() else 0)
    if total is not None and need > total:
        raise HostMemoryError(
            f"{source.basename} needs {need / 1e9:.1f} GB for its weights; {total / 1e9:.1f} GB are free.",
            hint="Use --quantization bnb_4bit (about a third), a smaller model or a larger machine.",
        )


def check_disk(target: Path, need: int) -> None:
    """Refuse before the search what could not be saved after it (requirements R-SEL-04, R-CLI-48)."""
    free = shutil.disk_usage(target if target.is_dir() else existing_parent(target)).free
    if free < need:
        raise DiskSpaceError(
            f"Saving to {target} needs {need / 1e9:.2f} GB; {free / 1e9:.2f} GB are free there.",
            hint="Free some space, or name another place with --auto-select-path.",
        )


def load(settings: Settings, source: ModelSource) -> Model:
    """The model, loaded and resolved."""
    return load_model(source, load_options(settings), prove=probe)


def check_output(target: Path, *, overwrite: bool) -> bool:
    """Refuse before the search a path that could not be written after it (requirements R-CLI-47, R-SEL-04).

    Makes nothing. True when an older output of this program would be replaced.
    """
    if (target.parent / "config.json").is_file():
        raise OutputExistsError(
            f"{target.parent} is a model folder, and the edited model would be written into it.",
            hint="Name a path of its own with --auto-select-path.",
        )
    parent = existing_parent(target)
    if not parent.is_dir():
        raise FileOperationError(
            f"{target} cannot be made, because {parent} is a file.",
            hint="Name another path with --auto-select-path.",
        )
    if not os.access(parent, os.W_OK):
        raise FileOperationError(
            f"{parent} cannot be written.", hint="Name another path with --auto-select-path."
        )
    return refuse_taken_target(target, overwrite=overwrite)


def existing_parent(target: Path) -> Path:
    """The nearest path above `target` that exists."""
    return next(path for path in target.absolute().parents if path.exists())


def check_upload(repository: str) -> None:
    """Refuse before the search an upload that has no token."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise HubAccessError(
            f"No Hub token is set, so nothing can be uploaded to {repository}.",
            hint="Run 'hf auth login' or set HF_TOKEN.",
        )
