"""What a registered host says of itself and of our account, whatever hypervisor it is. Values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAbout:
    product: str  # "VMware vCenter Server"
    version: str
    build: str
    is_vcenter: bool
    server_id: str  # who the server is, wherever it is reached


@dataclass(frozen=True, slots=True, kw_only=True)
class LackingPurpose:
    """Privileges that the account lacks, all for one purpose."""

    purpose: str  # as the hypervisor's adapter calls it
    needed_to_back_up: bool
    privileges: tuple[str, ...]
