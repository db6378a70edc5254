"""A disk file of a Hyper-V host, written over SMB 3: write-behind, several requests under way.

Data path: a restore -> `vhdx.writer` or `vhdx.updater` -> `SmbWritableFile` -> `SmbConnection`.

Invariants: the file exists already and is open for us alone, so no VM can start on it while it is
written; small writes that follow each other travel together, and one that meets another waits for
its end; what was written is durable only when `flush` has returned, and an error of any earlier
write is raised by then. Memory: eight requests of 1 MiB. A broken connection ends the file; nothing
is sent twice.

Thread model: one thread at a time. Source: [MS-SMB2] 2.2.21, 2.2.39; smbprotocol 1.17.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from smbprotocol.exceptions import SMBException
from smbprotocol.file_info import FileEndOfFileInformation
from smbprotocol.open import (
    FilePipePrinterAccessMask,
    Open,
    SMB2FlushRequest,
    SMB2SetInfoRequest,
    SMB2WriteResponse,
)

from hyperv.errors import FileError, FileUnreachableError
from hyperv.smb_files import SmbConnection
from hyperv.windows_path import SharedPath

_MOST_UNDER_WAY: Final = 8
_NOBODY_ELSE = 0  # of ShareAccess
_READ_AND_WRITE = (
    FilePipePrinterAccessMask.FILE_READ_DATA
    | FilePipePrinterAccessMask.FILE_WRITE_DATA
    | FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES
    | FilePipePrinterAccessMask.FILE_WRITE_ATTRIBUTES
)


def open_for_writing(connection: SmbConnection, where: SharedPath) -> SmbWritableFile:
    """Open a file that is there, alone.

    Raises:
        SharingError: something else has it open: a VM runs, or a backup reads it.
        GoneError, AccessError, LoginError, FileUnreachableError, FileError.
    """
    handle, name = connection.opened(where, _READ_AND_WRITE, _NOBODY_ELSE)
    return SmbWritableFile(connection, handle, name)


@dataclass(slots=True, kw_only=True, eq=False)
class _Write:
    """Under way; the host may carry out what is under way in any order."""

    offset: int
    length: int
    request: Any = None

    def meets(self, other: _Write) -> bool:
        return (
            self.offset < other.offset + other.length and other.offset < self.offset + self.length
        )


class SmbWritableFile:
    """Structurally a `vhdx.writer.ByteSink` and a `vhdx.updater.UpdatableFile`."""

    def __init__(self, connection: SmbConnection, handle: Open, name: str) -> None:
        self._connection = connection
        self._handle = handle
        self.name = name
        self._size_bytes = int(handle.end_of_file)
        self._piece_bytes = connection.write_bytes
        self._waiting = bytearray()  # not sent yet; goes to `_waiting_at`
        self._waiting_at = 0
        self._under_way: deque[_Write] = deque()
        self._is_closed = False

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes of [offset, offset + length), fewer only at the end of the file, with all that
        was written before."""
        self._settle()
        buffer = bytearray(max(min(length, self._size_bytes - offset), 0))
        self._connection.read(self._handle, self.name, [(offset, memoryview(buffer))])
        return bytes(buffer)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Raises: as `open_for_writing`, FullError; of this write, or of one before."""
        view = memoryview(data).cast("B")
        while view:
            if offset != self._waiting_at + len(self._waiting):
                self._send_waiting()
                self._waiting_at = offset
            part = view[: self._piece_bytes - len(self._waiting)]
            self._waiting += part
            offset += len(part)
            view = view[len(part) :]
            if len(self._waiting) == self._piece_bytes:
                self._send_waiting()
                self._waiting_at = offset

    def set_size(self, size_bytes: int) -> None:
        """Make the file this long; what is added reads as zeros."""
        self._settle()
        information = FileEndOfFileInformation()
        information["end_of_file"] = size_bytes
        message = SMB2SetInfoRequest()
        message["info_type"] = information.INFO_TYPE
        message["file_info_class"] = information.INFO_CLASS
        message["file_id"] = self._handle.file_id
        message["buffer"] = information
        self._connection.end(self.name, self._begun(message, 0))
        self._size_bytes = size_bytes

    def flush(self) -> None:
        """Return once everything written before is durable at the host."""
        self._settle()
        message = SMB2FlushRequest()
        message["file_id"] = self._handle.file_id
        self._connection.end(self.name, self._begun(message, 0))

    def close(self) -> None:
        """Give the file free, written to its end or not; idempotent, never raises."""
        if self._is_closed:
            return
        self._is_closed = True
        self._waiting.clear()
        with suppress(SMBException, OSError, ValueError):
            self._handle.close()

    def _send_waiting(self) -> None:
        if not self._waiting:
            return
        data, at = bytes(self._waiting), self._waiting_at
        self._waiting.clear()
        write = _Write(offset=at, length=len(data))
        while len(self._under_way) >= _MOST_UNDER_WAY or any(map(write.meets, self._under_way)):
            self._end_oldest()
        message, _ = self._handle.write(data, at, send=False)
        write.request = self._begun(message, len(data))
        self._under_way.append(write)
        self._size_bytes = max(self._size_bytes, at + len(data))

    def _begun(self, message: Any, moved_bytes: int) -> Any:
        """Send it, as soon as the host's credits allow."""
        while True:
            if self._is_closed:
                raise FileError(f"{self.name} was closed while it was written")
            request = self._connection.begin(self._handle, self.name, message, moved_bytes)
            if request is not None:
                return request
            if not self._under_way:
                raise FileUnreachableError(f"{self.name}: the host grants no credits")
            self._end_oldest()

    def _settle(self) -> None:
        self._send_waiting()
        while self._under_way:
            self._end_oldest()

    def _end_oldest(self) -> None:
        write = self._under_way.popleft()
        answer = SMB2WriteResponse()
        answer.unpack(self._connection.end(self.name, write.request))
        written = int(answer["count"].get_value())
        if written != write.length:
            raise FileError(f"{self.name}: a write of {write.length} bytes wrote {written}")
