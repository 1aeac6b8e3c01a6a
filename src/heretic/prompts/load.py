# SPDX-License-Identifier: Apache-2.0
"""`load_prompts`: the path from a specification to a frozen set of prompts."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from heretic.exceptions import ConfigurationError, DatasetError, NetworkError
from heretic.prompts.hub import read_hub
from heretic.prompts.overlap import count_duplicates
from heretic.prompts.rows import prompts_of_rows
from heretic.prompts.slices import parse_split
from heretic.prompts.sources import PACKAGED_PREFIX, local_path, read_local, read_packaged
from heretic.prompts.specification import DatasetSpecification, Prompt, PromptSet, content_hash
from heretic.prompts.tables import LoadedRows, wanted_columns

_logger = logging.getLogger("heretic.prompts")

_REMEDY = "Correct the source, or name another one."


def load_prompts(
    spec: DatasetSpecification,
    *,
    offline: bool = False,
    minimum: int = 1,
    role: str = "prompts",
    sleep: Callable[[float], object] = time.sleep,
) -> PromptSet:
    """Load the prompts that `spec` names (requirements 3.8).

    `minimum` is the number of prompts the caller needs; `role` is the setting's name, put before every
    message; `sleep` waits between network attempts. Sources in order: `heretic:NAME`, an existing local path,
    the Hub.

    Raises `DatasetError` (unreadable, empty, too few), `DatasetConfigError` (no such config, split or
    column), `HubAccessError` (gated), `NetworkTimeoutError`, `NetworkError` (offline and not cached),
    `ConfigurationError` (malformed name).
    """
    columns = wanted_columns(spec.column, spec.category)
    loaded = load_rows(spec, columns, offline=offline, role=role, sleep=sleep)
    with _naming(role):
        prompts, blank = prompts_of_rows(loaded.rows, spec, loaded.source)
    where = f"{role}: {loaded.source} ({spec.split})"
    if not prompts:
        raise DatasetError(
            f"{where} holds no text: {len(loaded.rows)} rows read, {blank} blank.",
            hint="Give a source with prompts.",
        )
    prompts = _sampled(prompts, spec, where)
    if len(prompts) < minimum:
        raise DatasetError(
            f"{where}: {len(prompts)} prompts found, {minimum} needed "
            f"({len(loaded.rows)} rows read, {blank} blank).",
            hint="Take a larger slice or another set.",
            data={"found": len(prompts), "needed": minimum},
        )
    duplicates = count_duplicates(prompts)
    if blank or duplicates:
        _logger.warning("%s: %d blank rows dropped, %d duplicates kept", where, blank, duplicates)
    return PromptSet(
        prompts=tuple(prompts),
        content_hash=content_hash(prompts),
        source=_describe(spec, loaded),
        resolved_revision=loaded.revision,
        rows_read=len(loaded.rows),
        blank_dropped=blank,
        duplicates=duplicates,
        streamed=loaded.streamed,
    )


def load_rows(
    spec: DatasetSpecification,
    columns: Sequence[str],
    *,
    offline: bool = False,
    role: str = "prompts",
    sleep: Callable[[float], object] = time.sleep,
) -> LoadedRows:
    """The raw rows of the slice with several `columns` of any type, for sets that are not prompts (MMLU).

    Class numbers come as their names. Column, category, sample, prefix and suffix of `spec` are not used.
    Raises as `load_prompts` does.
    """
    with _naming(role):
        parts = parse_split(spec.split)
        if spec.dataset.startswith(PACKAGED_PREFIX):
            return read_packaged(spec, parts, columns)
        path = local_path(spec.dataset)
        if path is not None:
            return read_local(spec, path, parts, columns)
        return read_hub(spec, parts, columns, offline=offline, sleep=sleep)


@contextmanager
def _naming(role: str) -> Iterator[None]:
    """Put the setting's name before the message of an error from below."""
    try:
        yield
    except (ConfigurationError, DatasetError, NetworkError) as error:
        raise type(error)(
            f"{role}: {error.message}",
            hint=error.hint or _REMEDY,
            details=error.details,
            resume=error.resume,
            data=error.data,
        ) from error


def _sampled(prompts: Sequence[Prompt], spec: DatasetSpecification, where: str) -> list[Prompt]:
    """`spec.sample` of the prompts in source order, from the set's own seed; all of them when it is None."""
    if spec.sample is None:
        return list(prompts)
    if spec.sample > len(prompts):
        raise DatasetError(
            f"{where}: a sample of {spec.sample} was asked for, but only {len(prompts)} rows hold text.",
            hint="Ask for a smaller sample or a larger slice.",
        )
    chosen = random.Random(spec.sample_seed).sample(range(len(prompts)), spec.sample)
    return [prompts[index] for index in sorted(chosen)]


def _describe(spec: DatasetSpecification, loaded: LoadedRows) -> str:
    """The set in words: source, config, split, column, sample."""
    config = f" {spec.config}" if spec.config else ""
    sample = f", sample of {spec.sample} with seed {spec.sample_seed}" if spec.sample is not None else ""
    return f"{loaded.source}{config} {spec.split}, column {spec.column}{sample}"
