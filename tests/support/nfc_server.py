"""A host that exports and imports over HTTP NFC leases, as the transports see it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyVmomi import vim

from tests.support.fake_session import FakeSession
from tests.support.tls_file_server import TlsFileServer
from tests.support.vsphere_disk import disk_info, disk_request
from vmware.stream_optimized_writer import StreamOptimizedWriter
from vmware.transports.contract import DiskRequest


def stream_of(content: bytes) -> bytes:
    """The disk as a streamOptimized VMDK."""
    stream = bytearray()
    writer = StreamOptimizedWriter(stream.extend, len(content))
    writer.write_at(0, content)
    writer.close()
    return bytes(stream)


class NfcServer:
    def __init__(self, directory: Path) -> None:
        self.http = TlsFileServer(directory, {})
        self.session = FakeSession(self.http.port, self.http.sha256)
        self.leases: list[str] = []
        self.ended: dict[str, str] = {}  # lease -> complete or abort
        self.progress: list[int] = []
        self.states = ["initializing", "ready"]  # that polling sees, the last one for ever
        self.error: Any = None
        self.host = "*"
        self.thumbprint: str | None = self.http.sha1
        self.timeout_s = 300
        self.keys: Sequence[str] = ()
        self._numbers = itertools.count(1)
        self.session.methods.update(
            ExportSnapshot=lambda _moref: self.lease(),
            ImportVApp=lambda _moref, *_spec: self.lease(),
            HttpNfcLeaseProgress=lambda _moref, percent: self.progress.append(percent),
            HttpNfcLeaseComplete=lambda moref: self._end(moref, "complete"),
            HttpNfcLeaseAbort=lambda moref, _fault: self._end(moref, "abort"),
        )

    def show(self, *contents: bytes) -> None:
        """Export these disks, on `ParaVirtualSCSIController0:0` and so on."""
        self.keys = [f"ParaVirtualSCSIController0:{unit}" for unit in range(len(contents))]
        for number, content in enumerate(contents):
            self.http.files[f"/nfc/52/disk-{number}.vmdk"] = stream_of(content)

    def request(self, size_bytes: int, unit: int = 0, **fields: Any) -> DiskRequest:
        disk = disk_info(size_bytes, unit_number=unit, label=f"Hard disk {unit + 1}")
        return disk_request(self.session, disk, **fields)

    def lease(self) -> Any:
        moref = f"lease-{next(self._numbers)}"
        self.leases.append(moref)
        states = iter(self.states)
        self.session.properties[moref] = _Lease(states, self)
        return self.session.object(vim.HttpNfcLease, moref)

    def info(self) -> Any:
        vm = self.session.object(vim.VirtualMachine, "vm-9")
        authority = self.host if self.host == "*" else f"{self.host}:{self.http.port}"
        urls = [
            SimpleNamespace(
                key=f"/vm-9/{key}",
                importKey=f"/web/{key}",
                disk=key != "nvram",
                url=f"https://{authority}/nfc/52/disk-{number}.vmdk",
                sslThumbprint=self.thumbprint,
            )
            for number, key in enumerate(self.keys)
        ]
        return SimpleNamespace(entity=vm, deviceUrl=urls, leaseTimeout=self.timeout_s)

    def _end(self, moref: str, how: str) -> None:
        assert moref not in self.ended, f"{moref} was ended twice"
        self.ended[moref] = how


class _Lease(dict[str, Any]):
    """The properties of one lease; reading `state` takes the next of its states."""

    def __init__(self, states: Any, server: NfcServer) -> None:
        super().__init__(state="initializing", error=None, info=None)
        self._states = states
        self._server = server

    def __getitem__(self, name: str) -> Any:
        if name == "state":
            self["state"] = next(self._states, super().__getitem__("state"))
            return super().__getitem__("state")
        return self._server.info() if name == "info" else self._server.error
