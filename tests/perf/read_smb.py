"""Reads a disk file of a Hyper-V host over SMB, like a backup, and discards it.

`python -m tests.perf.read_smb FILE` takes one JSON object from FILE (address, port, user, password,
path, protection) and prints one: MiB per second from the first read to the last, processor seconds,
and how many bytes that were. A process of its own, so that its processor time is the reader's.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.base.units import MIB
from appliance.blocks.device import BlockReader
from appliance.blocks.extents import ExtentKind
from appliance.sources.hyperv_smb_reader import SmbDiskOpener
from hyperv.script_types import DiskFile
from hyperv.smb_files import Protection, SmbLogin

SEGMENT_BYTES = 8 * MIB
WORKERS = 2  # of a disk in a backup, on this many cores


def read_all(reader: BlockReader) -> int:
    """Every segment once, roughly in order, as the repository's writer reads; bytes of data."""
    local = threading.local()

    def read(start: int) -> int:
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(SEGMENT_BYTES))
        end, done = min(start + SEGMENT_BYTES, reader.size_bytes), 0
        for extent in reader.map_extents(start, end - start):
            if extent.kind is ExtentKind.DATA:
                reader.read_into(extent.offset, local.buffer[: extent.length])
                done += extent.length
        return done

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(read, range(0, reader.size_bytes, SEGMENT_BYTES)))


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    login = SmbLogin(
        address=asked["address"],
        port=asked["port"],
        user=asked["user"],
        password=lambda: str(asked["password"]),
        protection=Protection(asked["protection"]),
    )
    file = DiskFile(
        path=asked["path"],
        format="vhdx",
        type="dynamic",
        virtual_disk_id="",
        size_bytes=0,
        file_size_bytes=0,
        logical_sector_bytes=512,
        physical_sector_bytes=4096,
        parent_path="",
        error="",
    )
    reader = SmbDiskOpener(asked["address"], lambda: login, [file], None)(None).reader
    cpu_s, started_s = time.process_time(), time.perf_counter()
    read_bytes = read_all(reader)
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    reader.close()
    rate = read_bytes / seconds / MIB
    print(json.dumps({"mib_per_s": rate, "cpu_seconds": cpu_s, "read_bytes": read_bytes}))


if __name__ == "__main__":
    main()
