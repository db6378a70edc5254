"""Where a hypervisor could put a VM: what people choose from instead of typing it.

What this appliance made itself for recoveries and verifications is left out.

Thread model: values.
"""

from __future__ import annotations

from dataclasses import dataclass

OWN_PREFIX = "holdfast-"
"""Of the names of datastores and networks that recoveries make, and take away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreOffer:
    name: str
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlaces:
    """By name, without repetitions. What the kind of hypervisor does not have is empty."""

    networks: tuple[str, ...] = ()  # of Hyper-V: virtual switches
    datastores: tuple[DatastoreOffer, ...] = ()
    machines: tuple[str, ...] = ()  # ESXi hosts
    folders: tuple[str, ...] = ()  # inventory paths
    pools: tuple[str, ...] = ()  # inventory paths
