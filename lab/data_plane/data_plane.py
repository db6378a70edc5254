"""The data plane of one LabVcenter, put together: its routes, its hosts' servers, its managers.

    plane = DataPlane(vcenter, site)      # the site of the VMs' engine: datastores, locks
    plane.serve_host(host)                # for every HostSystem

A host named by a loopback address (127.0.1.1) is served on it, so that its name, with
`summary.config.port`, is where clients reach it; any other on 127.0.0.1.
Thread model: set up by one thread; then any. `close` ends transfers, leases and servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address

from lab.data_plane.access import Gate, HostAccounts, Privileges
from lab.data_plane.folder import HOST_DATACENTER, FolderHandler
from lab.data_plane.folder import PREFIX as FOLDER_PREFIX
from lab.data_plane.lease import DEFAULT_TIMEOUT_S
from lab.data_plane.lease_desk import LeaseDesk
from lab.data_plane.lease_table import LeaseTable
from lab.data_plane.nfc import PREFIX as NFC_PREFIX
from lab.data_plane.nfc import NfcHandler
from lab.data_plane.place import VCENTER, Place
from lab.data_plane.rest import RestApi
from lab.data_plane.rest_http import (
    PREFIXES,
    RestHandler,
    VcenterRestInventory,
    VcenterRestSessions,
)
from lab.data_plane.rest_tagging import Tagging
from lab.data_plane.screen import PREFIX as SCREEN_PREFIX
from lab.data_plane.screen import ScreenHandler
from lab.data_plane.soap_lease import TransferPlace
from lab.data_plane.soap_ovf import OvfManager
from lab.data_plane.tags import Tags
from lab.esx.datastore import LabDatastore
from lab.esx.site import Site
from lab.faults import FaultName
from lab.vcenter.certificate import make_identity
from lab.vcenter.datastores import Datastore
from lab.vcenter.folders import Datacenter
from lab.vcenter.hosts import HostSystem
from lab.vcenter.https_server import HttpsServer
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.managed_object import LabObject
from lab.vcenter.virtual_machine_import import ImportedMachines

HOST_USER = "root"


class DataPlane:
    def __init__(
        self,
        vcenter: LabVcenter,
        site: Site,
        *,
        lease_timeout_s: float = DEFAULT_TIMEOUT_S,
        lease_host_wildcard: bool = False,
        host_password: str = "Practice-root-1",
    ) -> None:
        """With `lease_host_wildcard` leases name the host `*`, as a host alone does."""
        self.tags = Tags()
        self.host_password = host_password
        self._vcenter = vcenter
        self._site = site
        self._wildcard = lease_host_wildcard
        self._privileges = _VcenterPrivileges(vcenter)
        self._servers: dict[str, HttpsServer] = {}
        self._rest_sessions = VcenterRestSessions(vcenter)
        operations = Tagging(VcenterRestInventory(vcenter), self.tags).operations()
        self.rest = RestApi(self._rest_sessions, operations)
        self.lease_table = LeaseTable(timeout_s=lease_timeout_s)
        self.leases = LeaseDesk(
            vcenter,
            self.lease_table,
            site.datastores,
            vcenter.switches,
            self._transfer_place,
            ImportedMachines(),
        )
        vcenter.data_plane = self
        vcenter.add_manager("ovfManager", OvfManager(vcenter, "OvfManager"))
        self._route_vcenter()

    def _route_vcenter(self) -> None:
        vcenter, switches = self._vcenter, self._vcenter.switches
        place = Place(VCENTER, f"{vcenter.address}:{vcenter.port}")
        gate = Gate(place, _VcenterAccounts(vcenter), vcenter.tickets, switches)
        tree = _VcenterTree(vcenter)
        vcenter.route(FOLDER_PREFIX, self._folder(tree, gate))
        vcenter.route(NFC_PREFIX, self._nfc(place))
        vcenter.route(
            SCREEN_PREFIX, ScreenHandler(gate, self._privileges, vcenter.registry, switches)
        )
        for prefix in PREFIXES:
            vcenter.route(prefix, RestHandler(self.rest))

    def _folder(
        self, tree: _VcenterTree | _HostTree, gate: Gate, privileges: Privileges | None = None
    ) -> FolderHandler:
        locks, switches = self._site.locks, self._vcenter.switches
        return FolderHandler(tree, gate, privileges or self._privileges, locks, switches)

    def _nfc(self, place: Place) -> NfcHandler:
        site = self._site
        return NfcHandler(
            place, self.lease_table, site.datastores, site.locks, self._vcenter.switches
        )

    def serve_host(self, host: HostSystem) -> str:
        """Start the host's own server; its `address:port`."""
        address = _loopback(host.name)
        identity = make_identity(address)
        server = HttpsServer(identity.context, address=address)
        place = Place(host.name, f"{address}:{server.port}")
        accounts = HostAccounts(HOST_USER, lambda: self.host_password)
        gate = Gate(place, accounts, self._vcenter.tickets, self._vcenter.switches)
        privileges = _HostPrivileges(self._privileges)
        server.route(FOLDER_PREFIX, self._folder(_HostTree(host), gate, privileges))
        server.route(NFC_PREFIX, self._nfc(place))
        self._servers[host.moid] = server
        self._vcenter.identities[place.authority] = identity
        host.https_port = server.port
        host.touch()
        server.start()
        return place.authority

    def _transfer_place(self, host: HostSystem | None) -> TransferPlace:
        """A host's own server; vCenter where the host has none."""
        server = self._servers.get(host.moid) if host is not None else None
        if host is None or server is None:
            authority = f"{self._vcenter.address}:{self._vcenter.port}"
        else:
            authority = f"{_loopback(host.name)}:{server.port}"
        identity = self._vcenter.identities[authority]
        if self._wildcard:
            authority = f"*:{authority.rpartition(':')[2]}"
        return TransferPlace(authority=authority, identity=identity)

    def close(self) -> None:
        """Idempotent."""
        self.leases.close()
        self.lease_table.close()
        self._rest_sessions.end_all()
        for server in self._servers.values():
            server.close()


def _loopback(name: str) -> str:
    """The address a host of this name is served on."""
    try:
        address = IPv4Address(name)
    except AddressValueError:
        return "127.0.0.1"
    return name if address.is_loopback else "127.0.0.1"


class _VcenterAccounts:
    def __init__(self, vcenter: LabVcenter) -> None:
        self._vcenter = vcenter

    def user_of_cookie(self, cookie: str) -> str | None:
        session = self._vcenter.sessions.peek(cookie)
        if session is None:
            return None
        if self._vcenter.switches.take(FaultName.SESSION_DROP, method="folder", user=session.user):
            self._vcenter.sessions.end(session)
            return None
        return session.user

    def user_of_password(self, user: str, password: str) -> str | None:
        return user if self._vcenter.accounts.password_fits(user, password) else None


class _VcenterPrivileges:
    def __init__(self, vcenter: LabVcenter) -> None:
        self._vcenter = vcenter

    def allows(self, user: str, privilege: str, entity: str) -> bool:
        thing: LabObject | None = self._vcenter.root_folder
        if entity:
            thing = self._vcenter.registry.get(entity)
        return thing is not None and self._vcenter.accounts.allows(user, privilege, thing)


class _HostPrivileges:
    """The host's root may do everything; a ticket's user what he may on the whole vCenter."""

    def __init__(self, vcenter: _VcenterPrivileges) -> None:
        self._vcenter = vcenter

    def allows(self, user: str, privilege: str, entity: str) -> bool:
        return user == HOST_USER or self._vcenter.allows(user, privilege, "")


class _VcenterTree:
    def __init__(self, vcenter: LabVcenter) -> None:
        self._vcenter = vcenter

    def datacenters(self) -> Sequence[str]:
        return [datacenter.path() for datacenter in self._vcenter.registry.all(Datacenter)]

    def datastores(self, datacenter: str) -> Sequence[LabDatastore]:
        return [shown.store for shown in self._shown(datacenter) if shown.store is not None]

    def entity(self, datacenter: str, datastore: str) -> str:
        return next((d.moid for d in self._shown(datacenter) if d.name == datastore), "")

    def _shown(self, datacenter: str) -> list[Datastore]:
        found = []
        for datastore in self._vcenter.registry.all(Datastore):
            home = datastore.datacenter()
            if home is not None and home.path() == datacenter and datastore.accessible:
                found.append(datastore)
        return found


class _HostTree:
    def __init__(self, host: HostSystem) -> None:
        self._host = host

    def datacenters(self) -> Sequence[str]:
        return [HOST_DATACENTER]

    def datastores(self, datacenter: str) -> Sequence[LabDatastore]:
        if datacenter != HOST_DATACENTER:
            return []
        return [shown.store for shown in self._host.datastores if shown.store is not None]

    def entity(self, datacenter: str, datastore: str) -> str:
        return next((d.moid for d in self._host.datastores if d.name == datastore), "")
