"""What a verification is to do: values, complete before anything starts.

A plan covers the guests of one application, in the order in which they boot. They share one
isolated network if there are several, and each waits for those that it names in `after`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from appliance.base.errors import UsageError
from appliance.sandbox.probes import PingProbe, Probe
from appliance.sandbox.serial_script import SerialScript
from appliance.sandbox.spec import PLACES_MAX, DiskInterface

FILE_SYSTEM_TIMEOUT_S = 600.0


class Place(StrEnum):
    """Where a guest is booted."""

    SANDBOX = "sandbox"
    HYPERVISOR = "hypervisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootOptions:
    """Memory, processors and disk interface are the sandbox's; a host gives what the VM had."""

    place: Place = Place.SANDBOX
    memory_mib: int = 512
    cpus: int = 1
    disk_interface: DiskInterface = DiskInterface.VIRTIO
    deadline_s: float = 600.0  # until every probe has passed


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPlan:
    point: str  # an id, the beginning of one, or `latest:VM`
    name: str = ""  # by which `after` of others knows it
    boot: BootOptions | None = None  # None: it is not booted
    probes: tuple[Probe, ...] = ()
    scripts: tuple[SerialScript, ...] = ()
    after: tuple[str, ...] = ()
    hash_share: float = 0.0  # of the chunks; 1: all
    check_file_systems: bool = False
    file_system_timeout_s: float = FILE_SYSTEM_TIMEOUT_S  # per volume
    rto: timedelta | None = None  # how long it may take until it is ready
    rpo: timedelta | None = None  # how old the point may be

    def __post_init__(self) -> None:
        if not 0 <= self.hash_share <= 1:
            raise UsageError(f"a share of {self.hash_share} is not between 0 and 1")
        if self.boot is None and (self.probes or self.scripts):
            raise UsageError("probes and scripts need a guest that is booted")
        if (
            self.boot is not None
            and self.boot.place is Place.SANDBOX
            and all(isinstance(probe, PingProbe) for probe in self.probes)
        ):
            raise UsageError(
                "a boot needs at least one probe other than ping to know when the guest is ready"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationPlan:
    guests: tuple[GuestPlan, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.guests) <= PLACES_MAX:
            raise UsageError(f"an application has 1 to {PLACES_MAX} guests")
        names: set[str] = set()
        for guest in self.guests:
            missing = [name for name in guest.after if name not in names]
            if missing:
                raise UsageError(f"{guest.name!r} waits for {missing[0]!r}, which is not before it")
            if len(self.guests) > 1 and (not guest.name or guest.name in names):
                raise UsageError(f"the name {guest.name!r} is missing or used twice")
            names.add(guest.name)
