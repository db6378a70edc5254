"""Hot-add: the frozen disk becomes a disk of the appliance VM, and is read at the speed of storage.

The fastest way, where it works: the appliance runs in the same datacenter, on a host that reaches the
datastore. Everything that is known to fail, or to hurt the source, is refused beforehand; the rest
fails in `open`, which leaves nothing attached.

Thread model: as the contract; one `HotAdd` per run, all over one `ApplianceDisks` per process.

Source: design notes section 4a; Broadcom KB 2010953 (NFSv3 lock hand-over), 306343 (vSAN).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from vmware.datastores import DatastoreFacts, datastores_of, name_of_file
from vmware.errors import VsphereError
from vmware.inventory import read_vm
from vmware.transports.appliance_disks import ApplianceDisks, Attachment, DiskMode, SourceDisk
from vmware.transports.appliance_vm import Whereabouts, find_appliance_vm
from vmware.transports.attach_intent import Record, unrecorded
from vmware.transports.contract import DiskReader, DiskRequest, DiskWriter, Refusal
from vmware.transports.direct_device import DirectReader, DirectWriter

if TYPE_CHECKING:
    from vmware.inventory import DiskInfo, VmInfo
    from vmware.session import Session

_log = logging.getLogger(__name__)


class HotAdd:
    """The transport `hot-add`."""

    name = "hot-add"

    def __init__(
        self, disks: ApplianceDisks, *, run_id: str, record: Record = unrecorded
    ) -> None:
        self._disks = disks
        self._run_id = run_id
        self._record = record
