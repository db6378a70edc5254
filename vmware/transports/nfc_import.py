"""Importing a VM over an HTTP NFC lease: its disks go up as compressed streams.

Data path: restore -> `NfcDiskWriter` -> `stream_optimized_writer` -> POST to the host. The server
makes the VM from a ConfigSpec when the lease begins, and takes it away again unless the lease is
completed: a failure or a crash leaves nothing behind.

Invariants: the lease is completed only after every disk that was begun is whole at the host;
everything else aborts it. Zero grains are not sent, so that thin disks stay thin.
Thread model: a writer belongs to one thread; several disks may be written by several threads.
Source: design notes section 4c; vSphere API reference, ResourcePool.importVApp.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from pyVmomi import vim

from vmware.errors import (
    CancelledError,
    NoSpaceError,
    TransportError,
    VsphereError,
)
from vmware.faults import FOREIGN_ERRORS
from vmware.session import Session
from vmware.stream_optimized_writer import StreamOptimizedWriter
from vmware.transports.contract import Access, BehindWindowError, check_range
from vmware.transports.http_range import broken
from vmware.transports.nfc_lease import Lease, LeaseDevice, Outcome

_STREAM_TYPE = "application/x-vnd.vmware-streamVmdk"
_NVRAM_LIMIT_BYTES = 16 << 20
_GOOD = (200, 201, 204)
_NO_SPACE = 507


class NfcImport:
    """A VM that is being imported; a context manager that abandons it unless it was finished."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._lock = threading.Lock()
        self._writers: list[NfcDiskWriter] = []

    @classmethod
    def begin(
        cls,
        session: Session,
        spec: vim.vm.VmImportSpec,
        *,
        pool_moref: str,
        folder_moref: str,
        host_moref: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> NfcImport:
        """Make the VM with empty disks.

        Args:
            spec: with every disk as `fileOperation='create'`.

        Raises:
            VsphereError: the server refused; nothing is left.
        """
        pool = session.object(vim.ResourcePool, pool_moref)
        folder = session.object(vim.Folder, folder_moref)
        host = session.object(vim.HostSystem, host_moref) if host_moref else None
        what = f"import {spec.configSpec.name if spec.configSpec else 'a VM'}"
        return cls(
            Lease.acquire(
                session, what, lambda: pool.ImportVApp(spec, folder, host), cancelled=cancelled
            )
        )

    @property
    def vm_moref(self) -> str:
        """The new VM. It cannot be touched before `finish`."""
        return self._lease.entity_moref

    @property
    def nvram_device(self) -> LeaseDevice | None:
        """Where nvram can be put; None: put it by `/folder` after `finish`."""
        return next((each for each in self._lease.devices if each.key.endswith("/nvram")), None)

    def disk(self, address: str, capacity_bytes: int) -> NfcDiskWriter:
        """Begin to upload a disk.

        Args:
            address: controller type and place, such as `ParaVirtualSCSIController0:1`.

        Raises:
            FileFaultError: the lease has no such disk.
            VsphereError: no connection to the host.
        """
        upload = _Upload(self._lease, self._lease.device(address), "POST", _STREAM_TYPE)
        writer = NfcDiskWriter(upload, capacity_bytes, self._report)
        with self._lock:
            self._writers.append(writer)
        return writer

    def put_nvram(self, device: LeaseDevice, data: bytes) -> None:
        """Raises VsphereError: the host did not take it."""
        if not 0 < len(data) <= _NVRAM_LIMIT_BYTES:
            raise TransportError(f"nvram of {len(data)} bytes")
        upload = _Upload(self._lease, device, "PUT", "application/octet-stream")
        upload.send(data)
        upload.finish()

    def finish(self) -> None:
        """Make the VM an ordinary one. After an error it is gone.

        Raises:
            TransportError: a disk that was begun is not closed.
            VsphereError: the server refused.
        """
        try:
            if not all(writer.whole for writer in self._writers):
                raise TransportError("a disk was not uploaded to its end")
            self._lease.end(Outcome.COMPLETE)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Remove what was made; idempotent, nothing after `finish`, never raises."""
        for writer in self._writers:
            writer.abandon()
        self._lease.end(Outcome.ABORT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def _report(self) -> None:
        with self._lock:
            total = sum(writer.size_bytes for writer in self._writers)
            done = sum(writer.position for writer in self._writers)
        self._lease.progress(done * 100 // max(1, total))
        self._lease.check()


class NfcDiskWriter:
    """A `DiskWriter` that goes up as one stream."""

    access = Access.ASCENDING

    def __init__(self, upload: _Upload, capacity_bytes: int, report: Callable[[], None]) -> None:
        self._upload = upload
        self._report = report
        try:
            self._writer = StreamOptimizedWriter(upload.send, capacity_bytes)
        except BaseException:
            upload.abandon()
            raise
        self._closed = False
        self._failure: VsphereError | None = None

    @property
    def size_bytes(self) -> int:
        return self._writer.capacity_bytes

    @property
    def position(self) -> int:
        """What lies before cannot be written any more."""
        return self._writer.next_offset

    @property
    def whole(self) -> bool:
        """Closed without an error."""
        return self._closed and self._failure is None

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._check(offset, len(data))
        try:
            self._writer.write_at(offset, data)
            self._report()
        except VsphereError as error:
            self._fail(error)
            raise

    def zero_at(self, offset: int, length: int) -> None:
        self._check(offset, length)  # what is left out reads as zeros

    def flush(self) -> None:
        """Does nothing: only `close` makes a stream whole."""
        self._check(self.size_bytes, 0)

    def close(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            return
        try:
            self._writer.close()
            self._upload.finish()
        except VsphereError as error:
            self._fail(error)
            raise
        self._closed = True

    def abandon(self) -> None:
        """Give the upload up; idempotent, nothing after `close`."""
        if not self._closed:
            self._fail(CancelledError("the upload of a disk was given up"))

    def _check(self, offset: int, length: int) -> None:
        if self._failure is not None:
            raise self._failure
        check_range(offset, length, self.size_bytes)
        if offset < self.position:
            raise BehindWindowError(
                f"byte {offset} is to be written after {self.position} of a stream"
            )

    def _fail(self, error: VsphereError) -> None:
        self._failure = self._failure or error
        self._writer.abandon()
        self._upload.abandon()


class _Upload:
    """A request with a body of unknown length, in chunks."""

    def __init__(self, lease: Lease, device: LeaseDevice, method: str, media_type: str) -> None:
        self._connection, target = lease.connect(device)
        self._sent_bytes = 0
        try:
            self._connection.putrequest(method, target, skip_accept_encoding=True)
            self._connection.putheader("Content-Type", media_type)
            self._connection.putheader("Transfer-Encoding", "chunked")
            self._connection.putheader("Overwrite", "t")
            self._connection.endheaders()
            self._connection.auto_open = 0  # a body is never begun on another connection
        except FOREIGN_ERRORS as error:
            self._connection.close()
            raise broken(error, 0) from error

    def send(self, data: bytes) -> None:
        """Raises VsphereError: the host does not take it; with its answer, if there is one."""
        if data:
            self._put(b"%x\r\n%b\r\n" % (len(data), data))
            self._sent_bytes += len(data)

    def finish(self) -> None:
        """Wait for the host to say that it has everything. Raises VsphereError."""
        self._put(b"0\r\n\r\n")
        try:
            response = self._connection.getresponse()
            self._check(response)
        except FOREIGN_ERRORS as error:
            raise broken(error, self._sent_bytes) from error
        finally:
            self._connection.close()

    def abandon(self) -> None:
        self._connection.close()

    def _put(self, data: bytes) -> None:
        try:
            self._connection.send(data)
        except FOREIGN_ERRORS as error:
            if not isinstance(error, TimeoutError):
                with suppress(*FOREIGN_ERRORS):  # the host may have said why before it hung up
                    self._check(self._connection.getresponse())
            raise broken(error, self._sent_bytes) from error

    def _check(self, response: http.client.HTTPResponse) -> None:
        if response.status in _GOOD:
            return
        text = f"the host refused a disk at byte {self._sent_bytes} of its stream"
        if response.status == _NO_SPACE:
            raise NoSpaceError(f"{text}: no space")
        raise TransportError(f"{text} (HTTP {response.status})")
