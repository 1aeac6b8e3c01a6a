# SPDX-License-Identifier: Apache-2.0
"""What `heretic-vast` reads from outside, and that secrets stay inside (R-VAS-01 to 03, F06, I01 to I05)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heretic.cloud.configuration import DEFAULT_URL, VastConfig
from heretic.cloud.dotenv import read_dotenv
from heretic.cloud.errors import APIKeyValidationError
from heretic.cloud.keys import local_keys
from heretic.cloud.types import Secret
from heretic.exceptions import ConfigurationError

KEY = "a-canary_KEY-0123456789"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """VastConfig.load in a home of its own; `dotenv` writes the folder's file."""
    folder = tmp_path / "work"
    folder.mkdir()

    def call(
        environ: dict[str, str] | None = None, dotenv: str | bytes | None = None, **flags: str
    ) -> VastConfig:
        if dotenv is not None:
            data = dotenv if isinstance(dotenv, bytes) else dotenv.encode()
            (folder / ".env").write_bytes(data)
        return VastConfig.load(environ={"HOME": str(tmp_path), **(environ or {})}, folder=folder, **flags)

    return call


def test_flags_beat_environment_beats_dotenv_beats_packaged(load: Any) -> None:
    assert load().image == load().image and load().image_source == "packaged"
    assert load(dotenv="VAST_IMAGE=a/b:1\n").image == "a/b:1"
    assert load({"VAST_IMAGE": "a/b:2"}).image == "a/b:2"
    assert load({"VAST_IMAGE": "a/b:2"}, image="a/b:3").image == "a/b:3"


DOTENV = [
    (f"VAST_API_KEY={KEY}", KEY), (f'VAST_API_KEY="{KEY}"', KEY), (f"VAST_API_KEY='{KEY}'", KEY),
    (f"export VAST_API_KEY={KEY}", KEY), (f"# a comment\n\nVAST_API_KEY = {KEY} # mine\n", KEY),
    (f"\ufeffVAST_API_KEY={KEY}\r\n", KEY), ("VAST_API_KEY=", None), ("VAST_API_KEY=<your key>", None),
    ("VAST_API_KEY=your_key_here", None), ("VAST_API_KEY=changeme", None), ("VAST_API_KEY=xxxx", None),
    ("VAST_API_KEY=...", None), ("OTHER=1", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key"), DOTENV, ids=range(len(DOTENV)))
def test_dotenv_values_quotes_comments_and_placeholders(load: Any, text: str, key: str | None) -> None:
    """R-VAS-02."""
    found = load(dotenv=text).api_key
    assert (found.reveal() if found else None) == key


@pytest.mark.parametrize("data", ["VAST_API_KEY=x".encode("utf-16"), b"VAST_API_KEY=\xff\xfe", b"A=\0"])
def test_a_dotenv_of_another_encoding_is_refused_with_the_cure(load: Any, data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load(dotenv=data)


def test_a_line_that_is_none_is_named_without_its_content(load: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(dotenv=f"A=1\n{KEY}\n")
    assert ".env:2" in caught.value.message and KEY not in caught.value.message


def test_a_found_file_is_announced_and_its_names_alone(load: Any) -> None:
    notices = " ".join(load(dotenv=f"VAST_API_KEY={KEY}\n").notices)
    assert "read VAST_API_KEY" in notices and KEY not in notices


@pytest.mark.parametrize("name", ["VAST_API_URL", "VAST_API_VERSION"])
def test_a_file_never_says_where_the_key_goes(load: Any, name: str) -> None:
    """F06, I05."""
    found = load(dotenv=f"{name}=https://evil.example/v9\n")
    assert found.api_url == DEFAULT_URL and found.api_version is None
    assert any(name in notice and "ignored" in notice for notice in found.notices)
    other = load({"VAST_API_URL": "https://other.example"})
    assert other.api_url == "https://other.example" and any(
        "other.example" in notice for notice in other.notices
    )


URLS = [
    "http://example.com",
    "ftp://x",
    "https://",
    "https://x/path",
    "https://x?a=b",
    "https://user:pw@x",
    "x",
    "file:///etc",
]


@pytest.mark.parametrize("url", URLS)
def test_an_address_that_would_leak_the_key_is_refused(load: Any, url: str) -> None:
    with pytest.raises(ConfigurationError):
        load(api_url=url)


def test_addresses_and_versions(load: Any) -> None:
    assert (load(api_url="https://x.y/api/v1/").api_url, load(api_url="https://x.y/api/v1/").api_version) == (
        "https://x.y",
        "v1",
    )
    assert load(api_url="https://x.y", api_version="v0").api_version == "v0"
    assert load(api_url="http://127.0.0.1:80/").api_url == "http://127.0.0.1:80"
    with pytest.raises(ConfigurationError):
        load(api_version="latest")


@pytest.mark.parametrize(
    "key",
    ["short", "with space 12345678", "semi;colon12345678", "line\nbreak12345678", "\u00e9" * 12, "a" * 300],
)
def test_a_key_that_cannot_be_one_shows_nothing_of_itself(load: Any, key: str) -> None:
    """R-VAS-03."""
    with pytest.raises(APIKeyValidationError) as caught:
        load({"VAST_API_KEY": key})
    assert key.strip() not in str(caught.value) and caught.value.exit_code == 2 and caught.value.hint


def test_the_providers_key_file_is_the_last_resort(load: Any, tmp_path: Path) -> None:
    with pytest.raises(APIKeyValidationError):
        load().need_key()
    (tmp_path / ".vast_api_key").write_text(f"{KEY}-old\n", encoding="utf-8")
    assert load().need_key().reveal() == f"{KEY}-old"
    newer = tmp_path / ".config" / "vastai"
    newer.mkdir(parents=True)
    (newer / "vast_api_key").write_text(KEY, encoding="utf-8")
    assert load().need_key().reveal() == KEY
    assert load({"VAST_API_KEY": "from-the-environment"}).need_key().reveal() == "from-the-environment"


def test_secrets_show_stars_everywhere(load: Any) -> None:
    config = load({"VAST_API_KEY": KEY, "HF_TOKEN": "hf_" + "x" * 30})
    for text in (repr(config), str(config), f"{config}", repr(config.api_key), str(config.hf_token)):
        assert KEY not in text and "hf_x" not in text
    assert Secret(KEY).scrub(f"bad key {KEY}!") == "bad key [redacted]!" and Secret("a") == Secret(
        "a"
    ) != Secret("b")


def test_caps_and_disks_of_tiers_are_settings(load: Any) -> None:
    config = load({"VAST_MAX_PRICE_RTX_4090": "0.61", "VAST_DISK_H100": "500"})
    assert config.tiers["RTX_4090"].max_price == 0.61 and config.tiers["H100"].disk_gb == 500
    assert config.tiers["A6000"] == load().tiers["A6000"]
    for name, value in (
        ("VAST_MAX_PRICE_RTX_9", "1"),
        ("VAST_DISK_H100", "many"),
        ("VAST_MAX_PRICE_H100", "-1"),
    ):
        with pytest.raises(ConfigurationError, match=name.rsplit("_", 2)[-1] if "RTX" in name else name):
            load({name: value})


@pytest.mark.parametrize("image", ["pytorch/pytorch", "pytorch/pytorch:latest", "x; rm -rf /:1", "", ":1"])
def test_an_image_that_moves_is_refused(load: Any, image: str) -> None:
    with pytest.raises(ConfigurationError, match="pinned"):
        load(image=image)
    assert load(image="a/b@sha256:" + "0" * 64).image.startswith("a/b@")


@pytest.mark.parametrize("value", ["relative", "/", "/a/../b", "/a b", "/a;b"])
def test_a_workspace_that_needs_quoting_is_refused(load: Any, value: str) -> None:
    with pytest.raises(ConfigurationError):
        load({"VAST_WORKSPACE": value})


def test_an_open_dotenv_is_warned_about(tmp_path: Path) -> None:
    """I04."""
    (tmp_path / ".env").write_text("A=1\n", encoding="utf-8")
    (tmp_path / ".env").chmod(0o644)
    assert any("chmod 600" in notice for notice in read_dotenv(tmp_path).notices)
    (tmp_path / ".env").chmod(0o600)
    assert not read_dotenv(tmp_path).notices


def test_keys_to_log_in_with(load: Any, tmp_path: Path) -> None:
    """R-VAS-05: ed25519 before rsa, the agent, a named one alone."""
    environ = {"HOME": str(tmp_path)}
    with pytest.raises(ConfigurationError, match="no SSH key"):
        local_keys(load(), environ)
    assert local_keys(load(), {**environ, "SSH_AUTH_SOCK": "/x"}).agent
    folder = tmp_path / ".ssh"
    folder.mkdir()
    for name in ("id_rsa", "id_ed25519", "named"):
        (folder / name).write_text("private", encoding="utf-8")
    (folder / "id_rsa.pub").write_text("ssh-rsa AAAA me\n", encoding="utf-8")
    found = local_keys(load(), environ)
    assert [path.name for path in found.files] == [
        "id_ed25519",
        "id_rsa",
    ] and found.public == "ssh-rsa AAAA me"
    assert [path.name for path in local_keys(load(ssh_key=str(folder / "named")), environ).files] == ["named"]
