"""A data plane without SOAP: one vCenter place and one host over the same datastore."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.data_plane.access import Gate, HostAccounts
from lab.data_plane.folder import HOST_DATACENTER, PREFIX, FolderHandler
from lab.data_plane.place import VCENTER, Place
from lab.esx.datastore import LabDatastore
from lab.esx.file_locks import FileLocks
from lab.faults import FaultSwitches
from lab.vcenter.certificate import make_identity
from lab.vcenter.https_server import HttpsServer
from lab.vcenter.tickets import ServiceTickets

USER, PASSWORD, COOKIE = "lab\\admin", "secret", "0123456789abcdef"
ROOT_PASSWORD = "root-secret"


@dataclass
class Accounts:
    """One user with one session."""

    living: set[str] = field(default_factory=lambda: {COOKIE})

    def user_of_cookie(self, cookie: str) -> str | None:
        return USER if cookie in self.living else None

    def user_of_password(self, user: str, password: str) -> str | None:
        return USER if (user, password) == (USER, PASSWORD) else None


@dataclass
class Privileges:
    """Everything is allowed but what a test takes away."""

    refused: set[str] = field(default_factory=set)

    def allows(self, user: str, privilege: str, entity: str) -> bool:
        return privilege not in self.refused


@dataclass(frozen=True)
class Tree:
    """One datacenter with one datastore."""

    datacenter: str
    datastore: LabDatastore

    def datacenters(self) -> Sequence[str]:
        return [self.datacenter]

    def datastores(self, datacenter: str) -> Sequence[LabDatastore]:
        return [self.datastore] if datacenter == self.datacenter else []

    def entity(self, datacenter: str, datastore: str) -> str:
        return "datastore-1"


@dataclass
class Plane:
    root: Path
    datastore: LabDatastore
    vcenter: Place
    host: Place
    tickets: ServiceTickets
    locks: FileLocks
    privileges: Privileges
    switches: FaultSwitches

    def connect(self, place: Place) -> http.client.HTTPSConnection:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(place.authority, context=context, timeout=30)


@contextmanager
def running(folder: Path) -> Iterator[Plane]:
    root = folder / "ds"
    root.mkdir()
    datastore = LabDatastore("store 1", root)
    tickets, locks = ServiceTickets(time.monotonic), FileLocks()
    switches, privileges = FaultSwitches(), Privileges()
    tls = make_identity("127.0.0.1").context
    servers = [HttpsServer(tls), HttpsServer(tls)]
    places = [Place(VCENTER, _authority(servers[0])), Place("esx1", _authority(servers[1]))]
    accounts = [Accounts(), HostAccounts("root", lambda: ROOT_PASSWORD)]
    trees = [Tree("Site/DC", datastore), Tree(HOST_DATACENTER, datastore)]
    for server, place, account, tree in zip(servers, places, accounts, trees, strict=True):
        gate = Gate(place, account, tickets, switches)
        server.route(PREFIX, FolderHandler(tree, gate, privileges, locks, switches))
        server.start()
    try:
        yield Plane(root, datastore, *places, tickets, locks, privileges, switches)
    finally:
        for server in servers:
            server.close()


def _authority(server: HttpsServer) -> str:
    return f"127.0.0.1:{server.port}"
