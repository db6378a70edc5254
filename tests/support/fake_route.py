"""A route to a `TlsFileServer` for the data plane without a vSphere session."""

from __future__ import annotations

import http.client

from vmware import https
from vmware.datastore_path import DatastorePath
from vmware.errors import VsphereError
from vmware.transports.datastore_routes import Opened


class FakeRoute:
    """`fail_open`: raised by the next calls of `open`, one each."""

    def __init__(
        self, port: int, fingerprint: str, *, name: str = "server", keeps_connections: bool = True
    ) -> None:
        self.name = name
        self.keeps_connections = keeps_connections
        self.cookie = "one"
        self.fail_open: list[VsphereError] = []
        self.renewals = 0
        self._port = port
        self._fingerprint = fingerprint

    def open(
        self, file: DatastorePath, method: str, kept: http.client.HTTPSConnection | None
    ) -> Opened:
        if self.fail_open:
            raise self.fail_open.pop(0)
        connection = kept or https.connect("127.0.0.1", self._port, self._fingerprint, 20.0)
        headers = {"Cookie": self.cookie}
        if not self.keeps_connections:
            headers["Connection"] = "close"
        return Opened(connection=connection, target=file.url_path("DC"), headers=headers)

    def renew(self) -> None:
        self.renewals += 1
