"""Cut what is to be written into calls of a size that the page cache takes fastest.

A write of megabytes makes the kernel look for page-cache memory in pieces as large, and copy into
it past the processor's own cache: 800 MiB in calls of 4 MiB took 0.3 to 1.8 s of system time (the
more where a hypervisor has to find the memory first), in calls of 256 KiB 0.16 to 0.24 s
(*measured*, ext4, Linux 6.18, in a virtual machine).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from appliance.base.batches import batches
from appliance.base.units import KIB

WRITE_BYTES = 256 * KIB
_BUFFERS_MOST = os.sysconf("SC_IOV_MAX")

Buffers = Sequence[bytes | memoryview]


def write_batches(buffers: Buffers) -> Iterator[Buffers]:
    """Yield all buffers in order, in runs for one vectored write each.

    A run has at most `WRITE_BYTES`, but for a single buffer that has more.
    """
    return batches(buffers, len, WRITE_BYTES, count_most=_BUFFERS_MOST)
