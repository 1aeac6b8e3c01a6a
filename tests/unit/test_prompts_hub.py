# SPDX-License-Identifier: Apache-2.0
"""Hub data sets without a network: the library's own code on local repositories (R-DAT-04..08, X13..X16)."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import datasets
import datasets.config
import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from heretic.exceptions import (
    ConfigurationError,
    DatasetConfigError,
    DatasetError,
    HubAccessError,
    NetworkError,
    NetworkTimeoutError,
)
from heretic.prompts import DatasetSpecification, load_prompts
from heretic.prompts.hub import is_c4, retry_delay
from heretic.prompts.hub_client import NetworkFault, Repository, classify, describe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nconfigs:\n- config_name: en\n  data_files: en/*\n- config_name: de\n  data_files: de/*\n---\n"


class LocalHub:
    """Hub names that lead to local repositories; everything after the name is the library's real code."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.size = 1000
        self.described = 0
        self.calls: list[str] = []
        self.slept: list[float] = []
        monkeypatch.chdir(folder.parent)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.parent / "cache")
        monkeypatch.setattr("heretic.prompts.hub_client.describe", self.describe)
        for function in ("load_dataset", "get_dataset_config_names", "get_dataset_split_names"):
            monkeypatch.setattr(datasets, function, self.redirect(getattr(datasets, function)))

    def describe(self, name: str, revision: str | None) -> Repository:
        self.described += 1
        return Repository(name, revision or COMMIT, self.size)

    def redirect(self, original: Callable[..., object]) -> Callable[..., object]:
        def call(name: str, *arguments: object, **options: object) -> object:
            self.calls.append(f"{original.__name__}{' streaming' if options.get('streaming') else ''}")
            return original(str(self.folder / name), *arguments, **options)

        return call

    def add(self, name: str, files: Mapping[str, str]) -> None:
        for path, content in files.items():
            target = self.folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")

    def load(self, name: str, **fields: object) -> tuple[str, ...]:
        spec = DatasetSpecification(name, **fields)  # type: ignore[arg-type]  # fields of the tests
        return load_prompts(spec, sleep=self.slept.append).texts


def jsonl(prefix: str, count: int, column: str = "text") -> str:
    return "".join(json.dumps({column: f"{prefix}{n}"}) + "\n" for n in range(count))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    (tmp_path / "hub").mkdir()
    local = LocalHub(tmp_path / "hub", monkeypatch)
    local.add("owner/set", {"train.jsonl": jsonl("t", 20), "test.jsonl": jsonl("e", 5)})
    local.add("owner/many", {"README.md": CARD, "en/a.jsonl": jsonl("en", 9), "de/a.jsonl": jsonl("de", 9)})
    local.add("owner/c4", {"README.md": CARD, "en/a.jsonl": jsonl("en", 700), "de/a.jsonl": jsonl("de", 9)})
    local.add("owner/my-c4-mix", {"train.jsonl": jsonl("m", 5)})
    return local


def test_r_dat_01_hub_slices_and_revision(hub: LocalHub) -> None:
    loaded = load_prompts(DatasetSpecification("owner/set", split="train[-10%:]+test[:1]"))
    assert loaded.texts == ("t18", "t19", "e0")
    assert (loaded.resolved_revision, loaded.streamed) == (COMMIT, False)
    assert hub.load("owner/set", data_files=("test.jsonl",), split="train[:1]") == ("e0",)


def test_r_dat_06_missing_names_list_the_real_ones(hub: LocalHub) -> None:
    for stream in (True, False):
        with pytest.raises(DatasetConfigError) as caught:
            hub.load("owner/set", split="harmful[:2]", stream=stream)
        assert set(caught.value.data["known"]) == {"train", "test"}  # type: ignore[call-overload]  # typed as object
        with pytest.raises(DatasetConfigError, match="It has: text"):
            hub.load("owner/set", split="train[:2]", column="Goal", stream=stream)
        for config in (None, "fr"):  # R-CLI-45: several variants and none named
            with pytest.raises(DatasetConfigError, match=r"config.*(en, de|de, en)"):
                hub.load("owner/many", split="train[:2]", config=config, stream=stream)
        assert hub.load("owner/many", split="train[:2]", config="de", stream=stream) == ("de0", "de1")


def test_r_dat_06_too_few_rows_gives_both_numbers_and_asks_nothing_more(hub: LocalHub) -> None:
    for stream in (True, False):
        hub.calls.clear()
        with pytest.raises(DatasetError, match="30 needed, 20 found"):
            hub.load("owner/set", split="train[10:30]", stream=stream)
        assert len(hub.calls) == 1
    with pytest.raises(DatasetError, match="40 needed, at most 30 found"):
        hub.load("owner/set", split="train[30:40]", stream=True)


def test_r_dat_04_c4_streams_with_config_en(hub: LocalHub) -> None:
    assert hub.load("owner/c4", split="train[400:600]") == tuple(f"en{n}" for n in range(400, 600))
    assert hub.load("owner/c4", split="train[:2]", config="de", stream=False) == ("de0", "de1")
    assert set(hub.calls) == {"load_dataset streaming"}
    # R-DAT-05: a stream leaves nothing on disk; an ordinary load does.
    kept = hub.folder.parent / "cache"
    assert list(kept.rglob("*.arrow")) == []
    hub.load("owner/set")
    assert list(kept.rglob("*.arrow"))
    assert all(is_c4(name) for name in ("c4", "allenai/c4"))
    assert not any(is_c4(name) for name in ("allenai/c4x", "c4/set", "me/C4", "a/my-c4-mix"))


def test_r_dat_04_a_name_that_merely_contains_c4_is_ordinary(hub: LocalHub) -> None:
    assert hub.load("owner/my-c4-mix", split="train[-2:]") == ("m3", "m4")
    assert hub.calls == ["load_dataset"]


def test_r_dat_04_auto_streams_above_5_gb_with_an_absolute_end(hub: LocalHub) -> None:
    expected = {
        (6_000_000_000, "train[:4]"): True,
        (6_000_000_000, "train[:20%]"): False,
        (4, "train[:4]"): False,
    }
    for (size, split), streams in expected.items():
        hub.size = size
        hub.calls.clear()
        assert hub.load("owner/set", split=split) == ("t0", "t1", "t2", "t3")
        assert hub.calls == ["load_dataset streaming" if streams else "load_dataset"]
    hub.size = 6_000_000_000
    assert not load_prompts(DatasetSpecification("owner/set", split="train[:4]", stream=False)).streamed


@pytest.mark.parametrize("split", ["train", "train[400:]", "train[:5%]", "train[-9:]"])
@pytest.mark.parametrize(("name", "stream"), [("owner/c4", "auto"), ("owner/set", True)])
def test_r_dat_05_open_and_percent_ends_cannot_stream(
    name: str, stream: object, split: str, hub: LocalHub
) -> None:
    with pytest.raises(DatasetConfigError, match="streamed") as caught:
        hub.load(name, split=split, stream=stream)
    assert "train[:200]" in (caught.value.hint or "")
    assert hub.described == 0  # refused before any request


def test_r_dat_05_a_stream_reads_no_row_beyond_the_slice(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(10_000):
            read.append(number)
            yield {"text": f"row {number}"}

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    texts = hub.load("owner/set", split="train[400:600]", stream=True)
    assert texts == tuple(f"row {number}" for number in range(400, 600))
    assert len(read) <= 601
    hub.load("owner/set", split="train[3:5]+train[:2]", stream=True)
    assert hub.slept == []


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub.invalid/api"))


def test_r_dat_06_three_attempts_then_timeout(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []
    faults: list[Exception] = [
        httpx2.ConnectError("no route"),
        HfHubHTTPError("busy", response=response(429)),
        HfHubHTTPError("down", response=response(503)),
    ]
    original = datasets.load_dataset

    def failing(*arguments: object, **options: object) -> object:
        attempts.append(len(attempts))
        if len(attempts) <= len(faults):
            raise ConnectionError("wrapped") from faults[len(attempts) - 1]
        return original(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", failing)
    with pytest.raises(NetworkTimeoutError, match="3 attempts"):
        hub.load("owner/set")
    assert (len(attempts), hub.slept) == (3, [2.0, 4.0])
    assert [retry_delay(k) for k in range(7)] == [2, 4, 8, 16, 32, 60, 60]
    del faults[2:], attempts[:]  # the third attempt succeeds
    assert len(hub.load("owner/set")) == 20


def test_x14_a_stream_that_breaks_is_started_again(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [True]

    def rows() -> Iterator[dict[str, str]]:
        for number in range(10):
            if number == 4 and broken.pop() if broken else False:
                raise httpx2.ReadTimeout("slow")
            yield {"text": f"row {number}"}

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    assert hub.load("owner/set", split="train[2:6]", stream=True) == ("row 2", "row 3", "row 4", "row 5")
    assert hub.slept == [2.0]


def test_x13_gated_before_not_found_and_different_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        gated, sha, used_storage = "auto", COMMIT, 5

    def deny(*_: object, **__: object) -> None:
        raise GatedRepoError("gated", response=response(403))

    def missing(*_: object, **__: object) -> None:
        raise RepositoryNotFoundError("none", response=response(404))

    assert issubclass(GatedRepoError, RepositoryNotFoundError)  # the reason for the order
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: Info())
    monkeypatch.setattr(HfApi, "auth_check", deny)
    with pytest.raises(HubAccessError, match="gated") as gated:
        describe("owner/set", None)
    assert "huggingface.co/datasets/owner/set" in (gated.value.hint or "")
    assert "HF_TOKEN" in (gated.value.hint or "")
    monkeypatch.setattr(HfApi, "dataset_info", missing)
    with pytest.raises(DatasetError, match="no data set owner/set"):
        describe("owner/set", None)
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match="neither an existing path nor a Hub name"):
        describe("owner/bad name", None)  # X16: refused before any request


def test_describe_uses_a_call_that_the_library_has() -> None:
    """The Hub library rejects unknown fields only on a real request: compare with its own list."""
    from typing import get_args

    from huggingface_hub.hf_api import ExpandDatasetProperty_T

    assert {"gated", "sha", "usedStorage"} <= set(get_args(ExpandDatasetProperty_T))
    assert "repo_type" in inspect.signature(HfApi.auth_check).parameters


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RevisionNotFoundError("r", response=response(404)), DatasetError),
        (HFValidationError("bad"), ConfigurationError),
        (OfflineModeIsEnabled("offline"), NetworkError),
        (HfHubHTTPError("h", response=response(500)), NetworkFault),
        (HfHubHTTPError("h", response=response(400)), DatasetError),
        (LocalEntryNotFoundError("l"), DatasetError),
        (TimeoutError(), NetworkFault),
        (RuntimeError("Dataset scripts are no longer supported"), DatasetError),
    ],
)
def test_x13_to_x16_types_at_every_depth_of_the_chain(error: Exception, expected: type[Exception]) -> None:
    wrapped, deeper = OSError("plain"), OSError("deeper")
    wrapped.__cause__ = error
    deeper.__context__ = wrapped
    assert [type(classify(link, "owner/set")) for link in (error, wrapped, deeper)] == [expected] * 3


def prepare_cache(hub: LocalHub, config: str, commit: str) -> Path:
    """Prepare `owner/set` as the library would after a download of `commit`."""
    cache = hub.folder.parent / "cache"
    datasets.load_dataset("owner/set", cache_dir=str(cache / "work"))
    (prepared,) = [path.parent for path in (cache / "work").glob("*/*/*/*/dataset_info.json")]
    target = cache / "owner___set" / config / "0.0.0" / commit
    target.parent.mkdir(parents=True)
    shutil.move(prepared, target)
    shutil.rmtree(cache / "work")
    return target


def test_r_dat_08_offline_reads_the_cache_and_asks_nobody(hub: LocalHub) -> None:
    prepare_cache(hub, "default", COMMIT)
    hub.calls.clear()
    loaded = load_prompts(DatasetSpecification("owner/set", split="train[2:4]"), offline=True)
    assert (loaded.texts, loaded.resolved_revision) == (("t2", "t3"), COMMIT)
    pinned = DatasetSpecification("owner/set", revision=COMMIT, split="test")
    assert len(load_prompts(pinned, offline=True)) == 5
    assert (hub.calls, hub.described) == ([], 0)
    with pytest.raises(DatasetConfigError, match=r"It has: default"):
        load_prompts(DatasetSpecification("owner/set", config="fr"), offline=True)
    with pytest.raises(NetworkError, match="revision ffff"):
        load_prompts(DatasetSpecification("owner/set", revision="f" * 40), offline=True)


def test_r_dat_08_offline_with_several_cached_configs_lists_them(hub: LocalHub) -> None:
    source = prepare_cache(hub, "en", COMMIT)
    information = json.loads((source / "dataset_info.json").read_text(encoding="utf-8"))
    shutil.copytree(source, source.parents[2] / "de" / "0.0.0" / COMMIT)
    for config in ("en", "de"):
        target = source.parents[2] / config / "0.0.0" / COMMIT
        (target / "dataset_info.json").write_text(json.dumps(information | {"config_name": config}), "utf-8")
    damaged = source.parents[2] / "fr" / "0.0.0" / COMMIT
    damaged.mkdir(parents=True)
    (damaged / "dataset_info.json").write_text("{", "utf-8")
    with pytest.raises(DatasetConfigError, match="It has: de, en"):
        load_prompts(DatasetSpecification("owner/set"), offline=True)
    assert (
        len(load_prompts(DatasetSpecification("owner/set", config="de", revision="main"), offline=True)) == 20
    )
    with pytest.raises(NetworkError, match="not in the cache"):
        load_prompts(DatasetSpecification("owner/set", data_files=("test.jsonl",)), offline=True)


def test_r_dat_08_offline_without_cache_fails_at_once_naming_it(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(offline: bool) -> None:
        with pytest.raises(NetworkError, match=r"cache \(.*cache.owner___set\)"):
            load_prompts(DatasetSpecification("owner/set"), offline=offline, sleep=hub.slept.append)

    attempt(offline=True)
    with pytest.raises(NetworkError, match="owner___c4"):
        load_prompts(DatasetSpecification("owner/c4", split="train[:200]"), offline=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    attempt(offline=False)
    assert (hub.slept, hub.described) == ([], 0)


def test_an_older_cached_commit_is_not_taken_for_the_one_asked_for(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library silently answers from its cache when the Hub stops answering half way."""
    from heretic.prompts import hub_client

    older = prepare_cache(hub, "default", "f" * 40)
    table = datasets.Dataset.from_file(str(next(older.glob("*train*.arrow"))))
    answer = datasets.DatasetDict({"train": table})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: answer)
    with pytest.raises(NetworkTimeoutError, match="f{40}"):
        hub.load("owner/set")
    assert hub_client.download("owner/set", None, "f" * 40, None)["train"]().count == 20
