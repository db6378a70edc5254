"""A VM as `vm list` shows it, whatever hypervisor it is of, and why it cannot be protected.

Thread model: values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from appliance.base.reasons import Reason
from appliance.sources.vm_identity import VmIdentity

VERIFICATION_PREFIX = "holdfast-verify-"
"""Of the names of VMs that verifications make on a hypervisor, and discard."""

OF_VERIFICATION = Reason(
    "vm.of-verification",
    "the VM is a recovery point that is being verified, and is discarded in a moment",
    "none",
    warning=False,
)


class ChangeTracking(StrEnum):
    """Whether the hypervisor can say what has changed."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDisk:
    key: int
    label: str
    size_bytes: int
    file_name: str  # "[datastore] folder/file.vmdk", "D:\\VM\\file.vhdx"
    obstacle: Reason | None  # why it is left out of backups


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedVm:
    host: str  # the registered host
    moref: str  # as the hypervisor calls it
    name: str
    identity: VmIdentity
    power: str  # on, off, suspended, unknown
    folder: str
    runs_on: str  # the ESXi or Hyper-V host
    change_tracking: ChangeTracking
    disks: tuple[ListedDisk, ...]
    obstacles: tuple[Reason, ...]  # why it cannot be backed up now; empty: it can

    @property
    def size_bytes(self) -> int:
        return sum(disk.size_bytes for disk in self.disks)
