"""A disk file of a Hyper-V host as a `DiskSink`: our VHDX writers, each over an SMB connection.

Invariants: nobody else has the file open while the sink lives; closed without an error, it is a
whole VHDX file, durable at the host. Thread model: one thread at a time; `abandon` from any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from appliance.base.run_context import CancelToken
from appliance.sources.hyperv_errors import hyperv_calls
from hyperv.smb_files import SmbConnection, SmbLogin
from hyperv.smb_writing import SmbWritableFile, open_for_writing
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.updater import VhdxUpdater
from hyperv.vhdx.writer import DynamicVhdxWriter
from hyperv.windows_path import shared_path


class DiskWriter(Protocol):
    @property
    def size_bytes(self) -> int: ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None: ...

    def zero_at(self, offset: int, length: int) -> None: ...

    def finish(self) -> None:
        """Make it durable."""
        ...


class HypervSink:
    """A `DiskSink`. `on_close` is told once that the file is whole and free, `on_free` once that
    it is free, whole or not."""

    def __init__(
        self,
        host: str,
        login: SmbLogin,
        path: str,
        shares: Mapping[str, str] | None,
        writer: Callable[[SmbWritableFile], DiskWriter],
        cancel: CancelToken,
        on_close: Callable[[], None] = lambda: None,
        on_free: Callable[[], None] = lambda: None,
    ) -> None:
        """`shares` by drive, None: the admin shares. Raises: as `hyperv_errors`."""
        self._host = host
        self._cancel = cancel
        self._on_close = on_close
        self._on_free = on_free
        self._is_closed = False
        with hyperv_calls(host, cancel):
            self._connection = SmbConnection(login)
            try:
                self._file = open_for_writing(self._connection, shared_path(path, shares))
                self._writer = writer(self._file)
            except BaseException:
                self._connection.close()
                raise

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._cancel.check()
        with hyperv_calls(self._host, self._cancel):
            self._writer.write_at(offset, data)

    def zero_at(self, offset: int, length: int) -> None:
        self._cancel.check()
        with hyperv_calls(self._host, self._cancel):
            self._writer.zero_at(offset, length)

    def close(self) -> None:
        if self._is_closed:
            return
        try:
            with hyperv_calls(self._host):
                self._writer.finish()
        finally:
            self.abandon()
        self._on_close()

    def abandon(self) -> None:
        """Give the file free as it is; idempotent, never raises."""
        if self._is_closed:
            return
        self._is_closed = True
        self._file.close()
        self._connection.close()
        self._on_free()


def new_disk(shape: VhdxShape) -> Callable[[SmbWritableFile], DiskWriter]:
    """Makes an empty file a dynamic VHDX of this shape."""
    return lambda file: DynamicVhdxWriter(file, shape)


def disk_in_place(file: SmbWritableFile) -> DiskWriter:
    """Writes into the VHDX that the file is."""
    return VhdxUpdater(file)
