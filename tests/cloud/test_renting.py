# SPDX-License-Identifier: Apache-2.0
"""`create`: at most one machine, never lost from sight, whatever goes wrong (reliability H01, H02, REL-16)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from .conftest import Cloud, Told, thin
from .provider import FakeClock

pytestmark = pytest.mark.loopback
YES = ("create", "RTX_4090", "--yes", "--max-price", "0.5")


def rented(cloud: Cloud) -> int:
    """The one instance that exists."""
    (identity,) = cloud.provider.instances
    return identity


def statuses(cloud: Cloud) -> list[str]:
    """How the ledger describes its rentals."""
    return [rental.status for rental in cloud.ledger().rentals()]


def test_a_machine_is_rented_with_everything_that_was_agreed_to(cloud: Cloud) -> None:
    told = cloud.run(*YES, "--max-hours", "2", "--json")
    identity = rented(cloud)
    assert told.code == 0 and told.document["id"] == identity and told.document["state"] == "running"
    (asked,) = cloud.provider.writes("PUT", "/asks/")
    (rental,) = cloud.ledger().rentals()
    assert asked.body["label"] == rental.label and asked.body["disk"] == 75
    assert asked.body["image"].startswith("pytorch/pytorch:2.8") and "guard.py" in asked.body["onstart"]
    assert asked.body["cancel_unavail"] is True
    assert (rental.status, rental.id, rental.max_hours) == ("created", identity, 2.0)
    assert rental.hourly == pytest.approx(0.30 + 0.15 * 75 / 720, abs=1e-6) and rental.lease_end
    assert cloud.provider.instances[identity]["keys"] == "ssh-ed25519 AAAATEST me@here"


def test_everything_is_said_before_the_question(cloud: Cloud) -> None:
    """R-VAS-50, H01: offer, hour, day, disk, most until the end of the lease, what ends the billing."""
    told = cloud.run("create", "RTX_4090", "--max-hours", "10")
    assert told.code == 2 and not cloud.provider.instances and not cloud.provider.writes()
    for words in (
        "offer 501",
        "$0.316 per hour",
        "$7.57 per day",
        "at most $3.16",
        "75 GB",
        "terminate",
        "--yes",
    ):
        assert words in told.text, words


def test_the_label_is_on_the_disk_before_the_request(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """H02. The ledger is read at the moment the request arrives."""
    labels: list[str] = []
    original = cloud.provider.rent

    def look(offer: int, body: dict[str, object]) -> int:
        text = (cloud.state / "rentals.ledger.jsonl").read_text(encoding="utf-8")
        labels.extend(json.loads(line)["label"] for line in text.splitlines())
        assert body["label"] in labels
        return original(offer, body)

    monkeypatch.setattr(cloud.provider, "rent", look)
    assert cloud.run(*YES).code == 0 and len(labels) == 1


def test_without_a_ledger_nothing_is_rented(cloud: Cloud) -> None:
    cloud.state.parent.mkdir(parents=True)
    cloud.state.write_text("in the way", encoding="utf-8")
    told = cloud.run(*YES)
    assert told.code == 1 and "ledger" in told.text and not cloud.provider.writes()


LOST = ("drop_after", "text_after", "stall_after", "cut_after", "trickle_after")


@pytest.mark.parametrize("kind", thin(LOST, 3))
def test_a_lost_answer_is_made_good_by_the_label(cloud: Cloud, kind: str) -> None:
    cloud.provider.fault("PUT", "/asks/", kind, body="<html>login</html>")
    told = cloud.run(*YES, "--json")
    assert told.code == 0 and told.document["id"] == rented(cloud)
    assert len(cloud.provider.writes("PUT", "/asks/")) == 1


@pytest.mark.parametrize("status", thin([500, 502, 503, 504], 1))
def test_a_server_error_may_have_rented_and_is_looked_for(cloud: Cloud, status: int) -> None:
    cloud.provider.fault("PUT", "/asks/", "text_after", status=status, body="oops")
    assert cloud.run(*YES).code == 0
    rented(cloud)


@pytest.mark.parametrize("kind", thin(["drop", "stall", "text"], 2))
def test_an_unanswered_request_that_did_nothing_is_called_unknown(cloud: Cloud, kind: str) -> None:
    """Not "failed", not "done"; the next `create` waits for certainty, and `list` settles it."""
    cloud.provider.fault("PUT", "/asks/", kind, body="}{")
    told = cloud.run(*YES, "--json")
    label = cloud.ledger().rentals()[0].label
    assert told.code == 1 and told.document["error"]["type"] == "InstanceStateUnknownError"
    assert label in told.text and "BILLING" in told.text and not cloud.provider.instances
    again = cloud.run(*YES)
    assert again.code == 1 and "in doubt" in again.text and len(cloud.provider.writes("PUT", "/asks/")) == 1
    assert label in cloud.run("list").text
    cloud.clock.sleep(1000)
    assert label not in cloud.run("list").text and statuses(cloud) == ["absent"]
    assert cloud.run(*YES).code == 0
    rented(cloud)


def test_a_rental_that_appears_late_is_found_by_list(cloud: Cloud) -> None:
    """The answer is lost and every look for the label fails as well."""
    cloud.provider.fault("PUT", "/asks/", "drop_after")
    cloud.provider.fault("GET", "/instances/", "text", status=503, body="down", times=60, skip=1)
    assert cloud.run(*YES).code == 1
    identity = rented(cloud)
    cloud.provider.faults.clear()
    told = cloud.run("list", "--json")
    assert [entry["id"] for entry in told.document["instances"]] == [identity] and told.document["instances"][
        0
    ]["ours"]
    assert cloud.ledger().rentals()[0].id == identity
    # and no second one is rented over it
    refused = cloud.run(*YES)
    assert refused.code == 2 and str(identity) in refused.text and len(cloud.provider.instances) == 1


@pytest.mark.parametrize("after", [True, False])
def test_a_killed_client_leaves_what_list_finds(cloud: Cloud, after: bool) -> None:
    """H02: SIGKILL at the moment the provider has rented, or just before it does."""
    cloud.clock = FakeClock(time.time())
    children: list[subprocess.Popen[bytes]] = []
    original = cloud.provider.rent

    def killing(offer: int, body: dict[str, object]) -> int:
        identity = original(offer, body) if after else 0
        os.kill(children[0].pid, signal.SIGKILL)
        return identity

    cloud.provider.rent = killing  # type: ignore[method-assign]
    words = [sys.executable, "-m", "heretic.cloud", *YES]
    children.append(
        subprocess.Popen(
            words, env=cloud.environ, cwd=cloud.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    )
    assert children[0].wait(timeout=30) == -signal.SIGKILL
    cloud.provider.rent = original  # type: ignore[method-assign]
    told = cloud.run("list", "--json").document
    assert [entry["ours"] for entry in told["instances"]] == ([True] if after else [])
    assert len(told["in_doubt"]) == (0 if after else 1)


REFUSALS = [(400, "invalid_args"), (401, "auth"), (402, "credit"), (403, "no"), (404, "no_such_ask"), (409, "taken"),
            (410, "gone"), (429, "too frequent")]  # fmt: skip


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_a_refusal_is_final_and_not_repeated(cloud: Cloud, status: int, code: str) -> None:
    cloud.provider.fault(
        "PUT", "/asks/", "text", status=status, body=json.dumps({"success": False, "error": code})
    )
    told = cloud.run(*YES, "--json")
    assert (
        told.code == 1
        and str(status) in told.document["error"]["message"]
        and told.document["error"]["remedy"]
    )
    assert not cloud.provider.instances and statuses(cloud) == ["refused"]


def test_a_good_status_with_success_false_is_a_refusal(cloud: Cloud) -> None:
    cloud.provider.fault("PUT", "/asks/", "text", body='{"success": false, "msg": "machine is busy"}')
    told = cloud.run(*YES)
    assert told.code == 1 and "machine is busy" in told.text and statuses(cloud) == ["refused"]


def test_a_provider_that_rents_twice_is_reported_with_both(cloud: Cloud) -> None:
    cloud.provider.fault("PUT", "/asks/", "double")
    cloud.provider.fault("PUT", "/asks/", "drop_after", skip=0)
    told = cloud.run(*YES)
    if told.code:
        assert all(str(identity) in told.text for identity in cloud.provider.instances)
    assert len(cloud.provider.writes("PUT", "/asks/")) == 1


def test_two_instances_with_one_label_are_both_named(cloud: Cloud) -> None:
    original = cloud.provider.rent

    def twice(offer: int, body: dict[str, object]) -> int:
        original(offer, body)
        return original(offer, body)

    cloud.provider.rent = twice  # type: ignore[method-assign]
    cloud.provider.fault("PUT", "/asks/", "drop_after")
    told = cloud.run(*YES)
    assert told.code == 1 and told.text.count("STILL BILLING") >= 2
    assert all(str(identity) in told.text for identity in cloud.provider.instances)


def test_a_price_that_rose_rents_nothing(cloud: Cloud) -> None:
    """Between the question and the request."""

    def dearer(*_: object) -> None:
        cloud.provider.offers[0].update(dph_base=0.40, dph_total=0.42)

    seen = 0
    original = cloud.provider.offers

    class Market(list[dict[str, object]]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal seen
            seen += 1
            if seen == 2:
                dearer()
            return super().__iter__()

    cloud.provider.offers = Market(original)
    told = cloud.run(*YES)
    assert told.code == 3 and "$0.316" in told.text and "nothing was rented" in told.text
    assert not cloud.provider.writes()


def test_a_machine_that_costs_more_than_agreed_is_told(cloud: Cloud) -> None:
    cloud.provider.charged = 0.9
    told = cloud.run(*YES)
    assert (
        told.code == 1
        and "$0.900" in told.text
        and "terminate 7001" in told.text
        and len(cloud.provider.instances) == 1
    )


def test_loading_means_wait_and_says_what_it_costs(cloud: Cloud) -> None:
    """R-VAS-23, R-VAS-55: never a second one."""
    cloud.provider.never.add("run")
    told = cloud.run(*YES, "--wait", "10", "--json")
    assert told.code == 1 and "STILL BILLING $0.316" in told.text and "7001" in told.text
    assert (
        told.document["state"] == "loading"
        and cloud.clock.waited >= 600
        and len(cloud.provider.instances) == 1
    )


def test_a_machine_that_runs_and_does_not_answer_is_not_ready(cloud: Cloud) -> None:
    cloud.answering = False
    told = cloud.run(*YES, "--wait", "5")
    assert told.code == 1 and "is not ready" in told.text and "STILL BILLING" in told.text


def test_a_container_that_ends_is_told_with_its_message(cloud: Cloud) -> None:
    cloud.provider.loading_s = 10_000
    cloud.clock.at(
        90, lambda: cloud.provider.instances[7001].update(actual_status="exited", status_msg="no such image")
    )
    told = cloud.run(*YES)
    assert (
        told.code == 1
        and "has ended" in told.text
        and "no such image" in told.text
        and "STILL BILLING" in told.text
    )


def test_a_listing_that_fails_while_waiting_is_no_end(cloud: Cloud) -> None:
    cloud.provider.fault("GET", "/instances/", "text", status=500, body="x", times=5, skip=2)
    assert cloud.run(*YES).code == 0


def test_a_machine_of_ours_that_runs_is_said_first_and_stops_a_script(cloud: Cloud) -> None:
    """R-VAS-55."""
    first = cloud.run(*YES)
    assert first.code == 0
    told = cloud.run("create")
    assert told.code == 2 and "you have already: instance 7001" in told.text
    assert cloud.run(*YES).code == 2 and len(cloud.provider.instances) == 1
    assert cloud.run(*YES, "--another").code == 0 and len(cloud.provider.instances) == 2


def test_a_machine_of_somebody_else_is_said_and_stops_nobody(cloud: Cloud) -> None:
    cloud.provider.instance(42, "colleague")
    assert "you have already: instance 42" in cloud.run("create").text
    assert cloud.run(*YES).code == 0 and len(cloud.provider.instances) == 2


def test_a_fresh_machine_that_the_list_does_not_show_stops_a_second_one(cloud: Cloud) -> None:
    """The provider's list may lag behind its own answer."""
    assert cloud.run(*YES).code == 0
    cloud.provider.fault(
        "GET", "/instances/", "text", body='{"instances": [], "total_instances": 0}', times=9
    )
    told = cloud.run(*YES)
    assert told.code == 1 and "in doubt" in told.text and len(cloud.provider.instances) == 1


def test_no_offer_is_three_and_names_the_strictest_filter(cloud: Cloud) -> None:
    cloud.provider.offers.clear()
    for number in range(3):
        cloud.provider.offer(600 + number, dph_base=0.9, dph_total=0.9)
    cloud.provider.offer(700, inet_down=5.0)
    told = cloud.run(*YES, "--json")
    assert told.code == 3 and "'price'" in told.document["error"]["message"]
    assert told.document["error"]["data"]["excluded"] == {"price": 3, "download": 1}
    assert cloud.run("gpus", "--relaxed", "--json").document["offers"][0]["id"] == 700


def test_a_dry_run_shows_the_requests_with_masked_secrets_and_sends_none(cloud: Cloud) -> None:
    """R-VAS-57."""
    told: Told = cloud.run("create", "--dry-run", "--json")
    (request,) = told.document["requests"]
    assert told.code == 0 and request["method"] == "PUT" and request["path"] == "/api/v0/asks/501/"
    assert request["headers"]["Authorization"] == "Bearer ****" and not cloud.provider.writes()
    searched = cloud.run("gpus", "--dry-run", "--json").document["requests"][0]
    assert searched["path"] == "/api/v0/bundles/" and searched["body"]["allocated_storage"] == 75
    assert not cloud.ledger().rentals()


def test_r_cli_60_lines(cloud: Cloud) -> None:
    """The two lines of the requirements parse, and ask for four and two cards with at least 400 GB."""
    cloud.provider.offers.clear()
    cloud.provider.offer(1, num_gpus=4, dph_base=1.0, dph_total=1.0)
    cloud.provider.offer(2, num_gpus=2, gpu_name="A100 SXM4", gpu_ram=81251, dph_base=2.0, dph_total=2.0)
    for line, offer in ((("RTX_4090", "4"), 1), (("A100_80GB", "2"), 2)):
        (request,) = cloud.run("create", *line, "--dry-run", "--json").document["requests"]
        assert request["path"].endswith(f"/asks/{offer}/") and request["body"]["disk"] == 400
