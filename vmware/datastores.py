"""The datastores that hold a VM's files: kind, space, and which hosts reach them how.

One collector call for all; nothing is kept. A datastore is named inside one datacenter only,
so names are looked up among a VM's own datastores, never in the whole inventory.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyVmomi import vim

from vmware.properties import Fetched, Wanted, fetch, fetch_all, fetch_one
from vmware.session import Session

_PATHS = (
    "summary.name",
    "summary.type",
    "summary.url",
    "summary.accessible",
    "summary.freeSpace",
    "summary.capacity",
    "host",
)
_WANTED = (Wanted(kind=vim.Datastore, paths=_PATHS),)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreFacts:
    moref: str
    name: str
    kind: str  # VMFS, NFS (version 3), NFS41, vsan, VVOL, …
    url: str  # `ds:///vmfs/volumes/…/`: stays when the datastore is renamed
    accessible: bool
    free_bytes: int
    capacity_bytes: int
    writable_hosts: frozenset[str]  # morefs of the hosts that have it mounted for writing


def datastores_of(session: Session, vm_moref: str) -> tuple[DatastoreFacts, ...]:
    """The datastores that the VM uses. Raises VsphereError, ObjectGoneError."""
    vm = session.object(vim.VirtualMachine, vm_moref)
    what = f"look at the datastores of {vm_moref}"
    used = fetch_one(session, what, vm, ("datastore",)).values.get("datastore")
    return tuple(map(_facts, fetch(session, what, used, _WANTED))) if used else ()


def read_datastore(session: Session, moref: str) -> DatastoreFacts:
    """Raises VsphereError, ObjectGoneError."""
    datastore = session.object(vim.Datastore, moref)
    return _facts(fetch_one(session, f"look at datastore {moref}", datastore, _PATHS))


def list_datastores(session: Session) -> list[DatastoreFacts]:
    """All that the account may see, by name; two datacenters may each have one of the same name."""
    found = map(_facts, fetch_all(session, "list the datastores", _WANTED))
    return sorted(found, key=lambda item: (item.name, item.moref))


def _facts(item: Fetched) -> DatastoreFacts:
    read = item.values
    return DatastoreFacts(
        moref=item.moref,
        name=str(read.get("summary.name", "")),
        kind=str(read.get("summary.type", "")),
        url=str(read.get("summary.url", "")),
        accessible=bool(read.get("summary.accessible")),
        free_bytes=int(read.get("summary.freeSpace", 0)),
        capacity_bytes=int(read.get("summary.capacity", 0)),
        writable_hosts=frozenset(
            mount.key._GetMoId()
            for mount in read.get("host") or []
            if mount.mountInfo.accessMode == "readWrite" and mount.mountInfo.accessible is not False
        ),
    )
