"""Positional I/O on the overlay's files: short writes finished, errors translated, holes punched.

Every call goes through the module `os`, or `punch_hole` here, looked up at call time, so that tests
can record, fail or cut any of them.

Thread model: stateless; the kernel orders concurrent calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from appliance.base.errors import StorageError, StorageFullError
from appliance.blocks.overlay_errors import OverlayCorruptError

Buffer = bytes | bytearray | memoryview

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_AT_ONCE = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_NO_PUNCH = FULL | {errno.EOPNOTSUPP, errno.ENOSYS}  # splitting an extent takes space
_KEEP_SIZE_AND_PUNCH = 0x01 | 0x02  # linux/falloc.h

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def storage_error(action: str, error: OSError) -> StorageFullError | StorageError:
    """Say what failed; raise the result `from error`."""
    if error.errno in FULL:
        return StorageFullError(f"{action}: {error.strerror}")
    return StorageError(f"{action}: {error.strerror}")


def pwrite_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write all of `buffers` one after the other from `offset`. Raises OSError."""
    if len(buffers) == 1:
        data = buffers[0]
        done = os.pwrite(fd, data, offset)
        if done == len(data):
            return
        rest = memoryview(data)[done:]
    else:
        done = os.pwritev(fd, buffers, offset)
        rest = memoryview(b"".join(buffers))[done:]
    while rest:
        offset += done
        done = os.pwrite(fd, rest, offset)
        rest = rest[done:]


def pread_exactly(fd: int, length: int, offset: int) -> bytes:
    """Raises OSError, or OverlayCorruptError where the file ends early."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    buffer = bytearray(length)
    preadv_exactly(fd, memoryview(buffer), offset)
    return bytes(buffer)


def preadv_exactly(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view`; as `pread_exactly`."""
    while view:
        done = os.preadv(fd, [view], offset)
        if not done:
            raise OverlayCorruptError(f"the data file ends before byte {offset + len(view)}")
        view = view[done:]
        offset += done


def pread_cached(fd: int, length: int, offset: int) -> memoryview | None:
    """Return the bytes if the page cache has all of them, else None; never waits for a disk."""
    buffer = bytearray(length)
    try:
        done = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in _NOT_AT_ONCE:
            return None
        raise
    return memoryview(buffer) if done == length else None


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free the range, which then reads as zeros, where the system can; else change nothing."""
    if _fallocate(fd, _KEEP_SIZE_AND_PUNCH, offset, length) == 0:
        return
    code = ctypes.get_errno()
    if code not in _NO_PUNCH:
        raise OSError(code, os.strerror(code))
