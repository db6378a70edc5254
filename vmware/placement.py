"""Where a VM that is built again goes: folder, host, resource pool and datastore, with networks.

What the operator named must be there and fit together; what he left open is as it was captured,
where that still exists, else the nearest that fits, and then it is said. Everything is read in
three passes, whatever the size of the inventory; VMs are not read. Blocks; keeps no state.

The vSphere datastore holds all files of the VM. One that has not the space is refused before
anything is made.
Source: design notes section 1 (placement); vSphere API reference, HostSystem, ComputeResource.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pyVmomi import vim

from vmware.captured_vm import CapturedPlacement
from vmware.datastores import DatastoreFacts, list_datastores
from vmware.errors import NoSpaceError, VsphereError
from vmware.findings import Finding, Weight
from vmware.networks import NetworkInfo, read_networks
from vmware.places import PLACES, Place, Places, place_of, plain_name
from vmware.properties import Fetched, Wanted, fetch, fetch_all, fetch_one, read_all
from vmware.session import Session

_HOST_PATHS = (
    "name",
    "parent",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "datastore",
)
_COMPUTE_PATHS = ("name", "resourcePool")


class PlacementError(VsphereError):
    """The place that was asked for is not there, or its parts do not fit together."""

    code = "vsphere.placement"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPlace:
    """What the operator says; empty leaves it open. Paths are inventory paths."""

    folder_path: str = ""
    pool_path: str = ""
    host: str = ""  # name of the ESXi host
    datastore: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    folder_moref: str
    folder_path: str
    datacenter_moref: str
    datacenter_path: str
    host_moref: str
    host_name: str
    pool_moref: str
    datastore: DatastoreFacts
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Host:
    moref: str
    name: str
    compute_moref: str
    datacenter_moref: str
    usable: bool
    datastores: frozenset[str]  # morefs


def choose_place(
    session: Session, wanted: WantedPlace, captured: CapturedPlacement, need_bytes: int
) -> Placement:
    """Decide; nothing is made.

    Raises:
        PlacementError: something that was named is not there, or nothing fits.
        NoSpaceError: no vSphere datastore that may be taken has `need_bytes`.
    """
    return _Choice(session, wanted, captured).run(need_bytes)


def reachable_networks(session: Session, host_moref: str) -> list[NetworkInfo]:
    """What a VM on this host can be connected to."""
    host = session.object(vim.HostSystem, host_moref)
    what = f"read the networks of {host_moref}"
    found = fetch_one(session, what, host, ("network",)).values.get("network")
    return read_networks(session, list(found or ()))


def hosts_beside(session: Session, host_moref: str) -> list[str]:
    """Morefs of the hosts of its cluster that are connected and not in maintenance, by name."""
    host = session.object(vim.HostSystem, host_moref)
    what = f"read the hosts beside {host_moref}"
    compute = fetch_one(session, what, host, ("parent",)).values.get("parent")
    if compute is None:
        return [host_moref]
    hosts = fetch_one(session, what, compute, ("host",)).values.get("host") or ()
    wanted = [Wanted(kind=vim.HostSystem, paths=_HOST_PATHS)]
    found = fetch(session, what, list(hosts), wanted) if hosts else []
    return [
        item.moref
        for item in sorted(found, key=lambda item: str(item.values.get("name", "")))
        if str(item.values.get("runtime.connectionState")) == "connected"
        and not item.values.get("runtime.inMaintenanceMode")
    ]


class _Choice:
    def __init__(self, session: Session, wanted: WantedPlace, captured: CapturedPlacement) -> None:
        self._session = session
        self._wanted = wanted
        self._captured = captured
        self._known = read_all(session, "read the places of the inventory", PLACES, place_of)
        self._places = Places(self._known)
        self._hosts, self._root_pools = self._read_hosts()
        self._findings: list[Finding] = []

    def run(self, need_bytes: int) -> Placement:
        folder, datacenter = self._folder()
        hosts = [h for h in self._hosts if h.datacenter_moref == datacenter.moref and h.usable]
        hosts = self._narrowed(hosts)
        datastore, hosts = self._datastore(hosts, need_bytes)
        host = self._host(hosts)
        return Placement(
            folder_moref=folder.moref,
            folder_path=self._places.path(folder.moref),
            datacenter_moref=datacenter.moref,
            datacenter_path=self._places.path(datacenter.moref),
            host_moref=host.moref,
            host_name=host.name,
            pool_moref=self._pool(host),
            datastore=datastore,
            findings=tuple(self._findings),
        )

    # Folder and datacenter

    def _folder(self) -> tuple[Place, Place]:
        wanted = self._wanted.folder_path.strip("/")
        if wanted:
            found = self._at(wanted, "Folder") or self._at(f"{wanted}/vm", "Folder")
            if found is None:
                raise PlacementError(f"there is no folder {wanted!r}")
            datacenter = self._places.above(found.moref, "Datacenter")
            if datacenter is None or self._vm_root(datacenter) not in self._chain(found):
                raise PlacementError(f"{wanted!r} is no folder for VMs")
            return found, datacenter
        found = self._at(self._captured.folder_path, "Folder")
        datacenter = self._places.above(found.moref, "Datacenter") if found else None
        if found is not None and datacenter is not None:
            return found, datacenter
        datacenter = self._datacenter()
        root = self._vm_root(datacenter)
        if self._captured.folder_path:
            self._findings.append(
                Finding(
                    "placement.other-folder",
                    f"the folder {self._captured.folder_path} is not there; "
                    f"the VM goes to {self._places.path(root)}",
                    "none, or give --folder",
                    Weight.NOTE,
                )
            )
        return self._place(root), datacenter

    def _datacenter(self) -> Place:
        found = self._at(self._captured.datacenter_path, "Datacenter")
        every = sorted(
            (place for place in self._known if place.kind == "Datacenter"),
            key=lambda place: place.name,
        )
        if found is None and len(every) != 1:
            names = ", ".join(self._places.path(place.moref) for place in every) or "none"
            raise PlacementError(f"say into which folder: there are several datacenters ({names})")
        return found or every[0]

    def _vm_root(self, datacenter: Place) -> str:
        target = self._session.object(vim.Datacenter, datacenter.moref)
        read = fetch_one(self._session, "read a datacenter", target, ("vmFolder",)).values
        folder = read.get("vmFolder")
        if folder is None:
            raise PlacementError(f"the datacenter {plain_name(datacenter.name)} shows no VM folder")
        return str(folder._GetMoId())

    # Host, pool, datastore

    def _narrowed(self, hosts: list[_Host]) -> list[_Host]:
        """To those that the operator's host and pool allow."""
        if self._wanted.host:
            hosts = [host for host in hosts if host.name == self._wanted.host]
            if not hosts:
                raise PlacementError(
                    f"no host {self._wanted.host!r} there that is connected and not in maintenance"
                )
        if self._wanted.pool_path:
            pool = self._wanted_pool()
            owner = self._places.above(pool.moref, "ClusterComputeResource", "ComputeResource")
            hosts = [h for h in hosts if owner is not None and h.compute_moref == owner.moref]
            if not hosts:
                raise PlacementError(f"no usable host belongs to the pool {self._wanted.pool_path}")
        if not hosts:
            raise PlacementError("no host there is connected and not in maintenance")
        return hosts

    def _datastore(self, hosts: list[_Host], need_bytes: int) -> tuple[DatastoreFacts, list[_Host]]:
        """The datastore, and the hosts that can write to it."""
        within = frozenset[str]().union(*(host.datastores for host in hosts))
        offered = [
            item
            for item in list_datastores(self._session)
            if item.moref in within and item.accessible and _writers(item, hosts)
        ]
        name = self._wanted.datastore
        if name:
            offered = [item for item in offered if item.name == name]
            if not offered:
                raise PlacementError(f"no host there can write to a vSphere datastore {name!r}")
        first = [item for item in offered if item.name == self._captured.datastore]
        rest = sorted(offered, key=lambda item: -item.free_bytes)
        for item in (*first, *rest):
            if item.free_bytes >= need_bytes:
                if not name and item.name != self._captured.datastore:
                    before = self._captured.datastore or "an unknown one"
                    self._findings.append(
                        Finding(
                            "placement.other-datastore",
                            f"the VM goes to the vSphere datastore {item.name}; it was on {before}",
                            "none, or give --datastore",
                            Weight.NOTE,
                        )
                    )
                return item, _writers(item, hosts)
        spaces = ", ".join(f"{item.name} {item.free_bytes >> 20} MiB" for item in offered)
        raise NoSpaceError(f"{need_bytes >> 20} MiB are needed; free are: {spaces or 'none'}")

    def _host(self, hosts: Sequence[_Host]) -> _Host:
        cluster = next(
            (
                h.compute_moref
                for h in hosts
                if self._name(h.compute_moref) == self._captured.cluster
            ),
            "",
        )
        return min(
            hosts,
            key=lambda host: (
                host.name != self._captured.host,
                host.compute_moref != cluster,
                host.name,
            ),
        )

    def _pool(self, host: _Host) -> str:
        if self._wanted.pool_path:
            return self._wanted_pool().moref
        found = self._at(self._captured.resource_pool_path, "ResourcePool")
        if found is not None:
            owner = self._places.above(found.moref, "ClusterComputeResource", "ComputeResource")
            if owner is not None and owner.moref == host.compute_moref:
                return found.moref
        root = self._root_pools.get(host.compute_moref)
        if root is None:
            raise PlacementError(f"{host.name} shows no resource pool")
        return root

    def _wanted_pool(self) -> Place:
        found = self._at(self._wanted.pool_path, "ResourcePool")
        if found is None:
            raise PlacementError(f"there is no resource pool {self._wanted.pool_path!r}")
        return found

    # What there is

    def _read_hosts(self) -> tuple[list[_Host], dict[str, str]]:
        wanted = [
            Wanted(kind=vim.HostSystem, paths=_HOST_PATHS),
            Wanted(kind=vim.ComputeResource, paths=_COMPUTE_PATHS),
        ]
        found = fetch_all(self._session, "read the hosts", wanted)
        hosts = [self._as_host(item) for item in found if isinstance(item.object, vim.HostSystem)]
        pools = {
            item.moref: str(item.values["resourcePool"]._GetMoId())
            for item in found
            if "resourcePool" in item.values
        }
        return hosts, pools

    def _as_host(self, item: Fetched) -> _Host:
        read = item.values
        parent = read.get("parent")
        datacenter = self._places.above(item.moref, "Datacenter")
        return _Host(
            moref=item.moref,
            name=plain_name(str(read.get("name", ""))),
            compute_moref=str(parent._GetMoId()) if parent is not None else "",
            datacenter_moref=datacenter.moref if datacenter else "",
            usable=str(read.get("runtime.connectionState")) == "connected"
            and not read.get("runtime.inMaintenanceMode"),
            datastores=frozenset(str(one._GetMoId()) for one in read.get("datastore") or ()),
        )

    def _at(self, path: str, kind: str) -> Place | None:
        """The object of this inventory path, with names as the server or as people write them."""
        path = path.strip("/")
        spellings: tuple[Callable[[str], str], ...] = (str, plain_name)
        for spelled in spellings:
            for place in self._known:
                if path and place.kind == kind and spelled(self._places.path(place.moref)) == path:
                    return place
        return None

    def _chain(self, place: Place) -> Iterable[str]:
        moref = place.moref
        for _ in range(64):
            yield moref
            found = next((item for item in self._known if item.moref == moref), None)
            if found is None or not found.parent.moref:
                return
            moref = found.parent.moref

    def _place(self, moref: str) -> Place:
        found = next((place for place in self._known if place.moref == moref), None)
        if found is None:
            raise PlacementError(f"the account may not see the folder {moref}")
        return found

    def _name(self, moref: str) -> str:
        return self._places.name(moref)


def _writers(datastore: DatastoreFacts, hosts: Iterable[_Host]) -> list[_Host]:
    return [host for host in hosts if host.moref in datastore.writable_hosts]
