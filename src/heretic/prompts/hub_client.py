# SPDX-License-Identifier: Apache-2.0
"""The one place that calls `datasets` and `huggingface_hub`, and turns their errors into ours (reliability
X13..X16).

Every function here is one call of a library and does no policy: no retries, no slices. Errors are told apart
by type and by the chain of causes, the special before the general. A fault that another attempt may cure is
`NetworkFault`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.exceptions import (
    ConfigurationError,
    DatasetError,
    HubAccessError,
    NetworkError,
)
from heretic.prompts.tables import Row, Splits, Table

if TYPE_CHECKING:
    # `Any` below stands for this library's objects: it ships no types.
    import datasets

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Where the library parts the words of a name: HTMLPage, coolSet.
_UPPER_UPPER = re.compile(r"([A-Z]+)([A-Z][a-z])")
_LOWER_UPPER = re.compile(r"([a-z\d])([A-Z])")
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class NetworkFault(Exception):
    """No answer, or an answer that asks to try again. Internal: `hub.py` makes it our error."""


@dataclass(frozen=True)
class Repository:
    """A data set on the Hub: the commit its revision means now, and its size in bytes if known."""

    name: str
    commit: str
    size: int | None


def is_offline() -> bool:
    """Whether the Hub library was told to stay offline (`HF_HUB_OFFLINE`, read when it was imported)."""
    import huggingface_hub.constants

    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def describe(name: str, revision: str | None) -> Repository:
    """Resolve `revision` to a commit and check that this user may read the files; nothing is downloaded.

    The check is made here because the loading library drops the reason from its own error (datasets 5.2).
    Raises `HubAccessError` (gated, private), `DatasetError` (no such set or revision), `ConfigurationError`
    (malformed name), `NetworkFault`.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with translated(name):
        info = api.dataset_info(name, revision=revision, expand=["gated", "sha", "usedStorage"])
        if info.gated:
            api.auth_check(name, repo_type="dataset")
    return Repository(name, str(info.sha), info.used_storage)


def config_names(name: str, commit: str, data_files: tuple[str, ...] | None) -> list[str]:
    """The configs of a Hub set."""
    import datasets

    with translated(name):
        return list(datasets.get_dataset_config_names(name, revision=commit, data_files=_listed(data_files)))


def split_names(name: str, config: str | None, commit: str, data_files: tuple[str, ...] | None) -> list[str]:
    """The splits of one config of a Hub set."""
    import datasets

    files = _listed(data_files)
    with translated(name):
        return list(datasets.get_dataset_split_names(name, config, revision=commit, data_files=files))


def download(name: str, config: str | None, commit: str, data_files: tuple[str, ...] | None) -> Splits:
    """All splits of one config, downloaded into the library's cache."""
    import datasets

    with translated(name):
        loaded = datasets.load_dataset(name, config, revision=commit, data_files=_listed(data_files))
    _check_commit(loaded, name, commit)
    return _splits_of(loaded, name)


def _check_commit(loaded: Any, name: str, commit: str) -> None:
    """Raise `NetworkFault` if the library answered with another commit.

    It does so, with no more than a log line, when the Hub stops answering and its cache has an older copy
    (datasets 5.2).
    """
    for files in loaded.cache_files.values():
        for file in files:
            prepared = Path(file["filename"]).parent.name
            if _COMMIT.fullmatch(prepared) and prepared != commit:
                raise NetworkFault(f"only commit {prepared} of {name} is in the cache, not {commit}")


def stream(
    name: str,
    config: str | None,
    commit: str,
    data_files: tuple[str, ...] | None,
    split: str,
    start: int,
    stop: int,
) -> Iterator[Mapping[str, object]]:
    """The rows start..stop of a split, read over the network as they are asked for; nothing is kept on disk.

    Skips and takes on the stream: a slice in the split's name is refused by the library when streaming.
    """
    import datasets

    files = _listed(data_files)
    with translated(name):
        whole = datasets.load_dataset(
            name, config, split=split, revision=commit, data_files=files, streaming=True
        )
        rows: Iterable[Mapping[str, object]] = whole.skip(start).take(stop - start)
        yield from rows


def cache_folder(name: str) -> Path:
    """The folder in which the library keeps the prepared files of a Hub set.

    Worked out as the library does it: its import takes half a second, and offline most sets are not there.
    """
    library = sys.modules.get("datasets.config")
    cache = _cache_root() if library is None else str(library.HF_DATASETS_CACHE)
    *owner, base = name.split("/")
    words = _LOWER_UPPER.sub(r"\1_\2", _UPPER_UPPER.sub(r"\1_\2", base)).lower()
    return Path(cache).expanduser() / "___".join([*owner, words])


def _cache_root() -> str:
    """Where data sets are kept, by the variables that the library documents."""
    home = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    home = os.path.expanduser(os.environ.get("HF_HOME", home))
    return os.environ.get("HF_DATASETS_CACHE", os.path.join(home, "datasets"))


def read_cached(name: str, config_folder: Path) -> Splits:
    """The splits of one prepared config, `CACHE/SET/CONFIG/VERSION/COMMIT`, read without any network."""
    from datasets.packaged_modules.cache.cache import Cache

    config, version, commit = config_folder.parts[-3:]
    cache_root = str(config_folder.parents[3])
    with translated(name):
        builder = Cache(
            cache_dir=cache_root,
            repo_id=name,
            dataset_name=name.split("/")[-1],
            config_name=config,
            version=version,
            hash=commit,
        )
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    return _splits_of(loaded, name)


def read_saved(folder: Path) -> Splits:
    """The splits of a folder written by `save_to_disk`; a saved `Dataset` is `train` and its own split."""
    import datasets

    with translated(str(folder)):
        loaded = datasets.load_from_disk(str(folder))
    return _splits_of(loaded, str(folder))


def read_repository(folder: Path, config: str | None) -> Splits:
    """The splits of a local copy of a Hub repository whose card names its configs."""
    import datasets

    with translated(str(folder)):
        names = list(datasets.get_dataset_config_names(str(folder)))
        if config not in names and not (config is None and len(names) == 1):
            from heretic.prompts.tables import missing_name

            raise missing_name("config", config, names, str(folder))
        loaded = datasets.load_dataset(str(folder), config)
    return _splits_of(loaded, str(folder))


def _listed(data_files: tuple[str, ...] | None) -> list[str] | None:
    return None if data_files is None else list(data_files)


def _splits_of(loaded: Any, label: str) -> Splits:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        return {str(name): partial(_arrow_table, split, f"{label} {name}") for name, split in loaded.items()}
    return {
        name: partial(_arrow_table, loaded, label)
        for name in dict.fromkeys(("train", str(loaded.split or "train")))
    }


def _arrow_table(data: datasets.Dataset, label: str) -> Table:
    def fetch(start: int, stop: int, wanted: Sequence[str]) -> list[Row]:
        with translated(label):
            # The set's own format (numpy, torch) would give other types than plain Python values.
            columns = data.with_format(None).select_columns(list(wanted))[start:stop]
        named = {name: _class_names(data, name, columns[name]) for name in wanted}
        return [
            Row(f"row {start + n + 1}", {name: named[name][n] for name in wanted})
            for n in range(stop - start)
        ]

    return Table(label, tuple(data.column_names), len(data), fetch)


def _class_names(data: datasets.Dataset, column: str, values: Sequence[object]) -> Sequence[object]:
    """Class numbers as the names they stand for; other values unchanged."""
    names = getattr(data.features[column], "names", None)
    if not isinstance(names, list):
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else None for value in values]


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn what the two libraries raise while reading `name` into our errors, by type."""
    import httpx2
    import pyarrow
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import EntryNotFoundError

    known: tuple[type[Exception], ...] = (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        httpx2.HTTPError,
        pyarrow.ArrowException,
        DatasetsError,
        EntryNotFoundError,
    )
    try:
        yield
    except known as error:
        raise classify(error, name) from error


def classify(error: BaseException, name: str) -> Exception:
    """Our error for a library error, the special before the general (R-ERR-02)."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/datasets/{name}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    rules: tuple[tuple[type[BaseException], Callable[[], Exception]], ...] = (
        # A gated repository is a subclass of one that is not found.
        (
            GatedRepoError,
            lambda: HubAccessError(
                f"The data set {name} is gated.", hint=f"Accept its terms at {page}, then {login}."
            ),
        ),
        (
            RepositoryNotFoundError,
            lambda: DatasetError(
                f"There is no data set {name} on the Hub that this user can see.",
                hint=f"Check the name; for a private set {login}.",
            ),
        ),
        (
            RevisionNotFoundError,
            lambda: DatasetError(
                f"The data set {name} has no such revision.", hint=f"See {page}/commits/main."
            ),
        ),
        (
            HFValidationError,
            lambda: ConfigurationError(
                f"{name!r} is neither an existing path nor a Hub name.",
                hint="A Hub data set is named OWNER/NAME.",
            ),
        ),
        # Offline mode is a ConnectionError, but no second attempt can help.
        (
            OfflineModeIsEnabled,
            lambda: NetworkError(
                f"The data set {name} is not at hand and the Hub library is offline.",
                hint="Unset HF_HUB_OFFLINE.",
            ),
        ),
    )
    chain = list(_chain(error))
    for kind, make in rules:
        if any(isinstance(link, kind) for link in chain):
            return make()
    if any(_is_network_fault(link) for link in chain):
        return NetworkFault(f"{type(chain[-1]).__name__}: {chain[-1]}"[:300])
    return DatasetError(
        f"{name} cannot be read: {type(error).__name__}: {str(error)[:500]}",
        hint="Check that it holds JSON, CSV, Parquet or text files; loading scripts are never run.",
        data={"library_error": type(error).__name__},
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network_fault(error: BaseException) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _RETRY_STATUS
    return isinstance(error, (ConnectionError, TimeoutError, httpx2.TransportError))
