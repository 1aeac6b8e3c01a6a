# SPDX-License-Identifier: Apache-2.0
"""`list`, faults of reads, and Ctrl-C (H05, H12, R-VAS-04, R-VAS-24, R-VAS-54, R-VAS-56)."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from .conftest import Cloud, thin
from .provider import KEY

pytestmark = pytest.mark.loopback
GONE = ("--yes", "--discard-unsaved")


# list


def test_list_shows_state_price_lease_and_age_and_no_uptime(cloud: Cloud, mine: int) -> None:
    """R-VAS-24, R-VAS-54: the uptime of a shared host is not shown anywhere."""
    cloud.provider.instance(42, "colleague", "loading")
    told = cloud.run("list", "--json")
    by_id = {entry["id"]: entry for entry in told.document["instances"]}
    assert by_id[mine]["ours"] and not by_id[42]["ours"] and by_id[42]["state"] == "loading"
    assert by_id[mine]["lease"].endswith("left") and by_id[mine]["hourly"] == pytest.approx(0.3156, abs=1e-3)
    shown = cloud.run("list")
    assert "987654" not in shown.out + told.out and "uptime" not in (shown.out + told.out).lower()
    cloud.clock.sleep(13 * 3600)
    assert "OVERRUN by 5" in cloud.run("list").text or "OVERRUN by 1h" in cloud.run("list").text


STATES: list[tuple[dict[str, object], str]] = [
    ({"actual_status": None, "cur_state": "running"}, "loading"),
    ({"actual_status": "created", "cur_state": "running"}, "loading"),
    ({"actual_status": "rebooting", "cur_state": "running"}, "loading"),
    ({"actual_status": "frozen", "cur_state": "running"}, "frozen"),
    ({"actual_status": "offline", "cur_state": "running"}, "unknown"),
    ({"actual_status": "unknown", "cur_state": "running"}, "unknown"),
    ({"actual_status": "exited", "cur_state": "running"}, "exited"),
    ({"actual_status": "stopped", "cur_state": "running"}, "unknown"),
    ({"actual_status": "stopped", "cur_state": "stopped"}, "stopped"),
    ({"actual_status": 17, "cur_state": []}, "unknown"),
]


@pytest.mark.parametrize(("raw", "state"), STATES)
def test_states_are_as_the_provider_says(cloud: Cloud, raw: dict[str, object], state: str) -> None:
    cloud.provider.instance(42, "x", **raw)  # type: ignore[arg-type]
    assert cloud.run("list", "--json").document["instances"][0]["state"] == state


def test_a_silent_provider_leaves_the_last_known_marked_as_such(cloud: Cloud, mine: int) -> None:
    """H05: UNKNOWN with the time, and exit 1; never a state of now."""
    cloud.provider.fault("GET", "/instances/", "drop", times=50)
    told = cloud.run("list")
    assert (
        told.code == 1
        and f"instance {mine}" in told.text
        and "UNKNOWN, last seen running 2027-01-15" in told.text
    )


BODIES = [
    "[]",
    "null",
    '{"instances": 5}',
    '{"instances": null}',
    "{",
    "\\x00",
    "NaN",
    '{"offers": 3}',
    '"x"',
]


@pytest.mark.parametrize("body", thin(BODIES, 4))
@pytest.mark.parametrize("line", [("list",), ("gpus",)])
def test_garbage_is_an_error_in_words(cloud: Cloud, line: tuple[str, ...], body: str) -> None:
    cloud.provider.fault("", "/api/", "text", body=body, times=50)
    told = cloud.run(*line, "--json")
    assert told.code == 1 and told.document["error"]["remedy"] and "Traceback" not in told.text


@pytest.mark.parametrize("entry", [{}, {"id": "x"}, {"id": -4}, {"id": True}, 7, None, {"id": 10**30}])
def test_entries_that_are_none_are_left_out(cloud: Cloud, entry: object) -> None:
    body = json.dumps({"instances": [entry, {"id": 42, "actual_status": "running"}], "total_instances": 1})
    cloud.provider.fault("GET", "/instances/", "text", body=body, times=5)
    assert [found["id"] for found in cloud.run("list", "--json").document["instances"]] == [42]


READ_FAULTS: list[tuple[str, dict[str, object]]] = [
    ("drop", {}), ("text", {"status": 429, "body": "too frequent"}), ("stall", {}), ("trickle", {}), ("cut", {}),
    ("text", {"status": 500, "body": ""}), ("text", {"status": 502, "body": "<html>"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rest"), thin(READ_FAULTS, 3))
def test_reads_repeat_and_give_up_in_words(cloud: Cloud, kind: str, rest: dict[str, object]) -> None:
    """R-VAS-04, H12: twice is made good, for ever is an error within the time limits."""
    cloud.provider.fault("GET", "/instances/", kind, times=2, **rest)
    assert cloud.run("list").code == 0
    cloud.provider.fault("GET", "/instances/", kind, times=1000, **rest)
    told = cloud.run("list", "--json")
    assert told.code == 1 and told.document["error"]["remedy"]


@pytest.mark.parametrize(
    ("status", "word"), [(401, "key"), (403, "permissions"), (410, "--api-version"), (302, "--api-url")]
)
def test_statuses_have_clear_words(cloud: Cloud, status: int, word: str) -> None:
    cloud.provider.fault("GET", "/instances/", "text", status=status, body=f'{{"msg": "no {KEY}"}}', times=50)
    told = cloud.run("list", "--json")
    assert told.code == 1 and str(status) in told.document["error"]["message"] and word in told.text
    assert "[redacted]" in told.text


def test_a_key_that_comes_back_in_a_label_is_not_shown(cloud: Cloud) -> None:
    """Whatever the way, the console cleans what it shows; here the key is from `.env`, not from the environment."""
    del cloud.environ["VAST_API_KEY"]
    (cloud.folder / ".env").write_text(f"VAST_API_KEY={KEY}\n", encoding="utf-8")
    cloud.provider.instance(42, f"x {KEY}")
    for flags in ((), ("--json",)):
        told = cloud.run("list", *flags)
        assert told.code == 0 and "redacted" in told.text


def test_nobody_listens(cloud: Cloud) -> None:
    cloud.environ["VAST_API_URL"] = "http://127.0.0.1:9"
    told = cloud.run("list")
    assert told.code == 1 and "cannot be reached" in told.text


def interrupting(cloud: Cloud) -> Callable[[float], None]:
    """A sleep in which the user presses Ctrl-C."""

    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    return press


def test_ctrl_c_says_what_goes_on_costing(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-VAS-56."""
    cloud.provider.never.add("run")
    monkeypatch.setattr(cloud.clock, "sleep", interrupting(cloud))
    told = cloud.run("create", "--yes", "--max-price", "0.5", "--json")
    assert told.code == 130 and "Instance 7001 exists and costs $0.316 per hour" in told.text
    assert 7001 in cloud.provider.instances and cloud.ledger().rentals()[0].id == 7001


def test_ctrl_c_while_stopping_does_not_say_stopped(
    cloud: Cloud, mine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud.clock, "sleep", interrupting(cloud))
    told = cloud.run("stop", str(mine), *GONE)
    assert told.code == 130 and "whether it did is not known" in told.text
