# SPDX-License-Identifier: Apache-2.0
"""Bad input is one sentence with a remedy, exit code 2, and no request (R-CLI-28, R-VAS-03, R-VAS-53)."""

from __future__ import annotations

import pytest

from .conftest import Cloud
from .provider import KEY

pytestmark = pytest.mark.loopback
YES = ("create", "RTX_4090", "--yes", "--max-price", "0.5")

BAD = [
    (("create", "RTX_9090"), "RTX_4090"),
    (("create", "RTX_4090", "0"), "1 to 8"),
    (("create", "RTX_4090", "9"), "1 to 8"),
    (("create", "RTX_4090", "many"), "many"),
    (("create", "--disk", "10"), "75"),
    (("create", "--disk", "99999999"), "16000"),
    (("create", "--max-price", "-1"), "above 0"),
    (("create", "--max-hours", "0"), "24"),
    (("create", "--max-hours", "25"), "24"),
    (("create", "--wait", "-1"), "120"),
    (("create", "--offer", "0"), "gpus"),
    (("create", "--image", "pytorch/pytorch:latest"), "pinned"),
    (("create", "--image", "pytorch"), "pinned"),
    (("create", "--accept-small-disk"), "--model"),
    (("create", "--yes"), "--max-price"),
    (("create", "--bogus"), "--bogus"),
    (("create", "--api-url", "http://example.com"), "https"),
    (("create", "--api-url", "ftp://x"), "console.vast.ai"),
    (("create", "--ssh-key", "/nowhere/id"), "--ssh-key"),
    (("create", "--offline", "--weights-gb", "15"), "--offline"),
    (("gpus", "--limit", "0"), "500"),
    (("gpus", "--gpus", "12"), "1 to 8"),
    (("stop", "abc"), "whole number"),
    (("stop", "0"), "whole number"),
    (("stop", "1000000000"), "whole number"),
    (("stop", "--yes"), "ID"),
    (("start", "--yes"), "ID"),
    (("start", "5", "--max-hours", "99"), "24"),
    (("terminate",), "terminate"),
    (("terminate", "7;ls"), "whole number"),
    (("complete",), "watch"),
    (("finish",), "stop"),
    (("end", "5"), "watch"),
    (("kill", "5"), "stop"),
    (("destroy", "5"), "terminate"),
    (("creat",), "create"),
    (("--api-url",), "--api-url"),
]


@pytest.mark.parametrize(
    ("line", "named"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_bad_input_is_one_sentence_with_a_remedy_and_sends_nothing(
    cloud: Cloud, line: tuple[str, ...], named: str
) -> None:
    told = cloud.run(*line, "--json")
    error = told.document["error"]
    assert told.code == 2 and not cloud.provider.requests
    assert error["message"] and error["remedy"] and named in told.text, told.text


def test_no_key_and_a_malformed_key_send_nothing(cloud: Cloud) -> None:
    """R-VAS-03: nothing of the value is shown."""
    del cloud.environ["VAST_API_KEY"]
    told = cloud.run("list", "--json")
    assert told.code == 2 and told.document["error"]["type"] == "APIKeyValidationError"
    cloud.environ["VAST_API_KEY"] = f"{KEY}\nx"
    told = cloud.run("list")
    assert told.code == 2 and "letters, digits" in told.text and "canary" not in told.text
    assert not cloud.provider.requests


def test_without_an_ssh_key_nothing_is_rented(cloud: Cloud) -> None:
    """It would be a machine that nobody can enter."""
    (cloud.home / ".ssh" / "id_ed25519").unlink()
    told = cloud.run(*YES)
    assert told.code == 2 and "ssh-keygen" in told.text and not cloud.provider.requests
