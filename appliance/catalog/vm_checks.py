"""What a verification job asks of the VMs that it covers, as an administrator writes it.

    probes = ["tcp:22"]                                       of every VM
    vms    = [{ names = ["web*"], probes = ["http:80/"] }]    of these instead
    groups = [{ name = "shop", order = ["db", "web"] }]       boot in this order, on one network

Probes and scripts are kept as text; their forms are those of `sandbox/probes.py`, and
`jobs/verification_job.py` refuses what is none of them before a job is saved.

Thread model: values.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from appliance.catalog.policy import DurationText, Name
from appliance.catalog.schedule import Strict

GUESTS_MOST = 16  # of one group: as many as an isolated network of the sandbox has places for

_Text = Annotated[str, Field(min_length=1, max_length=2048)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=64)]
_Pattern = Annotated[str, Field(min_length=1, max_length=512)]
_MemoryMib = Annotated[int, Field(ge=32, le=1 << 22)]
_Cpus = Annotated[int, Field(ge=1, le=128)]
_Interface = Literal["virtio", "ide", "sata", "nvme", "pvscsi"]


class Where(StrEnum):
    """Where points are booted."""

    SANDBOX = "sandbox"  # in the appliance
    HYPERVISOR = "hypervisor"  # on a host, through instant recovery, on a network without uplink
    BOTH = "both"


class Checks(Strict):
    """Of every VM that no entry of `vms` means."""

    probes: _Texts = ()
    scripts: _Texts = ()  # COMMAND => REGEX
    memory_mib: _MemoryMib = 512  # in the sandbox; on a host it has what it had
    cpus: _Cpus = 1
    disk_interface: _Interface = "virtio"
    timeout: DurationText = "10min"  # until it is ready


class VmChecks(Strict):
    """Of the VMs whose points are called so; what is not said is as the job says."""

    names: Annotated[tuple[_Pattern, ...], Field(min_length=1, max_length=1000)]
    probes: _Texts | None = None
    scripts: _Texts | None = None
    memory_mib: _MemoryMib | None = None
    cpus: _Cpus | None = None
    disk_interface: _Interface | None = None
    timeout: DurationText | None = None

    def over(self, checks: Checks) -> Checks:
        said = {name: value for name, value in self if name != "names" and value is not None}
        return checks.model_copy(update=said)


class Group(Strict):
    """VMs of one application, covered by the job whatever `select` says."""

    name: Name
    order: Annotated[tuple[_Pattern, ...], Field(min_length=2, max_length=GUESTS_MOST)]
