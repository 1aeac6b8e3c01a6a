# SPDX-License-Identifier: Apache-2.0
"""Data sets of the Hub: what to stream, how often to try, what works offline (R-DAT-04..06, R-DAT-08)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from heretic.constants import NETWORK_ATTEMPTS, NETWORK_DELAY_CAP_S
from heretic.exceptions import DatasetConfigError, DatasetError, NetworkError, NetworkTimeoutError
from heretic.prompts import hub_client
from heretic.prompts.slices import SplitPart, too_few_rows
from heretic.prompts.specification import DatasetSpecification
from heretic.prompts.tables import LoadedRows, Row, check_columns, missing_name, select_rows

STREAM_BYTES = 5_000_000_000
"""Above this repository size a Hub set is streamed under `stream = "auto"` (R-DAT-04)."""

_logger = logging.getLogger("heretic.prompts")
_COMMIT = re.compile(r"[0-9a-f]{40}")
T = TypeVar("T")
Sleep = Callable[[float], object]


def is_c4(dataset: str) -> bool:
    """Whether the repository's own name is exactly `c4`; containing it is ordinary (R-DAT-04)."""
    return dataset.rsplit("/", 1)[-1] == "c4"


def config_of(spec: DatasetSpecification) -> str | None:
    """The config to load: the given one, else `en` for C4, which has no default of its own."""
    return "en" if spec.config is None and is_c4(spec.dataset) else spec.config


def retry_delay(attempt: int) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: min(2 * 2**attempt, 60) (R-DAT-06)."""
    return float(min(2.0 * 2.0**attempt, NETWORK_DELAY_CAP_S))


def with_retries(call: Callable[[], T], name: str, sleep: Sleep) -> T:
    """The result of `call`, tried again after a network fault; in the end `NetworkTimeoutError`."""
    for attempt in range(NETWORK_ATTEMPTS):
        try:
            return call()
        except hub_client.NetworkFault as fault:
            if attempt == NETWORK_ATTEMPTS - 1:
                raise NetworkTimeoutError(
                    f"The Hub did not deliver {name} in {NETWORK_ATTEMPTS} attempts: {fault}.",
                    hint="Check the network and try again; a set in the cache is used with --offline.",
                ) from fault
            delay = retry_delay(attempt)
            _logger.warning("%s: attempt %d failed (%s); next in %.0f s", name, attempt + 1, fault, delay)
            sleep(delay)
    raise AssertionError("the last attempt either returned or raised")


def read_hub(
    spec: DatasetSpecification,
    parts: Sequence[SplitPart],
    wanted: Sequence[str],
    *,
    offline: bool,
    sleep: Sleep,
) -> LoadedRows:
    """The rows of a Hub set, with the columns `wanted`.

    Raises `HubAccessError` (gated), `DatasetError` (not found, too few rows), `DatasetConfigError` (missing
    config, split or column, with the real names; a slice that cannot be streamed), `NetworkTimeoutError`, and
    `NetworkError` when offline and not in the cache.
    """
    wants_stream = spec.stream is True or is_c4(spec.dataset)
    if wants_stream:
        require_streamable(spec.dataset, parts)
        if spec.stream is False:
            _logger.warning("%s is always streamed: its first shards alone are 65 GB", spec.dataset)
    if offline or hub_client.is_offline():
        return _read_offline(spec, parts, wanted)
    repository = with_retries(lambda: hub_client.describe(spec.dataset, spec.revision), spec.dataset, sleep)
    large = repository.size is not None and repository.size > STREAM_BYTES
    if spec.stream == "auto" and large and all(part.absolute() is not None for part in parts):
        wants_stream = True
    read = _read_stream if wants_stream else _read_download
    try:
        rows = read(spec, parts, wanted, repository.commit, sleep)
    except DatasetError as error:
        if "library_error" in error.data:
            _explain_names(spec, parts, repository.commit, sleep)
        raise
    return LoadedRows(rows, spec.dataset, repository.commit, streamed=wants_stream)


def require_streamable(dataset: str, parts: Sequence[SplitPart]) -> None:
    """Raise `DatasetConfigError` for a percentage, an open end or a negative bound (R-DAT-05)."""
    for part in parts:
        if part.absolute() is None:
            raise DatasetConfigError(
                f"{dataset} is streamed, so {part} cannot be read: its length is not known.",
                hint=f"Give row numbers, for example {part.name}[:200] or {part.name}[400:600].",
            )


def _read_download(
    spec: DatasetSpecification, parts: Sequence[SplitPart], wanted: Sequence[str], commit: str, sleep: Sleep
) -> list[Row]:
    splits = with_retries(
        lambda: hub_client.download(spec.dataset, config_of(spec), commit, spec.data_files),
        spec.dataset,
        sleep,
    )
    return select_rows(splits, parts, wanted, spec.dataset)


def _read_stream(
    spec: DatasetSpecification, parts: Sequence[SplitPart], wanted: Sequence[str], commit: str, sleep: Sleep
) -> list[Row]:
    rows: list[Row] = []
    for part in parts:
        rows += with_retries(partial(_stream_part, spec, part, wanted, commit), spec.dataset, sleep)
    return rows


def _stream_part(
    spec: DatasetSpecification, part: SplitPart, wanted: Sequence[str], commit: str
) -> list[Row]:
    bounds = part.absolute()
    assert bounds is not None, "streamed parts were checked"
    start, stop = bounds
    rows: list[Row] = []
    stream = hub_client.stream(spec.dataset, config_of(spec), commit, spec.data_files, part.name, start, stop)
    for values in stream:
        if not rows:
            check_columns(spec.dataset, tuple(values), wanted)
        rows.append(
            Row(f"row {start + len(rows) + 1}", {name: values[name] for name in wanted if name in values})
        )
    if len(rows) < stop - start:
        # Without a single row the stream may have ended anywhere before the slice.
        found = start + len(rows)
        raise too_few_rows(str(part), spec.dataset, asked=stop, found=found, at_most=not rows)
    return rows


def _explain_names(spec: DatasetSpecification, parts: Sequence[SplitPart], commit: str, sleep: Sleep) -> None:
    """Raise `DatasetConfigError` if a name that does not exist explains a failed load, else return.

    The library reports both as a plain ValueError, so the names are asked for and compared.
    """
    name, config = spec.dataset, config_of(spec)
    try:
        configs = with_retries(lambda: hub_client.config_names(name, commit, spec.data_files), name, sleep)
    except DatasetError:
        return
    if spec.data_files is None and config not in configs and (config is not None or len(configs) > 1):
        raise missing_name("config", config, configs, name)
    try:
        known = with_retries(
            lambda: hub_client.split_names(name, config, commit, spec.data_files), name, sleep
        )
    except DatasetError:
        return
    for part in parts:
        if part.name not in known:
            raise missing_name("split", part.name, known, name)


def _read_offline(
    spec: DatasetSpecification, parts: Sequence[SplitPart], wanted: Sequence[str]
) -> LoadedRows:
    """The rows of a set that an earlier run prepared in the cache; nothing is looked up on the network."""
    root = hub_client.cache_folder(spec.dataset)
    # A folder that is not called like its config holds a choice of files, marked by a hash in its name.
    names_of = dict(_prepared(root))
    whole = spec.data_files is None
    prepared = [path for path, name in names_of.items() if (path.parts[-3] == name) == whole]
    if spec.revision not in (None, "main"):
        prepared = [path for path in prepared if path.name == spec.revision]
    if not prepared:
        at = "" if spec.revision is None else f" at revision {spec.revision}"
        raise NetworkError(
            f"Offline, and the data set {spec.dataset}{at} is not in the cache ({root}).",
            hint="Run once without --offline, or name a local file or folder.",
        )
    config = config_of(spec)
    of_config = [path for path in prepared if config in (None, names_of[path])]
    names = sorted({path.parts[-3] for path in of_config or prepared})
    if not of_config or len(names) > 1:
        raise missing_name("config", config, names, f"The cached data set {spec.dataset} ({root})")
    newest = max(of_config, key=lambda path: path.stat().st_mtime)
    splits = hub_client.read_cached(spec.dataset, newest)
    rows = select_rows(splits, parts, wanted, spec.dataset)
    return LoadedRows(rows, spec.dataset, newest.name if _COMMIT.fullmatch(newest.name) else None)


def _prepared(root: Path) -> Iterator[tuple[Path, str]]:
    """Each prepared folder `CONFIG/VERSION/COMMIT` of a cached set with the name of its config."""
    for path in root.glob("*/*/*/dataset_info.json"):
        try:
            name = json.loads(path.read_text(encoding="utf-8"))["config_name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            _logger.warning("%s is damaged and left out: %s", path, error)
            continue
        yield path.parent, str(name)
