"""The transport `vddk`: nbdkit with the customer's VDDK, joined to our own NBD client.

Data path: `vmware.transports.vddk` serves the frozen disk on a Unix socket; a few connections read
it. It lives here because the leaf library speaks no NBD.

Thread model: as the transport contract; a reader's calls share its connections.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from appliance.blocks.extents import ExtentKind
from appliance.sources.errors import NbdError
from appliance.sources.nbd_client import NbdDevice
from vmware.errors import TransportError
from vmware.transports.contract import (
    Access,
    DiskReader,
    DiskRequest,
    MappedExtent,
    Refusal,
    check_range,
)
from vmware.transports.contract import ExtentKind as TransportExtentKind
from vmware.transports.vddk import NbdEndpoint, Vddk

_CONNECTIONS = 4
_CONNECT_WITHIN_S = 60.0


class VddkTransport:
    name = Vddk.name

    def __init__(self, vddk: Vddk) -> None:
        self._vddk = vddk

    def refusal(self, request: DiskRequest) -> Refusal | None:
        return self._vddk.refusal(request)

    def open(self, request: DiskRequest) -> DiskReader:
        endpoint = self._vddk.start(request)
        sockets: list[socket.socket] = []
        try:
            with _as_transport_errors(endpoint):
                while len(sockets) < _CONNECTIONS:
                    sockets.append(_connect(endpoint))
                reader = _VddkReader(NbdDevice(sockets), sockets, endpoint)
                if reader.size_bytes != request.disk.capacity_bytes:
                    raise TransportError(
                        f"VDDK shows {reader.size_bytes} bytes for {request.disk.label}, "
                        f"which has {request.disk.capacity_bytes}"
                    )
        except BaseException:
            for each in sockets:
                each.close()
            endpoint.close()
            raise
        return reader


def _connect(endpoint: NbdEndpoint) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_CONNECT_WITHIN_S)
        connection.connect(str(endpoint.socket_path))
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _as_transport_errors(endpoint: NbdEndpoint) -> Iterator[None]:
    try:
        yield
    except (NbdError, OSError) as error:
        words = endpoint.last_words()
        raise TransportError(f"VDDK: {error}" + (f" ({words})" if words else "")) from error


class _VddkReader:
    """A `DiskReader` over NBD."""

    access = Access.ANY_ORDER

    def __init__(
        self, device: NbdDevice, sockets: Sequence[socket.socket], endpoint: NbdEndpoint
    ) -> None:
        self._device = device
        self._sockets = sockets
        self._endpoint = endpoint

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        with _as_transport_errors(self._endpoint):
            return self._device.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        with _as_transport_errors(self._endpoint):
            self._device.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self.size_bytes)
        return self._device.try_read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        with _as_transport_errors(self._endpoint):
            mapped = self._device.map_extents(offset, length)
        return [
            MappedExtent(
                part.offset,
                part.length,
                TransportExtentKind.ZERO
                if part.kind is ExtentKind.ZERO
                else TransportExtentKind.DATA,
            )
            for part in mapped
        ]

    def close(self) -> None:
        for each in self._sockets:  # wakes reads under way; nbdkit waits for its connections
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._device.close()
        self._endpoint.close()
