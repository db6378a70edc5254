"""vSphere datastores as data: type, space, URL, and which hosts reach them.

Source: vSphere API reference, Datastore.summary, .info and .host. Blocks; keeps no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from vmware.places import plain_name
from vmware.properties import Fetched, Wanted, fetch, fetch_all
from vmware.session import Session

_PATHS = (
    "name",
    "summary.type",
    "summary.url",
    "summary.capacity",
    "summary.freeSpace",
    "summary.accessible",
    "summary.maintenanceMode",
    "info",
    "host",
)
_WANTED = (Wanted(kind=vim.Datastore, paths=_PATHS),)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreInfo:
    """One datastore. `type` is the server's word: VMFS, NFS, NFS41, vsan, VVOL, …"""

    moref: str
    name: str
    type: str
    url: str
    capacity_bytes: int
    free_bytes: int
    accessible: bool
    in_maintenance: bool
    remote_host: str  # of NFS, else empty
    remote_path: str
    vmfs_version: str  # of VMFS, else empty
    host_morefs: tuple[str, ...]  # hosts that have it mounted and reach it

    @property
    def is_nfs(self) -> bool:
        return self.type.upper().startswith("NFS")


def list_datastores(session: Session) -> list[DatastoreInfo]:
    """All that the account may see, by name (two datacenters may have one of the same name)."""
    found = map(_datastore, fetch_all(session, "read the datastores", _WANTED))
    return sorted(found, key=lambda item: (item.name, item.moref))


def read_datastores(session: Session, datastores: Sequence[Any]) -> list[DatastoreInfo]:
    """These managed objects, such as `vm.datastore`.

    Raises:
        ObjectGoneError: one does not exist.
    """
    if not datastores:
        return []
    return [_datastore(item) for item in fetch(session, "read datastores", datastores, _WANTED)]


def _datastore(item: Fetched) -> DatastoreInfo:
    values = item.values
    info = values.get("info")
    nas = getattr(info, "nas", None)
    vmfs = getattr(info, "vmfs", None)
    return DatastoreInfo(
        moref=item.moref,
        name=plain_name(values.get("name", "")),
        type=values.get("summary.type", ""),
        url=values.get("summary.url", ""),
        capacity_bytes=values.get("summary.capacity", 0),
        free_bytes=values.get("summary.freeSpace", 0),
        accessible=bool(values.get("summary.accessible", False)),
        in_maintenance=values.get("summary.maintenanceMode", "normal") != "normal",
        remote_host=getattr(nas, "remoteHost", None) or "",
        remote_path=getattr(nas, "remotePath", None) or "",
        vmfs_version=getattr(vmfs, "version", None) or "",
        host_morefs=tuple(
            mount.key._GetMoId()
            for mount in values.get("host", ())
            if mount.mountInfo.mounted is not False and mount.mountInfo.accessible is not False
        ),
    )
