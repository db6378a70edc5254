"""An NFSv3 export as a datastore of ESXi hosts: mounted, found again, unmounted.

    mount_nas -> every host has it under one name, and reaches it -> … -> unmount_nas

Invariants: server, path and name are byte-identical on all hosts, else vCenter would see several
datastores; a mount that is there already is used only if it shows the very same export; nothing is
unmounted that is not exactly this export under this name, or while a VM uses it. Both calls are
idempotent, and a lost reply is settled by looking.
Thread model: functions; they block and keep no state.
Source: design notes section 5; vSphere API reference, HostDatastoreSystem.CreateNasDatastore and
.RemoveDatastore, HostMountInfo.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pyVmomi import vim

from vmware.errors import BusyError, ObjectGoneError, UnsupportedError, VsphereError
from vmware.patience import Patience
from vmware.properties import Fetched, Wanted, fetch, fetch_all, fetch_one
from vmware.session import Session
from vmware.tasks import wait_for_task

NAME_CHARACTERS_MAX = 42
ACCESSIBLE_DEADLINE_S = 60.0
UNMOUNT_DEADLINE_S = 300.0

_POLL_S = 0.1
_PATHS = ("summary.name", "summary.accessible", "info", "host", "vm")
_WANTED = (Wanted(kind=vim.Datastore, paths=_PATHS),)


class MountObstacle(StrEnum):
    """Why a host does not mount an export."""

    REFUSED = "refused"  # the server did, or does not answer
    LIMIT = "limit"  # the host has as many NFS mounts as it may
    NAME_TAKEN = "name-taken"  # another datastore is called so
    NO_ROUTE = "no-route"  # no vmkernel adapter, or no gateway to the server
    NOT_ACCESSIBLE = "not-accessible"  # mounted, but the host cannot use it


class NasMountError(VsphereError):
    """A host did not mount our NFS export; the message says which host and why."""

    code = "vsphere.nas-mount"

    def __init__(self, message: str, obstacle: MountObstacle, *, fault: str = "") -> None:
        super().__init__(message, fault=fault)
        self.obstacle = obstacle
        self.retryable = obstacle in (MountObstacle.REFUSED, MountObstacle.NOT_ACCESSIBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NasExport:
    name: str  # of the datastore
    remote_host: str
    remote_path: str

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= NAME_CHARACTERS_MAX:
            raise ValueError(f"no name of a datastore: {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NasDatastore:
    """The export as vCenter shows it."""

    moref: str
    host_morefs: tuple[str, ...]
    vm_morefs: tuple[str, ...]


def mount_nas(
    session: Session,
    export: NasExport,
    host_morefs: Sequence[str],
    *,
    patience: Patience | None = None,
    deadline_s: float = ACCESSIBLE_DEADLINE_S,
) -> str:
    """Mount it on these hosts; return the moref of the one datastore, which all of them reach.

    Raises: NasMountError: a host is named; mounts of earlier hosts stay. VsphereError.
    """
    patience = patience or Patience()
    morefs = {host: _mount(session, export, host) for host in host_morefs}
    for host, moref in morefs.items():
        if moref != morefs[host_morefs[0]]:
            raise NasMountError(
                f"vCenter takes {export.name} on {_host_name(session, host)} for another datastore",
                MountObstacle.NAME_TAKEN,
            )
    moref = morefs[host_morefs[0]]
    _wait_accessible(session, export, moref, host_morefs, patience, deadline_s)
    return moref


def find_nas(session: Session, export: NasExport) -> NasDatastore | None:
    """The datastore that shows exactly this export under this name. Raises VsphereError."""
    what = f"look for the datastore {export.name}"
    for item in fetch_all(session, what, _WANTED):
        if item.values.get("summary.name") == export.name and _shows(item, export):
            return NasDatastore(
                moref=item.moref,
                host_morefs=tuple(mount.key._GetMoId() for mount in item.values.get("host") or ()),
                vm_morefs=tuple(vm._GetMoId() for vm in item.values.get("vm") or ()),
            )
    return None


def unmount_nas(
    session: Session, export: NasExport, *, deadline_s: float = UNMOUNT_DEADLINE_S
) -> None:
    """Unmount it from every host; one that is not there counts as unmounted.

    Raises: BusyError: VMs use it; nothing was unmounted. VsphereError.
    """
    found = find_nas(session, export)
    if found is None:
        return
    if found.vm_morefs:
        raise BusyError(f"VMs use the datastore {export.name}: {', '.join(found.vm_morefs)}")
    what = f"unmount {export.name}"
    datastore = session.object(vim.Datastore, found.moref)
    for host in found.host_morefs:
        try:
            session.call(what, _system(session, host).RemoveDatastore, datastore)
        except ObjectGoneError:
            continue
        except UnsupportedError:  # then for all hosts at once
            task = session.call(what, datastore.Destroy_Task)
            wait_for_task(session, task, what=what, deadline_s=deadline_s)
            break
        except VsphereError:
            left = find_nas(session, export)
            if left is not None and host in left.host_morefs:
                raise
    if find_nas(session, export) is not None:
        raise BusyError(f"{what}: it is still there")


def vmkernel_addresses(session: Session, host_morefs: Sequence[str]) -> tuple[str, ...]:
    """The addresses from which these hosts may mount. Raises VsphereError."""
    path = "config.network.vnic"
    hosts = [session.object(vim.HostSystem, moref) for moref in host_morefs]
    what = "read the hosts' vmkernel addresses"
    found = fetch(session, what, hosts, [Wanted(kind=vim.HostSystem, paths=(path,))])
    addresses: dict[str, None] = {}
    for item in found:
        for adapter in item.values.get(path) or ():
            address = getattr(getattr(adapter.spec, "ip", None), "ipAddress", None)
            if address:
                addresses[str(address)] = None
    return tuple(addresses)


def _mount(session: Session, export: NasExport, host_moref: str) -> str:
    present = _on_host(session, export, host_moref)
    if present is not None:
        return present
    spec = vim.host.NasVolume.Specification(
        remoteHost=export.remote_host,
        remotePath=export.remote_path,
        localPath=export.name,
        accessMode="readWrite",
        type="NFS",
        remoteHostNames=[export.remote_host],
    )
    where = _host_name(session, host_moref)
    what = f"mount {export.remote_host}:{export.remote_path} on {where}"
    try:
        session.call(what, _system(session, host_moref).CreateNasDatastore, spec)
    except VsphereError as error:
        present = _on_host(session, export, host_moref)
        if present is not None:  # somebody was faster, or the reply was lost
            return present
        raise _mount_error(error) from error
    present = _on_host(session, export, host_moref)
    if present is None:
        raise NasMountError(f"{what}: it is not there", MountObstacle.NOT_ACCESSIBLE)
    return present


def _on_host(session: Session, export: NasExport, host_moref: str) -> str | None:
    """The moref of the export where it is mounted. Raises NasMountError: the name is taken."""
    host = session.object(vim.HostSystem, host_moref)
    what = f"look at the datastores of {host_moref}"
    mounted = fetch_one(session, what, host, ("datastore",)).values.get("datastore")
    for item in fetch(session, what, mounted, _WANTED) if mounted else ():
        if _shows(item, export):
            return item.moref
        if item.values.get("summary.name") == export.name:
            raise NasMountError(
                f"{_host_name(session, host_moref)} has another datastore called {export.name}",
                MountObstacle.NAME_TAKEN,
            )
    return None


def _wait_accessible(
    session: Session,
    export: NasExport,
    moref: str,
    host_morefs: Sequence[str],
    patience: Patience,
    deadline_s: float,
) -> None:
    datastore = session.object(vim.Datastore, moref)
    what = f"wait for {export.name}"
    ends_s = time.monotonic() + deadline_s
    while True:
        read = fetch_one(session, what, datastore, _PATHS).values
        mounts = {mount.key._GetMoId(): mount.mountInfo for mount in read.get("host") or ()}
        missing = [host for host in host_morefs if not _accessible(mounts.get(host))]
        if not missing and read.get("summary.accessible"):
            return
        if time.monotonic() > ends_s:
            host = missing[0] if missing else host_morefs[0]
            raise NasMountError(
                f"{_host_name(session, host)} cannot use {export.name}: {_why(mounts.get(host))}",
                MountObstacle.NOT_ACCESSIBLE,
            )
        patience.pause(_POLL_S)


def _accessible(mount: Any) -> bool:
    """Old hosts do not say; then `mounted` counts."""
    return mount is not None and mount.accessible is not False and mount.mounted is not False


def _why(mount: Any) -> str:
    if mount is None:
        return "it is not mounted"
    return str(mount.mountFailedReason or mount.inaccessibleReason or "it does not say why")


def _shows(item: Fetched, export: NasExport) -> bool:
    nas = getattr(item.values.get("info"), "nas", None)
    return nas is not None and (nas.remoteHost, nas.remotePath) == (
        export.remote_host,
        export.remote_path,
    )


def _mount_error(error: VsphereError) -> VsphereError:
    """Errors that are not about mounting stay what they are."""
    obstacle = next((each for name, each in _OBSTACLES.items() if name in error.fault), None)
    if obstacle is None:
        return error
    if obstacle is MountObstacle.REFUSED and "maximum" in str(error).lower():
        obstacle = MountObstacle.LIMIT  # some versions say it in words only
    return NasMountError(f"{error}{_ADVICE.get(obstacle, '')}", obstacle, fault=error.fault)


_OBSTACLES = {  # by the name of the fault; the first that fits
    "NasConnectionLimitReached": MountObstacle.LIMIT,
    "NoVirtualNic": MountObstacle.NO_ROUTE,
    "NoGateway": MountObstacle.NO_ROUTE,
    "DuplicateName": MountObstacle.NAME_TAKEN,
    "AlreadyExists": MountObstacle.NAME_TAKEN,
    "PlatformConfigFault": MountObstacle.REFUSED,
    "NasConfigFault": MountObstacle.REFUSED,
    "NasVolumeNotMounted": MountObstacle.REFUSED,
    "HostConfigFault": MountObstacle.REFUSED,
}
_ADVICE = {
    MountObstacle.LIMIT: "; unmount what is not needed, or raise NFS.MaxVolumes on the host",
    MountObstacle.REFUSED: "; can the host reach TCP ports 111 and 2049 of that address?",
}


def _system(session: Session, host_moref: str) -> Any:
    host = session.object(vim.HostSystem, host_moref)
    path = "configManager.datastoreSystem"
    what = "find the host's datastore system"
    found = fetch_one(session, what, host, (path,)).values.get(path)
    if found is None:
        raise UnsupportedError(f"{_host_name(session, host_moref)} shows no datastore system")
    return found


def _host_name(session: Session, host_moref: str) -> str:
    host = session.object(vim.HostSystem, host_moref)
    try:
        return str(fetch_one(session, "read a host's name", host, ("name",)).values["name"])
    except (VsphereError, KeyError):
        return host_moref
