"""Which transports a registered vSphere host offers for a run, best first.

Thread model: any thread. The disks of the appliance itself (hot-add) are shared by all runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.base.backoff import Backoff
from appliance.base.errors import UsageError
from appliance.base.ids import RunId
from appliance.base.secret import Secret
from appliance.sources.intents import Intents, Made
from appliance.sources.vddk_transport import VddkTransport
from vmware.transports.appliance_disks import ApplianceDisks
from vmware.transports.attach_intent import AttachIntent
from vmware.transports.choice import ordered
from vmware.transports.contract import Transport
from vmware.transports.datastore_https import DatastoreHttpsTransport
from vmware.transports.hot_add import HotAdd
from vmware.transports.nfc_export import NfcLeaseTransport
from vmware.transports.vddk import Vddk, VddkLibrary


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTools:
    """What a vSphere source needs of this machine, the same for all hosts."""

    vddk_folder: Path | None = None  # where the customer unpacked the VDDK; None: nowhere
    nbdkit: str = "nbdkit"
    appliance_disks: ApplianceDisks = field(default_factory=ApplianceDisks)
    reopening: Backoff = field(default_factory=Backoff)  # of a transport that broke
    wait: Callable[[float], None] = time.sleep  # between tries of calls


def appliance_disks(device_root: Path) -> ApplianceDisks:
    """The disks of the VM that we run in, as /sys and /dev below `device_root` show them."""
    return ApplianceDisks(device_root=device_root)


class VsphereTransports:
    """Of one registered host."""

    def __init__(self, tools: SourceTools, password: Callable[[], Secret]) -> None:
        self.tools = tools
        library = None
        if tools.vddk_folder is not None:
            library = VddkLibrary(folder=tools.vddk_folder, program=tools.nbdkit)
        self._every_run: tuple[Transport, ...] = (
            VddkTransport(Vddk(library, lambda: password().reveal().decode())),
            DatastoreHttpsTransport(),
            NfcLeaseTransport(),
        )

    def for_run(self, run_id: RunId, intents: Intents, only: Sequence[str] = ()) -> list[Transport]:
        """Return all, or those named in `only`, best first.

        Raises UsageError: there is no transport of such a name.
        """
        offered = ordered([self.hot_add(run_id, intents), *self._every_run])
        names = [transport.name for transport in offered]
        unknown = [name for name in only if name not in names]
        if unknown:
            raise UsageError(f"no transport {unknown[0]!r}; there are {', '.join(names)}")
        return [transport for transport in offered if not only or transport.name in only]

    def hot_add(self, run_id: RunId, intents: Intents) -> HotAdd:
        """Disks on the appliance itself, for reading and for writing, each in the journal."""
        return HotAdd(
            self.tools.appliance_disks, run_id=run_id, record=_recorded_in(intents, run_id)
        )


def _recorded_in(intents: Intents, run_id: RunId) -> Callable[[AttachIntent], Callable[[], None]]:
    def record(intent: AttachIntent) -> Callable[[], None]:
        number = intents.record(
            Made.HOT_ADDED_DISK, run_id, intent.appliance_moref, intent.file_name, intent.detail
        )
        return lambda: intents.close(number)

    return record
