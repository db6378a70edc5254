"""The datastores that hold a VM's files: kind, space, and which hosts reach them how.

One collector call per datastore; nothing is kept. A datastore is named inside one datacenter only,
so names are looked up among a VM's own datastores, never in the whole inventory.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyVmomi import vim

from vmware.properties import fetch_one
from vmware.session import Session

_PATHS = (
    "summary.name",
    "summary.type",
    "summary.accessible",
    "summary.freeSpace",
    "summary.capacity",
    "host",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreFacts:
    moref: str
    name: str
    kind: str  # VMFS, NFS (version 3), NFS41, vsan, VVOL, …
    accessible: bool
    free_bytes: int
    capacity_bytes: int
    writable_hosts: frozenset[str]  # morefs of the hosts that have it mounted for writing


def datastores_of(session: Session, vm_moref: str) -> tuple[DatastoreFacts, ...]:
    """The datastores that the VM uses. Raises VsphereError, ObjectGoneError."""
    vm = session.object(vim.VirtualMachine, vm_moref)
    used = (
        fetch_one(session, f"look at {vm_moref}", vm, ("datastore",)).values.get("datastore") or []
    )
    return tuple(read_datastore(session, datastore._GetMoId()) for datastore in used)


def read_datastore(session: Session, moref: str) -> DatastoreFacts:
    """Raises VsphereError, ObjectGoneError."""
    datastore = session.object(vim.Datastore, moref)
    read = fetch_one(session, f"look at datastore {moref}", datastore, _PATHS).values
    return DatastoreFacts(
        moref=moref,
        name=str(read.get("summary.name", "")),
        kind=str(read.get("summary.type", "")),
        accessible=bool(read.get("summary.accessible")),
        free_bytes=int(read.get("summary.freeSpace", 0)),
        capacity_bytes=int(read.get("summary.capacity", 0)),
        writable_hosts=frozenset(
            mount.key._GetMoId()
            for mount in read.get("host") or []
            if mount.mountInfo.accessMode == "readWrite" and mount.mountInfo.accessible is not False
        ),
    )
