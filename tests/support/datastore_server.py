"""A vCenter and its host as the datastore HTTPS transport sees them, over one `TlsFileServer`."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyVmomi import vim

from tests.support.fake_session import FakeSession
from tests.support.tls_file_server import Request, TlsFileServer
from tests.support.vsphere_disk import disk_info, disk_request
from vmware.transports.contract import DiskRequest
from vmware.vmdk_descriptor import NO_PARENT, Descriptor, VmdkExtent, format_descriptor

FOLDER = "/folder/web/"


class DatastoreServer:
    """Serves one disk; as a host it wants a ticket per request, as vCenter the session cookie."""

    def __init__(self, directory: Path, *, is_vcenter: bool = True) -> None:
        self.http = TlsFileServer(directory, {})
        self.http.allow = self._allow
        self.session = FakeSession(self.http.port, self.http.sha256, is_vcenter=is_vcenter)
        datastore = self.session.object(vim.Datastore, "datastore-1")
        self.session.properties = {
            "vm-1": {"datastore": [datastore]},
            "datastore-1": {
                "name": "store 1",
                "summary.name": "store 1",
                "summary.type": "VMFS",
                "summary.accessible": True,
            },
            "host-1": {
                "summary.config.name": "127.0.0.1",
                "summary.config.port": self.http.port,
            },
        }
        self.session.methods["AcquireGenericServiceTicket"] = self._ticket
        self.thumbprint: str | None = self.http.sha1
        self._tickets: dict[str, tuple[str, str]] = {}
        self._numbers = itertools.count()

    def show(self, content: bytes, **extent: Any) -> None:
        """Put descriptor and flat file of a disk into the datastore."""
        fields: dict[str, Any] = {
            "access": "RW",
            "sectors": len(content) // 512,
            "kind": "VMFS",
            "file_name": "web-flat.vmdk",
        }
        descriptor = Descriptor(
            version=1,
            cid=1,
            parent_cid=NO_PARENT,
            create_type="vmfs",
            extents=(VmdkExtent(**{**fields, **extent}),),
        )
        self.http.files[f"{FOLDER}web.vmdk"] = format_descriptor(descriptor)
        self.http.files[f"{FOLDER}web-flat.vmdk"] = content

    def request(self, size_bytes: int, **fields: Any) -> DiskRequest:
        return disk_request(self.session, disk_info(size_bytes), **fields)

    def ranges(self, name: str = "web-flat.vmdk") -> list[tuple[int, int]]:
        """What was asked of the file, without the first sector that `open` reads."""
        asked = [
            r.range for r in self.http.requests if r.method == "GET" and r.path == FOLDER + name
        ]
        return [found for found in asked if found is not None and found != (0, 512)]

    def by_ticket(self, request: Request) -> bool:
        return "vmware_cgi_ticket" in request.headers.get("cookie", "")

    def _ticket(self, _moref: str, spec: Any) -> Any:
        ticket = f"ticket-{next(self._numbers)}"
        self._tickets[ticket] = (spec.method, spec.url)
        return SimpleNamespace(id=ticket, sslThumbprint=self.thumbprint, hostName=None)

    def _allow(self, request: Request) -> bool:
        cookie = request.headers.get("cookie", "")
        if not self.by_ticket(request):
            dc_path = "dcPath=Site%2FDC" in request.target
            return self.session.cookie in cookie and dc_path == self.session.is_vcenter
        method, url = self._tickets.pop(cookie.partition("=")[2], ("", ""))
        once = request.headers.get("connection") == "close"
        wanted = f"https://127.0.0.1:{self.http.port}{request.target}"
        return once and url == wanted and method == f"http{request.method.title()}"
