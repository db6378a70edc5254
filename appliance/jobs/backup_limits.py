"""How much of one host and one datastore parallel backups may use.

Two gates, taken in this order and never the other way, so that they cannot block each other: a VM
takes a place of the appliance, its host and its datastores for as long as its snapshot lives; a
disk takes one of its host and its datastore while it is read. Both hand out in order of arrival.

The figures follow what hosts stand: an ESXi host serves about 48 streams of 1 MB in all, so a few
disks at once; snapshots are removed one after another in each VM's own place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from appliance.base.errors import UsageError
from appliance.base.fair_gate import FairGate
from appliance.base.run_context import CancelToken
from appliance.blocks.device import BlockReader
from appliance.jobs.latency_brake import BrakedReader, BrakePolicy, LatencyBrakes
from appliance.sources.contract import SourceVm
from appliance.sources.frozen import FrozenDisk

_APPLIANCE = "appliance"


def _default_vms() -> int:
    return min(4, max(2, os.cpu_count() or 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPolicy:
    vms: int = field(default_factory=_default_vms)  # at once, in all
    vms_per_host: int = 4
    vms_per_datastore: int = 4
    disks_per_host: int = 8
    disks_per_datastore: int = 4
    brake: BrakePolicy = field(default_factory=BrakePolicy)

    def __post_init__(self) -> None:
        if self.vms < 1:
            raise UsageError("at least one VM must be backed up at a time")


class BackupLimits:
    """Shared by all runs of a process."""

    def __init__(self, policy: LimitPolicy) -> None:
        self.policy = policy
        self.brakes = LatencyBrakes(policy.brake)
        self._vms = FairGate(
            {
                _APPLIANCE: policy.vms,
                "host": policy.vms_per_host,
                "datastore": policy.vms_per_datastore,
            }
        )
        self._disks = FairGate(
            {"host": policy.disks_per_host, "datastore": policy.disks_per_datastore}
        )

    def vm(self, vm: SourceVm, cancel: CancelToken) -> AbstractContextManager[None]:
        """Wait for the turn of a VM. Raises CancelledError."""
        things = {(_APPLIANCE, ""), ("host", vm.host)}
        return self._vms.hold(things | {("datastore", name) for name in vm.datastores}, cancel)

    @contextmanager
    def disk(self, disk: FrozenDisk, host: str, cancel: CancelToken) -> Iterator[BlockReader]:
        """Wait for the turn of a disk, and give a reader that heeds the brake."""
        with self._disks.hold({("host", host), ("datastore", disk.datastore)}, cancel):
            yield BrakedReader(disk.reader, self.brakes.of(disk.datastore), cancel)
