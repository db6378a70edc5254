"""Where a restored disk is written: a raw file, a block device, or an image of another format.

A file gets its name when it is whole (`partial_file`); a failed restore leaves nothing behind. A
block device has no such second place: a failed restore leaves it half written, and the error says
so. VHDX is written by ourselves, qcow2 and VMDK through qemu-nbd.

Thread model: `write` and `zero` may be called from several threads; the rest from one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from appliance.base.errors import (
    ApplianceError,
    ExternalProgramError,
    StorageError,
    StorageFullError,
    UsageError,
)
from appliance.base.units import MIB, SECTOR_BYTES
from appliance.base.write_batches import write_batches
from appliance.jobs.partial_file import (
    OutputExistsError,
    PartialFile,
    mode_of,
    storage_errors,
)
from appliance.sources.errors import NbdError
from appliance.sources.image_format import ImageFormat
from appliance.sources.qemu_nbd import QemuNbd
from appliance.targets.vhdx_file import VhdxFile

_BLKZEROOUT = 0x127F  # linux/fs.h: range of offset and length as two u64
_ZEROS = bytes(MIB)
_SYNC_EVERY_BYTES = 128 * MIB
_CREATE_WITHIN_S = 120
_CREATE_OPTIONS = {
    ImageFormat.QCOW2: (),
    ImageFormat.VMDK: ("-o", "subformat=monolithicSparse"),
}


class OutputTooSmallError(ApplianceError):
    """The block device is smaller than the disk. Choose a device that is at least as large."""

    code = "restore.output-too-small"


class DeviceHalfWrittenError(ApplianceError):
    """The restore to a block device failed; what is on the device now is neither old nor new."""

    code = "restore.device-half-written"


class RestoreTarget(Protocol):
    @property
    def holds_old_content(self) -> bool:
        """Whether holes must be zeroed; a new file reads as zeros by itself."""
        ...

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write the buffers one after another. Raises StorageFullError, StorageError."""
        ...

    def zero(self, offset: int, length: int) -> None: ...

    def commit(self) -> None:
        """Make everything visible under the target's name, and durable where `open_target` says."""
        ...

    def abort(self) -> None:
        """Remove what was made; idempotent, and harmless after `commit`."""
        ...


def open_target(
    output: Path, image_format: ImageFormat, size_bytes: int, *, force: bool, sync: bool
) -> RestoreTarget:
    """Prepare to write a disk of `size_bytes` to `output`.

    A new file is durable after `commit` only with `sync`, as it is with any program that copies;
    what replaces an old file, and a block device, always is.

    Raises:
        OutputExistsError, OutputTooSmallError, UsageError, StorageError, ExternalProgramError.
    """
    with storage_errors(output):
        mode = mode_of(output)
    if mode is not None and stat.S_ISBLK(mode):
        if image_format is not ImageFormat.RAW:
            raise UsageError(f"{output}: a block device takes format raw only")
        if not force:
            raise OutputExistsError(f"{output} is a block device")
        return BlockDeviceTarget(output, size_bytes)
    if mode is not None and not stat.S_ISREG(mode):
        raise UsageError(f"{output}: neither a file nor a block device")
    if mode is not None and not force:
        raise OutputExistsError(f"{output} exists")
    if image_format is ImageFormat.RAW:
        return RawFileTarget(output, size_bytes, force=force, sync=sync)
    if image_format is ImageFormat.VHDX:
        return VhdxTarget(output, size_bytes, force=force, sync=sync)
    if image_format not in _CREATE_OPTIONS:
        raise UsageError(f"{image_format}: not a format to restore to")
    return QemuTarget(output, image_format, size_bytes, force=force, sync=sync)


class RawFileTarget:
    holds_old_content = False

    def __init__(self, output: Path, size_bytes: int, *, force: bool, sync: bool) -> None:
        self._output = output
        # Two threads in pwritev on one inode spin for its lock: 1.6 GiB took up to 5.5 s where one
        # thread took 0.5 to 0.9 s (ext4, Linux 6, 2 busy cores).
        self._lock = threading.Lock()
        # Data on its way to the disk early leaves less for the fsync at the end to wait for.
        self._syncer = ThreadPoolExecutor(1, "sync")
        self._syncing: Future[None] | None = None
        self._unsynced_bytes = 0
        self._partial = PartialFile(output, force=force, sync=sync)
        try:
            with storage_errors(output):
                os.ftruncate(self._partial.fd, size_bytes)
        except BaseException:
            self.abort()
            raise

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        with storage_errors(self._output), self._lock:
            write_at(self._partial.fd, offset, buffers)
            self._unsynced_bytes += sum(map(len, buffers))
            if self._partial.sync and self._unsynced_bytes >= _SYNC_EVERY_BYTES:
                self._sync_ahead()

    def _sync_ahead(self) -> None:
        if self._syncing is None or self._syncing.done():
            if self._syncing is not None:
                self._syncing.result()
            self._unsynced_bytes = 0
            self._syncing = self._syncer.submit(os.fdatasync, self._partial.fd)

    def zero(self, offset: int, length: int) -> None:
        """A new file reads as zeros where nothing was written."""

    def commit(self) -> None:
        self._syncer.shutdown()
        with storage_errors(self._output):
            if self._syncing is not None:
                self._syncing.result()  # an fsync after a failed one may succeed: ask the first
        self._partial.publish()

    def abort(self) -> None:
        self._syncer.shutdown(cancel_futures=True)
        self._partial.remove()


class BlockDeviceTarget:
    holds_old_content = True

    def __init__(self, device: Path, size_bytes: int) -> None:
        self._device = device
        self._lock = threading.Lock()  # as for a file
        with storage_errors(device):  # O_EXCL: refused while it is mounted
            self._fd = os.open(device, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
        device_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        if device_bytes < size_bytes:
            os.close(self._fd)
            raise OutputTooSmallError(f"{device}: {device_bytes} bytes, the disk has {size_bytes}")

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        with storage_errors(self._device), self._lock:
            write_at(self._fd, offset, buffers)

    def zero(self, offset: int, length: int) -> None:
        with storage_errors(self._device):
            if not (offset % SECTOR_BYTES or length % SECTOR_BYTES):
                with contextlib.suppress(OSError):  # larger sectors: then written out
                    fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
                    return
            for start in range(0, length, len(_ZEROS)):
                size = min(len(_ZEROS), length - start)
                write_at(self._fd, offset + start, [memoryview(_ZEROS)[:size]])

    def commit(self) -> None:
        with storage_errors(self._device):
            os.fsync(self._fd)
        self.abort()

    def abort(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class VhdxTarget:
    holds_old_content = False

    def __init__(self, output: Path, size_bytes: int, *, force: bool, sync: bool) -> None:
        """Raises: UsageError (VHDX holds no disk of this size), StorageError."""
        self._output = output
        self._lock = threading.Lock()
        self._partial = PartialFile(output, force=force, sync=sync)
        try:
            self._image = VhdxFile(self._partial.fd, size_bytes, sync=self._partial.sync)
        except BaseException:
            self.abort()
            raise

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        with storage_errors(self._output), self._lock:
            self._image.write(offset, buffers)

    def zero(self, offset: int, length: int) -> None:
        """A new image reads as zeros where nothing was written."""

    def commit(self) -> None:
        with storage_errors(self._output):
            self._image.finish()
        self._partial.publish()

    def abort(self) -> None:
        self._partial.remove()


class QemuTarget:
    """An image of a foreign format: qemu-img makes it, qemu-nbd writes it, nothing is copied."""

    holds_old_content = False

    def __init__(
        self, output: Path, image_format: ImageFormat, size_bytes: int, *, force: bool, sync: bool
    ) -> None:
        self._output = output
        self._partial = PartialFile(output, force=force, sync=sync)
        try:
            _create_image(self._partial.path, image_format, size_bytes)
            self._server: QemuNbd | None = QemuNbd(self._partial.path, image_format, writable=True)
        except BaseException:
            self._partial.remove()
            raise
        self._device = self._server.device

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        try:
            self._device.write_vector(offset, buffers)
        except NbdError as error:
            kind = StorageFullError if error.number == errno.ENOSPC else StorageError
            raise kind(f"{self._output}: {error}") from error

    def zero(self, offset: int, length: int) -> None:
        """A new image reads as zeros where nothing was written."""

    def commit(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()  # writes the image's own tables; we fsync after it
        self._partial.publish()

    def abort(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.abandon()
        self._partial.remove()


def _create_image(path: Path, image_format: ImageFormat, size_bytes: int) -> None:
    program = shutil.which("qemu-img")
    if program is None:
        raise ExternalProgramError("qemu-img is not installed (Debian package qemu-utils)")
    sectors = -(-size_bytes // SECTOR_BYTES)  # these formats count in sectors
    made = subprocess.run(
        [program, "create", "-q", "-f", image_format, *_CREATE_OPTIONS[image_format], path,
         str(sectors * SECTOR_BYTES)],  # an absolute path, so never a protocol
        capture_output=True,
        text=True,
        timeout=_CREATE_WITHIN_S,
    )  # fmt: skip
    if made.returncode:
        raise ExternalProgramError(f"{path}: {' '.join(made.stderr.split())[-2048:]}")


def write_at(fd: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
    """Write every byte of the buffers, one after another, from byte `offset`."""
    for batch in write_batches(buffers):
        views = [memoryview(part) for part in batch]
        while views:
            written = os.pwritev(fd, views, offset)
            offset += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]
