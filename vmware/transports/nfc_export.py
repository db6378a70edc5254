"""The NFC lease transport: the whole disk of a snapshot, as one compressed stream.

Data path: host `/nfc/…` -> `stream_optimized_reader` -> `stream_disk` -> the repository's reader.
The last resort: it works on every kind of datastore without any file being reachable, and reads a
disk from front to back whatever of it is wanted. Empty grains are not sent.

Invariants: one lease per snapshot, shared by its disks and ended with the last of them; no lease is
left when a disk does not open; the stream describes a disk of exactly the expected capacity.
Thread model: as of the contract. Readers count on threads that keep roughly in order.
Source: design notes section 4c.
"""

from __future__ import annotations

import http.client
import io
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus

from pyVmomi import vim

from vmware.errors import FileFaultError, TransportError, VsphereError
from vmware.faults import FOREIGN_ERRORS
from vmware.session import Session
from vmware.stream_optimized_reader import Grain, StreamOptimizedReader
from vmware.transports.contract import DiskReader, DiskRequest, Refusal
from vmware.transports.http_range import broken, check_status
from vmware.transports.nfc_lease import Lease, Outcome
from vmware.transports.stream_disk import StreamDisk

log = logging.getLogger(__name__)

WINDOW_BYTES = 256 << 20
_BUFFER_BYTES = 64 << 10  # filled whole before the first byte of it is seen


class NfcLeaseTransport:
    """Args: `window_bytes`: of compressed data per disk, at most, while threads are in disorder."""

    name = "nfc-lease"

    def __init__(self, *, window_bytes: int = WINDOW_BYTES) -> None:
        self._window_bytes = window_bytes
        self._lock = threading.Lock()
        self._shared: dict[tuple[int, str], _SharedLease] = {}

    def refusal(self, request: DiskRequest) -> Refusal | None:
        if request.disk.key_id:
            return Refusal(
                code="transport.encrypted-disk",
                text=f"{request.disk.label} is encrypted; vSphere does not export it",
                next_step="use hot-add with an appliance that is encrypted too",
            )
        return None

    def open(self, request: DiskRequest) -> DiskReader:
        shared = self._join(request)
        try:
            return shared.open_disk(request, self._window_bytes)
        except BaseException:
            shared.leave(finished=False)
            raise

    def _join(self, request: DiskRequest) -> _SharedLease:
        """The lease of the request's snapshot, with one more user."""
        key = (id(request.session), request.snapshot_moref)
        with self._lock:
            shared = self._shared.get(key)
            if shared is not None and shared.join():
                return shared
            self._shared = {place: one for place, one in self._shared.items() if one.in_use}
            shared = self._shared[key] = _SharedLease(request)
            return shared


class _SharedLease:
    """A lease and how many disks use it. The first that joins acquires it, the last one ends it."""

    def __init__(self, request: DiskRequest) -> None:
        self._session: Session = request.session
        self._what = f"export {request.vm.name}"
        self._acquiring = threading.Lock()
        self._lock = threading.Lock()
        self._users = 1
        self._outcome = Outcome.COMPLETE
        self._lease: Lease | None = None

    @property
    def in_use(self) -> bool:
        return self._users > 0

    def join(self) -> bool:
        """False when the last user has left: it is of no use any more."""
        with self._lock:
            if not self._users:
                return False
            self._users += 1
            return True

    def leave(self, *, finished: bool) -> None:
        """Called once per user; never raises."""
        with self._lock:
            self._users -= 1
            if not finished:
                self._outcome = Outcome.ABORT
            lease = None if self._users else self._lease
        if lease is not None:
            try:
                lease.end(self._outcome)
            except VsphereError as error:
                log.warning("%s: the lease could not be completed: %s", self._what, error)
                with suppress(VsphereError):
                    lease.end(Outcome.ABORT)

    def open_disk(self, request: DiskRequest, window_bytes: int) -> DiskReader:
        with self._acquiring:
            if self._lease is None:
                snapshot = self._session.object(vim.vm.Snapshot, request.snapshot_moref)
                self._lease = Lease.acquire(
                    self._session, self._what, snapshot.ExportSnapshot, cancelled=request.cancelled
                )
        return self._stream(self._lease, request, window_bytes)

    def _stream(self, lease: Lease, request: DiskRequest, window_bytes: int) -> DiskReader:
        disk = request.disk
        address = f"{disk.controller_type}{disk.bus_number}:{disk.unit_number}"
        body = _Body(*lease.connect(lease.device(address)))
        try:
            stream = StreamOptimizedReader(body.read)
            if stream.capacity_bytes != disk.capacity_bytes:
                raise FileFaultError(
                    f"the lease sends a disk of {stream.capacity_bytes} bytes for {disk.label}, "
                    f"which has {disk.capacity_bytes}"
                )
        except BaseException:
            body.close()
            raise

        def close(finished: bool) -> None:
            body.close()
            self.leave(finished=finished)

        def came(position: int) -> None:
            lease.progress(position * 100 // disk.capacity_bytes)

        return StreamDisk(
            disk.capacity_bytes,
            _while_leased(lease, stream.grains()),
            window_bytes=window_bytes,
            on_position=came,
            on_close=close,
        )


class _Body:
    """The body of a GET, read in order; takes the connection over."""

    def __init__(self, connection: http.client.HTTPSConnection, target: str) -> None:
        """Raises VsphereError: no answer, or not 200; the connection is closed."""
        self._at = 0
        self._connection = connection
        try:
            connection.request("GET", target, headers={"Accept-Encoding": "identity"})
            self._socket = connection.sock  # http.client may forget it with the answer
            self._response = connection.getresponse()
            check_status(self._response, HTTPStatus.OK)
        except FOREIGN_ERRORS as error:
            connection.close()
            raise broken(error, 0) from error
        except VsphereError:
            connection.close()
            raise
        self._stream = io.BufferedReader(self._response, _BUFFER_BYTES)

    def read(self, length: int) -> bytes:
        """Fewer bytes only at the end. Raises TransportError, also when it is closed meanwhile."""
        try:
            data = self._stream.read(length)
        except FOREIGN_ERRORS as error:
            raise broken(error, self._at) from error
        except ValueError as error:
            raise TransportError("the disk was closed while it was read") from error
        self._at += len(data)
        return data

    def close(self) -> None:
        with suppress(OSError, TypeError):  # not SSLSocket's, see `range_client`
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        self._response.close()
        self._connection.close()


def _while_leased(lease: Lease, grains: Iterator[Grain]) -> Iterator[Grain]:
    for grain in grains:
        lease.check()
        yield grain
