"""The ways to a file of a datastore over HTTPS, and what opens them.

| route | connection | proof | cost |
|---|---|---|---|
| server | to what we are logged in to, kept | session cookie | vCenter passes it all through |
| host | to the VM's host, for one request | a ticket for that URL | a call and a handshake each |

Invariants: the cookie goes only to the server whose certificate the session pinned; a ticket only
to the host whose certificate vCenter named with it. Neither is ever logged.
Thread model: routes may be used by several threads; a connection by one at a time.
Source: design notes section 4b; vSphere API reference, AcquireGenericServiceTicket.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pyVmomi import vim

from vmware import https
from vmware.datastore_path import DatastorePath
from vmware.errors import CertificateError
from vmware.session import Session

WAIT_S = 60.0  # of every single wait for the network

_METHODS = {"GET": "httpGet", "HEAD": "httpHead"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A connection on which one request for `target` with these headers may be sent."""

    connection: http.client.HTTPSConnection
    target: str
    headers: Mapping[str, str] = field(repr=False)


class Route(Protocol):
    @property
    def name(self) -> str:
        """For messages and results: `vc1.example.org`, `host esx1`."""
        ...

    @property
    def keeps_connections(self) -> bool:
        """Whether a connection serves many requests; where not, large ranges are worth much."""
        ...

    def open(
        self, file: DatastorePath, method: str, kept: http.client.HTTPSConnection | None
    ) -> Opened:
        """Prepare one request; blocks.

        Args:
            kept: a connection of this route that is free; None: make one.

        Raises:
            VsphereError: no connection, no ticket; `kept` is closed then.
        """
        ...

    def renew(self) -> None:
        """Log in again if the session was lost. Raises VsphereError."""
        ...


class ServerRoute:
    """Through the server of the session: vCenter, or an ESXi host that was added by itself."""

    keeps_connections = True

    def __init__(self, session: Session, datacenter_path: str) -> None:
        self._session = session
        self._datacenter_path = datacenter_path if session.is_vcenter else None
        self.name = session.endpoint.address

    def open(
        self, file: DatastorePath, method: str, kept: http.client.HTTPSConnection | None
    ) -> Opened:
        endpoint = self._session.endpoint
        connection = kept or https.connect(
            endpoint.address, endpoint.port, endpoint.fingerprint_sha256, WAIT_S
        )
        return Opened(
            connection=connection,
            target=file.url_path(self._datacenter_path),
            headers={"Cookie": f'vmware_soap_session="{self._session.cookie}"'},
        )

    def renew(self) -> None:
        instance = self._session.object(vim.ServiceInstance, "ServiceInstance")
        self._session.read("keep the session", instance.CurrentTime)


class HostRoute:
    """Straight to the ESXi host that runs the VM, with a ticket of vCenter for each request."""

    keeps_connections = False

    def __init__(self, session: Session, address: str, port: int) -> None:
        self._session = session
        self._address = address
        self._port = port
        self.name = f"host {address}"

    def open(
        self, file: DatastorePath, method: str, kept: http.client.HTTPSConnection | None
    ) -> Opened:
        target = file.url_path(None)
        authority = self._address if self._port == 443 else f"{self._address}:{self._port}"
        spec = vim.SessionManager.HttpServiceRequestSpec(
            method=_METHODS[method], url=f"https://{authority}{target}"
        )
        ticket = self._session.read(f"ask for a ticket for {self.name}", self._acquire_ticket, spec)
        if not ticket.sslThumbprint:
            raise CertificateError(f"vCenter named no certificate with the ticket for {self.name}")
        connection = https.connect(self._address, self._port, ticket.sslThumbprint, WAIT_S)
        return Opened(
            connection=connection,
            target=target,
            headers={"Cookie": f"vmware_cgi_ticket={ticket.id}", "Connection": "close"},
        )

    def renew(self) -> None:
        """Nothing to do: every request has a ticket of its own, and asking for one logs in."""

    def _acquire_ticket(
        self, spec: vim.SessionManager.HttpServiceRequestSpec
    ) -> vim.SessionManager.GenericServiceTicket:
        manager: Any = self._session.content.sessionManager
        ticket: vim.SessionManager.GenericServiceTicket = manager.AcquireGenericServiceTicket(spec)
        return ticket
