# SPDX-License-Identifier: Apache-2.0
"""The provider's JSON as our records. What is missing or of a wrong type becomes "unknown", never a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from heretic.cloud.types import GIB_IN_MIB, HOURS_PER_MONTH, Address, Instance, Offer, State
from heretic.sanitise import single_line

LARGEST_ID: Final = 999_999_999_999
_LOADING: Final = ("", "none", "null", "created", "loading", "rebooting", "scheduling", "provisioning")


def number(raw: object, default: float = 0.0) -> float:
    """A finite number, or the default."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
        return default
    return float(raw)


def whole(raw: object, default: int = 0) -> int:
    """A whole number, also from a string of digits."""
    if isinstance(raw, str) and raw.isdigit():
        return int(raw)
    return int(number(raw, default))


def text(raw: object, limit: int = 200) -> str:
    """One line of printable text; empty for anything else."""
    return single_line(raw, limit) if isinstance(raw, str) else ""


def offer(raw: Mapping[str, Any]) -> Offer | None:
    """An offer, or None for an entry without id, card or price."""
    identity, cards, name = whole(raw.get("id")), whole(raw.get("num_gpus")), text(raw.get("gpu_name"))
    stated, base = number(raw.get("dph_total")), number(raw.get("dph_base"))
    if not 0 < identity <= LARGEST_ID or cards < 1 or not name or max(stated, base) <= 0:
        return None
    return Offer(
        id=identity,
        gpu_name=name,
        num_gpus=cards,
        vram_gib=number(raw.get("gpu_ram")) / GIB_IN_MIB,
        disk_gb=number(raw.get("disk_space")),
        base_price=base,
        stated_price=stated,
        storage_price=number(raw.get("storage_cost")),
        download=number(raw.get("inet_down")),
        cuda=number(raw.get("cuda_max_good")),
        driver=text(raw.get("driver_version")),
        reliability=number(raw.get("reliability2"), number(raw.get("reliability"))),
        verified=raw.get("verified") is True or raw.get("verification") == "verified",
        place=text(raw.get("geolocation")),
        machine=whole(raw.get("machine_id")),
    )


def instance(raw: Mapping[str, Any], now: float) -> Instance | None:
    """An instance, or None for an entry without an id."""
    identity = whole(raw.get("id"))
    if not 0 < identity <= LARGEST_ID:
        return None
    disk = number(raw.get("disk_space"))
    storage = raw.get("storage_cost")
    hourly = number(raw.get("dph_total"), -1.0)
    return Instance(
        id=identity,
        label=text(raw.get("label")),
        state=state_of(raw),
        said=said(raw),
        gpu_name=text(raw.get("gpu_name")),
        num_gpus=whole(raw.get("num_gpus")),
        hourly=hourly if hourly >= 0 else None,
        storage_hourly=number(storage) * disk / HOURS_PER_MONTH if number(storage) > 0 else None,
        disk_gb=disk,
        vram_gib=number(raw.get("gpu_ram")) / GIB_IN_MIB,
        addresses=addresses(raw),
        message=text(raw.get("status_msg")),
        machine=whole(raw.get("machine_id")),
        observed=now,
    )


def said(raw: Mapping[str, Any]) -> str:
    """The provider's own words for the state: container, and contract where that differs."""
    actual = text(raw.get("actual_status")) or "provisioning"
    contract = text(raw.get("cur_state"))
    return actual if not contract or contract == actual else f"{actual} (contract: {contract})"


def state_of(raw: Mapping[str, Any]) -> State:
    """The state by what the provider observed. `stopped` needs the contract to be stopped too: while the contract
    runs, the GPUs are billed, whatever the container does.
    """
    actual = str(raw.get("actual_status") or "").strip().lower()
    contract = str(raw.get("cur_state") or "").strip().lower()
    ended = contract in ("", "stopped", "unloaded")
    if actual == "running":
        return "running"
    if actual in ("stopped", "exited") and ended and (actual == "stopped" or contract):
        return "stopped"
    if actual == "exited":
        return "exited"
    if actual == "frozen":
        return "frozen"
    if actual in _LOADING:
        return "stopped" if contract == "stopped" and actual in ("", "none", "null", "created") else "loading"
    return "unknown"


def addresses(raw: Mapping[str, Any]) -> tuple[Address, ...]:
    """The ways to the SSH server, the direct one first."""
    found: list[Address] = []
    public, ports = text(raw.get("public_ipaddr"), 0), raw.get("ports")
    if public and isinstance(ports, Mapping):
        mapped = ports.get("22/tcp")
        if isinstance(mapped, list) and mapped and isinstance(mapped[0], Mapping):
            port = whole(mapped[0].get("HostPort"))
            if 0 < port < 65536 and plain_host(public):
                found.append(Address(public, port, kind="direct"))
    host, port = text(raw.get("ssh_host"), 0), whole(raw.get("ssh_port"))
    if host and 0 < port < 65536 and plain_host(host):
        found.append(Address(host, port, kind="proxy"))
    return tuple(found)


def plain_host(host: str) -> bool:
    """True for a host name or address that cannot be taken for an option or a path (reliability H10)."""
    return (
        0 < len(host) <= 253 and host[0].isalnum() and all(sign.isalnum() or sign in ".-:" for sign in host)
    )
