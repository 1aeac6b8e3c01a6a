# SPDX-License-Identifier: Apache-2.0
"""The records of the cloud room: frozen, without behaviour that reaches outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

State = Literal["running", "loading", "stopped", "exited", "frozen", "unknown", "gone"]
"""What the provider says of an instance, in our words (`Instance.state`)."""

ALIVE: Final[tuple[State, ...]] = ("running", "loading", "frozen", "exited", "unknown")
"""States in which more than the disk may be billed."""

HOURS_PER_MONTH: Final = 720.0
"""Thirty days; the shorter month makes the stated price the higher one."""

GIB_IN_MIB: Final = 1024.0


class Secret:
    """A value that is never shown: not by print, repr, format, nor in a traceback's locals."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the one header or stream that needs it."""
        return self._value

    def scrub(self, text: str) -> str:
        """`text` without the value, should a server have echoed it."""
        return text.replace(self._value, "[redacted]") if self._value else text

    def __repr__(self) -> str:
        return "Secret(****)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))


@dataclass(frozen=True, slots=True)
class Tier:
    """One row of the table of cards. max_price: $ per hour and GPU, storage included. min_vram_gib: per GPU.
    disk_gb: decimal GB. gpu_names: every name the provider has for the card.
    """

    name: str
    card: str
    gpu_names: tuple[str, ...]
    max_price: float
    min_vram_gib: float
    disk_gb: int
    meant_for: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What the market offers. base_price: $ per hour for all GPUs without storage; stated_price: the provider's
    own total for the storage that was asked about; storage_price: $ per GB and month. download: Mb/s.
    """

    id: int
    gpu_name: str
    num_gpus: int
    vram_gib: float
    disk_gb: float
    base_price: float
    stated_price: float
    storage_price: float
    download: float
    cuda: float
    driver: str = ""
    reliability: float = 0.0
    verified: bool = False
    place: str = ""
    machine: int = 0

    def hourly(self, disk_gb: float) -> float:
        """$ per hour for all GPUs with `disk_gb` of storage: the larger of the provider's total and the sum."""
        return max(self.stated_price, self.base_price + self.storage_hourly(disk_gb))

    def storage_hourly(self, disk_gb: float) -> float:
        """$ per hour for `disk_gb` of storage alone; it is what a stopped instance goes on costing."""
        return self.storage_price * disk_gb / HOURS_PER_MONTH

    def per_gpu(self, disk_gb: float) -> float:
        """$ per hour and GPU, storage included: the figure that is compared with a cap (R-VAS-11)."""
        return self.hourly(disk_gb) / max(1, self.num_gpus)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the SSH server of an instance is. kind: `direct` or through the provider's `proxy`."""

    host: str
    port: int
    kind: Literal["direct", "proxy"] = "proxy"


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as the provider describes it. state: in our words; said: in the provider's.

    hourly, storage_hourly: $ per hour, None when the provider does not say. observed: seconds since the epoch.
    """

    id: int
    label: str
    state: State
    said: str
    gpu_name: str = ""
    num_gpus: int = 0
    hourly: float | None = None
    storage_hourly: float | None = None
    disk_gb: float = 0.0
    vram_gib: float = 0.0
    addresses: tuple[Address, ...] = ()
    message: str = ""
    machine: int = 0
    observed: float = 0.0

    @property
    def address(self) -> Address | None:
        """The address to use: direct where there is one."""
        return self.addresses[0] if self.addresses else None

    @property
    def title(self) -> str:
        """How messages name it."""
        label = f" ({self.label})" if self.label else ""
        return f"instance {self.id}{label}"


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model weighs. weights_gb: decimal GB in the repository; parameters: in billions, None when unknown.
    source: where the figure comes from, for the arithmetic that is printed; measured: False for a guess.
    """

    model: str
    weights_gb: float
    parameters: float | None
    source: str
    measured: bool = True

    @property
    def billions(self) -> float:
        """Parameters in billions; from the size at two bytes each where nothing says."""
        return self.parameters if self.parameters is not None else self.weights_gb / 2


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """Disk of an instance, in whole decimal GB. requested: what is asked for; minimum: below it `--disk` is
    refused; floor: below it nothing is accepted. arithmetic: one line each, as printed.
    """

    requested: int
    minimum: int
    floor: int
    arithmetic: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rental:
    """One rental as the local ledger knows it. id: None while the provider has not confirmed one.

    status: intended, created, refused, absent (was never found), gone. lease_end, observed, started: seconds since
    the epoch. max_hours: the lease agreed to; 0 = none. fetched: names of models that were downloaded and verified.
    paused_with: models on the disk of a machine that was paused while no run lived; None when that is not known.
    """

    label: str
    status: str
    started: float
    id: int | None = None
    hourly: float = 0.0
    storage_hourly: float = 0.0
    max_hours: float = 0.0
    lease_end: float = 0.0
    disk_gb: int = 0
    tier: str = ""
    offer: int = 0
    state: str = ""
    observed: float = 0.0
    fetched: tuple[str, ...] = field(default=())
    paused_with: tuple[str, ...] | None = None
