"""A data plane without SOAP: one vCenter place and one host over the same datastore."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.certificate import make_certificate
from lab.data_plane.access import Gate, HostAccounts
from lab.data_plane.exchange import VCENTER
from lab.data_plane.folder import HOST_DATACENTER, PREFIX, FolderHandler
from lab.data_plane.listener import HttpsListener, Routes
from lab.data_plane.tickets import TicketBook
from lab.esx.datastore import LabDatastore
from lab.esx.file_locks import FileLocks
from lab.faults import FaultSwitches

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
    vcenter: HttpsListener
    host: HttpsListener
    tickets: TicketBook
    locks: FileLocks
    privileges: Privileges
    switches: FaultSwitches
    routes: Routes

    def connect(self, place: HttpsListener) -> http.client.HTTPSConnection:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(place.place.authority, context=context, timeout=30)


@contextmanager
def running(folder: Path) -> Iterator[Plane]:
    root = folder / "ds"
    root.mkdir()
    datastore = LabDatastore("store 1", root)
    tickets, locks, switches, privileges = TicketBook(), FileLocks(), FaultSwitches(), Privileges()
    tls = make_certificate(folder, "lab").server_context()
    routes = Routes()
    routes.add(
        PREFIX,
        FolderHandler(
            Tree("Site/DC", datastore),
            Gate(Accounts(), tickets, switches),
            privileges,
            locks,
            switches,
        ),
    )
    host_routes = Routes()
    host_routes.add(
        PREFIX,
        FolderHandler(
            Tree(HOST_DATACENTER, datastore),
            Gate(HostAccounts("root", lambda: ROOT_PASSWORD), tickets, switches),
            privileges,
            locks,
            switches,
        ),
    )
    vcenter = HttpsListener(VCENTER, tls, routes)
    host = HttpsListener("esx1", tls, host_routes)
    try:
        yield Plane(root, datastore, vcenter, host, tickets, locks, privileges, switches, routes)
    finally:
        vcenter.close()
        host.close()
