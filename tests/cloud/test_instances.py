# SPDX-License-Identifier: Apache-2.0
"""`list`, `start`, `stop`, `terminate`: only what is named, and no success that was not seen (H03 to H06, REL-16)."""

from __future__ import annotations

import pytest

from .conftest import Cloud, thin

pytestmark = pytest.mark.loopback
GONE = ("--yes", "--discard-unsaved")


def truth(cloud: Cloud, identity: int) -> str:
    """What is true of an instance."""
    entry = cloud.provider.instances.get(identity)
    return "gone" if entry is None else str(entry["cur_state"])


def test_stop_says_what_was_seen_and_that_the_disk_costs(cloud: Cloud, mine: int) -> None:
    told = cloud.run("stop", str(mine), *GONE)
    assert told.code == 0 and truth(cloud, mine) == "stopped"
    assert (
        "was seen exited (contract: stopped)" in told.text
        and "disk of 75 GB is, at $0.0156 per hour" in told.text
    )
    assert cloud.ledger().rentals()[0].state == "stopped"


def test_terminate_is_done_when_the_list_lacks_it(cloud: Cloud, mine: int) -> None:
    told = cloud.run("terminate", str(mine), *GONE, "--json")
    assert told.code == 0 and told.document["state"] == "gone" and not cloud.provider.instances
    assert cloud.ledger().rentals()[0].status == "gone" and not cloud.ledger().open_rentals()


VERBS = ("stop", "terminate")
FAULTS: list[tuple[str, dict[str, object]]] = [
    ("drop", {}), ("lie", {}), ("text", {"status": 500, "body": "x"}), ("text", {"status": 403, "body": "{}"}),
    ("stall", {}), ("cut", {}), ("text", {"status": 503, "body": "x"}), ("text", {"status": 401, "body": "{}"}),
    ("text", {"status": 429, "body": "API requests too frequent"}), ("text", {"status": 200, "body": "<html>"}),
    ("text", {"status": 200, "body": '{"success": false, "msg": "busy"}'}),
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("kind", "rest"), thin(FAULTS, 4))
def test_a_request_without_effect_is_never_called_done(
    cloud: Cloud, mine: int, verb: str, kind: str, rest: dict[str, object]
) -> None:
    """H03: the error says STILL BILLING, the price and the command; the request is sent once."""
    method = "PUT" if verb == "stop" else "DELETE"
    cloud.provider.fault(method, "/instances/", kind, **rest)
    told = cloud.run(verb, str(mine), *GONE, "--json")
    error = told.document["error"]
    assert told.code == 1 and error["type"] == "InstanceStateUnknownError" and truth(cloud, mine) == "running"
    assert f"STILL BILLING $0.316/h, run: heretic-vast {verb} {mine}" in error["details"][-1]
    assert "RUNNING, last seen" in error["message"]
    assert len(cloud.provider.writes(method, "/instances/")) == 1
    # and the next try works
    assert cloud.run(verb, str(mine), *GONE).code == 0


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", thin(["drop_after", "text_after", "cut_after", "stall_after"], 2))
def test_a_lost_answer_is_looked_after(cloud: Cloud, mine: int, verb: str, kind: str) -> None:
    cloud.provider.fault(
        "PUT" if verb == "stop" else "DELETE", "/instances/", kind, body="<html>", status=502
    )
    assert cloud.run(verb, str(mine), *GONE).code == 0
    assert truth(cloud, mine) == ("stopped" if verb == "stop" else "gone")


@pytest.mark.parametrize("verb", VERBS)
def test_a_machine_that_does_not_obey_is_still_billing(cloud: Cloud, mine: int, verb: str) -> None:
    cloud.provider.never.update({"stop", "destroy"})
    told = cloud.run(verb, str(mine), *GONE)
    assert told.code == 1 and "STILL BILLING" in told.text and cloud.clock.waited > 180


def test_an_ended_container_whose_contract_runs_is_not_stopped(cloud: Cloud, mine: int) -> None:
    """The GPUs are billed by the contract, whatever the container does."""
    cloud.provider.never.add("stop")
    cloud.clock.at(1, lambda: cloud.provider.instances[mine].update(actual_status="stopped"))
    told = cloud.run("stop", str(mine), *GONE)
    assert told.code == 1 and "STILL BILLING" in told.text
    (shown,) = cloud.run("list", "--json").document["instances"]
    assert shown["provider_says"] == "stopped (contract: running)" and shown["state"] == "unknown"


def test_listings_that_fail_during_the_wait_prove_nothing(cloud: Cloud, mine: int) -> None:
    cloud.provider.never.add("destroy")
    cloud.provider.fault("GET", "/instances/", "text", status=500, body="", times=600, skip=1)
    told = cloud.run("terminate", str(mine), *GONE)
    assert told.code == 1 and "STILL BILLING" in told.text and mine in cloud.provider.instances


def test_one_empty_listing_does_not_make_an_instance_gone(cloud: Cloud, mine: int) -> None:
    cloud.provider.never.add("destroy")
    cloud.provider.fault("GET", "/instances/", "text", body='{"instances": [], "total_instances": 0}', skip=1)
    told = cloud.run("terminate", str(mine), *GONE)
    assert told.code == 1 and "STILL BILLING" in told.text


def test_half_a_listing_is_no_listing(cloud: Cloud, mine: int) -> None:
    """A page that lacks the instance while the total counts it."""
    cloud.provider.never.add("destroy")
    cloud.provider.fault(
        "GET", "/instances/", "text", body='{"instances": [], "total_instances": 1}', times=500, skip=1
    )
    told = cloud.run("terminate", str(mine), *GONE)
    assert told.code == 1 and "STILL BILLING" in told.text


def test_an_instance_on_the_second_page_is_found(cloud: Cloud, mine: int) -> None:
    for number in range(60):
        cloud.provider.instance(100 + number, "somebody", "running")
    assert cloud.run("stop", str(mine), *GONE).code == 0
    assert truth(cloud, mine) == "stopped" and all(
        truth(cloud, 100 + number) == "running" for number in range(60)
    )


def test_a_vanishing_instance_is_not_called_stopped(cloud: Cloud, mine: int) -> None:
    cloud.clock.at(1, lambda: cloud.provider.instances.pop(mine))
    told = cloud.run("stop", str(mine), *GONE)
    assert told.code == 1 and "vanished" in told.text


@pytest.mark.parametrize(("retired", "expected"), [({"v1"}, 0), ({"v0"}, 0), ({"v0", "v1"}, 1)])
def test_a_retired_version_of_the_api_is_followed_by_the_other(
    cloud: Cloud, mine: int, retired: set[str], expected: int
) -> None:
    cloud.provider.retired = retired
    told = cloud.run("stop", str(mine), *GONE)
    assert told.code == expected
    assert expected == 0 or ("410" in told.text and "--api-version" in told.text)


def test_a_given_version_is_used_alone(cloud: Cloud, mine: int) -> None:
    cloud.provider.requests.clear()
    assert cloud.run("stop", str(mine), *GONE, "--api-version", "v0").code == 0
    assert {seen.path.split("/")[2] for seen in cloud.provider.requests} == {"v0"}


# Which instance is meant (H04)


@pytest.mark.parametrize("verb", ["stop", "start"])
def test_no_instance_is_three(cloud: Cloud, verb: str) -> None:
    told = cloud.run(verb)
    assert told.code == 3 and not cloud.provider.writes()


def test_one_of_somebody_else_must_be_named(cloud: Cloud) -> None:
    """0 actions on an instance that we do not own or the user did not name."""
    cloud.provider.instance(42, "colleague")
    told = cloud.run("stop")
    assert told.code == 2 and "heretic-vast stop 42" in told.text and not cloud.provider.writes()
    assert cloud.run("stop", "42", *GONE).code == 0 and truth(cloud, 42) == "stopped"


def test_several_are_listed_and_none_is_touched(cloud: Cloud, mine: int) -> None:
    cloud.provider.instance(42, "colleague")
    before = len(cloud.provider.writes())
    told = cloud.run("stop")
    assert told.code == 2 and "instance 42" in told.text and f"instance {mine}" in told.text
    assert len(cloud.provider.writes()) == before


def test_an_unknown_id_is_three(cloud: Cloud, mine: int) -> None:
    for verb in ("stop", "terminate", "start"):
        assert cloud.run(verb, "31337", "--yes").code == 3
    assert truth(cloud, mine) == "running"


@pytest.mark.parametrize("verb", ["stop", "terminate", "start", "create"])
def test_without_terminal_and_yes_nothing_is_sent(cloud: Cloud, mine: int, verb: str) -> None:
    """R-VAS-51. No variable and no file can say yes."""
    cloud.environ.update(YES="1", HERETIC_YES="1", VAST_YES="1", ASSUME_YES="true")
    (cloud.folder / ".env").write_text("VAST_YES=1\nYES=1\nHERETIC_YES=true\n", encoding="utf-8")
    if verb == "start":
        cloud.provider.instances[mine].update(actual_status="exited", cur_state="stopped")
    before = len(cloud.provider.writes())
    told = cloud.run(verb, *([str(mine)] if verb != "create" else []))
    assert told.code == 2 and "terminal" in told.text and len(cloud.provider.writes()) == before


@pytest.mark.parametrize("verb", VERBS)
def test_yes_alone_does_not_discard_what_may_be_unsaved(cloud: Cloud, mine: int, verb: str) -> None:
    """H07: a machine that cannot be asked may hold everything."""
    told = cloud.run(verb, str(mine), "--yes")
    assert told.code == 2 and "--discard-unsaved" in told.text and truth(cloud, mine) == "running"


def test_a_paused_instance_is_not_paused_again(cloud: Cloud, mine: int) -> None:
    cloud.run("stop", str(mine), *GONE)
    before = len(cloud.provider.writes())
    told = cloud.run("stop", str(mine), "--yes")
    assert told.code == 0 and "is paused already" in told.text and len(cloud.provider.writes()) == before


# start


def test_start_waits_until_it_runs(cloud: Cloud, mine: int) -> None:
    cloud.run("stop", str(mine), *GONE)
    told = cloud.run("start", str(mine), "--yes")
    assert told.code == 0 and "is running and answers" in told.text and truth(cloud, mine) == "running"


def test_start_of_a_running_one_sends_nothing(cloud: Cloud, mine: int) -> None:
    before = len(cloud.provider.writes())
    told = cloud.run("start", str(mine), "--yes")
    assert told.code == 2 and "not paused" in told.text and len(cloud.provider.writes()) == before


def test_a_start_that_never_comes_is_told(cloud: Cloud, mine: int) -> None:
    """The GPU was rented to somebody else meanwhile."""
    cloud.run("stop", str(mine), *GONE)
    cloud.provider.never.add("run")
    told = cloud.run("start", str(mine), "--yes", "--wait", "3")
    assert told.code == 1 and "Paused" in told.text and "running and answers" not in told.text


# guard


def test_the_guard_here_pauses_at_the_end_of_the_lease_and_not_before(cloud: Cloud, mine: int) -> None:
    """H06: through faults of the provider, and no later than ten minutes after the end."""
    begun = cloud.clock.now()
    cloud.provider.fault("PUT", "/instances/", "text", status=500, body="x", times=1)
    told = cloud.run("guard", str(mine), "--yes")
    assert told.code == 0 and truth(cloud, mine) == "stopped" and "is over" in told.text
    assert 12 * 3600 - 60 <= cloud.clock.now() - begun <= 12 * 3600 + 600


def test_the_guard_here_leaves_what_is_paused_and_follows_an_extension(cloud: Cloud, mine: int) -> None:
    label = cloud.ledger().rentals()[0].label
    end = cloud.ledger().rentals()[0].lease_end
    cloud.clock.at(3600, lambda: cloud.ledger().append("lease", label, lease_end=end + 7200, max_hours=14.0))
    cloud.clock.at(
        3700, lambda: cloud.provider.instances[mine].update(actual_status="exited", cur_state="stopped")
    )
    before = len(cloud.provider.writes())
    assert cloud.run("guard", str(mine), "--yes").code == 0
    assert cloud.clock.now() >= end + 7200 and len(cloud.provider.writes()) == before


def test_a_guard_needs_consent_and_a_lease(cloud: Cloud, mine: int) -> None:
    assert cloud.run("guard", str(mine)).code == 2 and cloud.run("guard", "--yes").code == 2
    cloud.provider.instance(42, "colleague")
    told = cloud.run("guard", "42", "--yes")
    assert told.code == 2 and "no lease" in told.text
