"""A frozen disk of a Hyper-V VM, read over SMB: its VHDX files and their parents as one disk.

Data path: `hyperv_disks` -> `reopening_reader` -> this -> `hyperv.vhdx` -> `hyperv.smb_files`.

Invariants: all files of the chain are open for as long as this is, on one connection of their own;
`close` closes every handle. The headers of the newest file are looked at again and again while it
is read, when it is opened anew and when all is read: a file that is written to was not frozen, and
nothing of it may become a recovery point.

Thread model: as `BlockReader`: any thread; reads of one disk take turns on its connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from appliance.blocks.device import check_range
from appliance.blocks.extents import Extent, ExtentKind, MappedExtent
from appliance.sources.errors import SourceReadError
from appliance.sources.frozen import TransferReport
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.reopening_reader import OpenTransport
from hyperv.script_types import DiskFile
from hyperv.smb_files import SmbConnection, SmbFile, SmbLogin
from hyperv.vhdx.parent_reference import ParentReference
from hyperv.vhdx.reader import ExtentKind as FileExtentKind
from hyperv.vhdx.reader import open_disk_file
from hyperv.vhdx.source import ByteSource
from hyperv.windows_path import shared_path

TRANSPORT = "smb"
_HEADERS = ((64 << 10, 4096), (128 << 10, 4096))  # of a VHDX file
_LOOK_AFTER_BYTES = 64 << 20
_KINDS = {FileExtentKind.DATA: ExtentKind.DATA, FileExtentKind.ZERO: ExtentKind.ZERO}


class SmbDiskOpener:
    """Opens one frozen disk; called again after its connection broke."""

    def __init__(
        self,
        host: str,
        login: Callable[[], SmbLogin],
        chain: Sequence[DiskFile],
        shares: Mapping[str, str] | None,
    ) -> None:
        """`login` is asked at each opening.

        `chain`: the disk's files, newest first; `shares` by drive, None: the admin shares.
        """
        self._host = host
        self._login = login
        self._chain = chain
        self._shares = shares
        self._headers: list[bytes] | None = None  # as they were when it was opened first

    def __call__(self, planned: Sequence[Extent] | None) -> OpenTransport:
        """Raises: NotFrozenError: it changed since it was opened before; as `hyperv_errors`."""
        with hyperv_calls(self._host):
            connection = SmbConnection(self._login())
            try:
                files = [
                    connection.open_file(shared_path(file.path, self._shares))
                    for file in self._chain
                ]
                reader = SmbDiskReader(self._host, connection, files, self._headers)
            except BaseException:
                connection.close()
                raise
        self._headers = reader.headers
        report = TransferReport(transport=TRANSPORT)
        return OpenTransport(reader=reader, report=report, confirm=reader.check_frozen)


class SmbDiskReader:
    def __init__(
        self,
        host: str,
        connection: SmbConnection,
        files: Sequence[SmbFile],
        headers: list[bytes] | None,
    ) -> None:
        """`files`: newest first; `headers`: what it must have, None: what it has.

        Raises: NotFrozenError, DiskFileError, HypervError.
        """
        self._host = host
        self._connection = connection
        self._newest = files[0]
        parents = iter(files[1:])

        def find_parent(_reference: ParentReference) -> ByteSource | None:
            return next(parents, None)  # the host said the order; the reader checks that they fit

        self.headers = self._newest.read_many(_HEADERS) if headers is None else headers
        self._compare()
        self._disk = open_disk_file(self._newest, find_parent)
        self._lock = threading.Lock()
        self._read_since_look = 0

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        with hyperv_calls(self._host):
            data = self._disk.read_at(offset, length)
            self._look(length)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        with hyperv_calls(self._host):
            self._disk.read_into(offset, buffer)
            self._look(len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        check_range(offset, length, self.size_bytes)
        return None if length else b""

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        with hyperv_calls(self._host):
            found = self._disk.map_extents(offset, length)
        return [MappedExtent(each.offset, each.length, _KINDS[each.kind]) for each in found]

    def close(self) -> None:
        self._connection.close()

    def check_frozen(self) -> None:
        """Raises: NotFrozenError: what was read since it was opened first may be of two states."""
        with hyperv_calls(self._host):
            self._compare()

    def _look(self, read_bytes: int) -> None:
        """Raises NotFrozenError: the newest file is written to."""
        with self._lock:
            self._read_since_look += read_bytes
            if self._read_since_look < _LOOK_AFTER_BYTES:
                return
            self._read_since_look = 0
        self._compare()

    def _compare(self) -> None:
        if self._newest.read_many(_HEADERS) != self.headers:
            raise NotFrozenError(f"{self._host}: {self._newest.name} changed while it was read")


class NotFrozenError(SourceReadError):
    """A disk file changed while it was read, so it was not frozen; nothing of this run is kept.

    Look whether another product merges or edits the VM's disks, then try again.
    """

    code = "hyperv.not-frozen"
    retryable = False
