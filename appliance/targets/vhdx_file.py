"""A restored disk as a new VHDX file of this machine, written by ourselves.

Not by qemu, whose VHDX driver damaged block tables as they grew until it was mended in April 2023
(QEMU issue 727).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from appliance.base.errors import UsageError
from appliance.base.units import SECTOR_BYTES
from hyperv.vhdx.errors import UnsupportedDiskFileError
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.writer import DynamicVhdxWriter, FileSink


class VhdxFile:
    """One thread at a time; `fd`, an empty file, stays the caller's. OSError passes through."""

    def __init__(self, fd: int, size_bytes: int, *, sync: bool) -> None:
        """The disk is as long as the whole sectors it takes. Raises UsageError: it is too large."""
        try:
            shape = VhdxShape(
                disk_bytes=-(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES,
                disk_id=uuid.uuid4(),
                data_write_id=uuid.uuid4(),
                file_write_id=uuid.uuid4(),
            )
        except UnsupportedDiskFileError as error:
            raise UsageError(str(error)) from error
        self._writer = DynamicVhdxWriter(FileSink(fd, sync=sync), shape)

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write the buffers one after another."""
        for buffer in buffers:
            self._writer.write_at(offset, buffer)
            offset += len(buffer)

    def finish(self) -> None:
        """Make it a VHDX file; durable on return if `sync`."""
        self._writer.finish()
