"""Ask the kernel to start writing dirty pages, so that the fsync at the end finds little to do.

sync_file_range(2) with SYNC_FILE_RANGE_WRITE only: a hint, not a promise of durability. It takes no
write-back error away from fsync (that would need one of the WAIT flags), so failures are ignored.

Measured on ext4 on a virtual disk, packs of 64 MiB written at about 400 MiB/s: the commit of a pack
takes 6 ms instead of 20 ms (medians, 6 runs of 12 packs each). The rate of whole runs stayed within
the noise of that machine, so the gain is the shorter wait of whoever commits, not throughput.
"""

from __future__ import annotations

import ctypes
from typing import Any

from appliance.base.units import MIB

WRITEBACK_BYTES = 16 * MIB  # 4 MiB took the same times

_SYNC_FILE_RANGE_WRITE = 2  # <linux/fs.h>


def _find() -> Any:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux only
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        function.restype = ctypes.c_int
    return function


_sync_file_range = _find()


def start_writeback(fd: int, offset: int, length: int) -> None:
    """May wait for a congested disk; releases the GIL."""
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)
