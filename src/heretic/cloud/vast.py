# SPDX-License-Identifier: Apache-2.0
"""The provider's REST API, as far as it is used (requirements R-VAS-04).

Facts from the provider's documentation: offers are searched with POST /api/v0/bundles/, rented with
PUT /api/v0/asks/{id}/ (answer: `new_contract`), instances are listed with GET /api/v1/instances/ in pages of
at most 25, changed with PUT and destroyed with DELETE on /api/v0/instances/{id}/. The move of the
instance family from v0 to v1 is under way: a version that answers 410 (nothing was done) is followed by the other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from heretic.cloud import parsing
from heretic.cloud.clock import Clock
from heretic.cloud.errors import InstanceNotFoundError, ProviderError
from heretic.cloud.http import Channel, DoubtfulError, Limits, Method, RefusedError, unsuccessful
from heretic.cloud.types import Instance, Offer, Secret, Tier

OFFERS_ASKED: Final = 500
PAGE: Final = 25
LARGEST_LISTING: Final = 400
"""Pages; a server that hands out new tokens for ever does not hold the program up."""

READ_VERSIONS: Final = ("v1", "v0")
WRITE_VERSIONS: Final = ("v0", "v1")
LARGEST_ONSTART: Final = 4048


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it would be sent, for `--dry-run`; the key is not part of it."""

    method: Method
    path: str
    body: Mapping[str, object] | None = None

    def document(self) -> dict[str, object]:
        """As JSON, the key shown as stars."""
        return {
            "method": self.method,
            "path": self.path,
            "headers": {"Authorization": "Bearer ****"},
            "body": self.body,
        }


class VastClient:
    """The requests of this program. Reads repeat after faults, writes never do."""

    def __init__(
        self,
        base: str,
        key: Secret,
        clock: Clock,
        *,
        version: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._channel = Channel(base, key, clock, limits)
        self._clock = clock
        self._reads = (version,) if version else READ_VERSIONS
        self._writes = (version,) if version else WRITE_VERSIONS
        self._ask_version = version or "v0"

    # Reads

    def search(self, tier: Tier, num_gpus: int, disk_gb: int) -> list[Offer]:
        """Offers of a card, prices with `disk_gb` of storage. What cannot be used as an offer is left out."""
        request = search_request(tier, num_gpus, disk_gb, self._ask_version)
        answer = self._channel.read(request.method, request.path, body=request.body)
        entries = answer.get("offers") if isinstance(answer, Mapping) else None
        if isinstance(entries, Mapping):
            entries = [entries]
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise ProviderError(
                "the provider's answer to the search holds no list of offers",
                hint="Try again; if it stays, update heretic or check --api-url.",
            )
        found = [parsing.offer(entry) for entry in entries if isinstance(entry, Mapping)]
        return [offer for offer in found if offer is not None]

    def instances(self) -> list[Instance]:
        """Every instance of the account; raises when the listing is not complete."""
        last: RefusedError | None = None
        for version in self._reads:
            try:
                return self._pages(f"/api/{version}/instances/")
            except RefusedError as error:
                if error.status not in (404, 410):
                    raise
                last = error
        assert last is not None
        raise last

    def find(self, identity: int) -> Instance | None:
        """The instance of that id, None when a complete listing lacks it."""
        return next((found for found in self.instances() if found.id == identity), None)

    def with_label(self, label: str) -> list[Instance]:
        """The instances that carry exactly this label."""
        return [found for found in self.instances() if found.label == label]

    def _pages(self, path: str) -> list[Instance]:
        found: dict[int, Instance] = {}
        token, total = "", 0
        for _ in range(LARGEST_LISTING):
            query = {"limit": str(PAGE), **({"after_token": token} if token else {})}
            answer = self._channel.read("GET", path, query=query)
            entries = answer.get("instances") if isinstance(answer, Mapping) else None
            if not isinstance(entries, list):
                raise DoubtfulError(
                    "the provider's answer holds no list of instances",
                    hint="Try again; nothing is known about your instances now.",
                )
            before = len(found)
            now = self._clock.now()
            parsed = [parsing.instance(entry, now) for entry in entries if isinstance(entry, Mapping)]
            found.update({entry.id: entry for entry in parsed if entry is not None})
            total = max(total, parsing.whole(answer.get("total_instances")))
            following = answer.get("next_token")
            if not isinstance(following, str) or not following or len(found) == before:
                break
            token = following
        if len(found) < total:
            raise DoubtfulError(
                f"the provider listed {len(found)} of {total} instances",
                hint="Look at cloud.vast.ai/instances; nothing is concluded from half a list.",
            )
        return list(found.values())

    # Writes

    def create(self, request: Request) -> int:
        """Rent; the id of the instance. Sent once. Raises `RefusedError`, `UnsentError`: nothing was rented;
        `DoubtfulError`: it may have been.
        """
        answer = self._channel.write(request.method, request.path, request.body)
        if (reason := unsuccessful(answer)) is not None:
            raise RefusedError(
                f"the provider did not rent the machine: {reason}",
                status=200,
                hint="Choose another offer: heretic-vast gpus",
            )
        identity = parsing.whole(answer.get("new_contract")) if isinstance(answer, Mapping) else 0
        if not 0 < identity <= parsing.LARGEST_ID:
            raise DoubtfulError(
                "the provider's answer to the rental names no instance", hint="See: heretic-vast list"
            )
        return identity

    def set_state(self, identity: int, state: str) -> None:
        """Ask for `stopped` or `running`. What comes of it must be observed."""
        self._write(state_request(identity, state))

    def destroy(self, identity: int) -> None:
        """Ask for the end of instance and disk. What comes of it must be observed."""
        self._write(destroy_request(identity))

    def attach_key(self, identity: int, public_key: str) -> None:
        """Let the holder of an SSH key into one instance."""
        self._write(Request("POST", f"/instances/{identity}/ssh/", {"ssh_key": public_key}))

    def _write(self, request: Request) -> None:
        last: RefusedError | None = None
        for version in self._writes:
            path = f"/api/{version}{request.path}"
            try:
                answer = self._channel.write(request.method, path, request.body)
            except RefusedError as error:
                # Neither of the two had an effect; a version that is retired may answer with either.
                if error.status not in (404, 410):
                    raise
                last = error
                continue
            if (reason := unsuccessful(answer)) is not None:
                raise RefusedError(
                    f"the provider refused: {reason}", status=200, hint="See: heretic-vast list"
                )
            return
        assert last is not None
        if last.status == 404:
            raise InstanceNotFoundError(
                f"the provider knows no such instance: {last.message}", hint="See: heretic-vast list"
            ) from last
        raise last


def search_request(tier: Tier, num_gpus: int, disk_gb: int, version: str = "v0") -> Request:
    """A wide search: what is left out here could not be counted when nothing passes."""
    body: dict[str, object] = {
        "gpu_name": {"in": sorted({name.replace("_", " ") for name in tier.gpu_names})},
        "num_gpus": {"eq": num_gpus},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "allocated_storage": disk_gb,
        "type": "on-demand",
        "order": [["dph_total", "asc"]],
        "limit": OFFERS_ASKED,
    }
    return Request("POST", f"/api/{version}/bundles/", body)


def create_request(
    offer: int, *, image: str, disk_gb: int, label: str, onstart: str, version: str = "v0"
) -> Request:
    """The rental. `cancel_unavail` makes the provider refuse in place of queueing a machine that is not free."""
    assert len(onstart) <= LARGEST_ONSTART, "the provider cuts what is longer"
    body: dict[str, object] = {
        "image": image,
        "disk": disk_gb,
        "label": label,
        "runtype": "ssh_direct",
        "target_state": "running",
        "cancel_unavail": True,
        "onstart": onstart,
    }
    return Request("PUT", f"/api/{version}/asks/{offer}/", body)


def state_request(identity: int, state: str) -> Request:
    """Pause or start an instance."""
    return Request("PUT", f"/instances/{identity}/", {"state": state})


def destroy_request(identity: int) -> Request:
    """Destroy an instance and its disk."""
    return Request("DELETE", f"/instances/{identity}/")


def shown(request: Request, version: str | None = None) -> Request:
    """The request with the version of the API that would be tried first."""
    if request.path.startswith("/api/"):
        return request
    return Request(request.method, f"/api/{version or WRITE_VERSIONS[0]}{request.path}", request.body)
