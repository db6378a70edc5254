"""Reads a disk of a vCenter through the datastore HTTPS transport, like a backup, and discards it.

`python -m tests.perf.read_datastore FILE` takes one JSON object from FILE (address, port, user,
password, fingerprint, vm, direct) and prints one: megabytes per second from the first read to the
last, processor seconds, and the route. The VM must have a snapshot. A process of its own, so that
its processor time is the transport's.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyVmomi import vim

from vmware.disks import disks_of
from vmware.inventory import find_vms
from vmware.properties import fetch_one
from vmware.session import Endpoint, Session
from vmware.transports.contract import DiskRequest
from vmware.transports.datastore_https import DatastoreHttpsReader, DatastoreHttpsTransport

SEGMENT_BYTES = 8 << 20
WORKERS = 2


def read_all(reader: DatastoreHttpsReader) -> None:
    """Every segment once, roughly in order, as the repository's writer reads."""
    local = threading.local()

    def read(start: int) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(SEGMENT_BYTES))
        reader.read_into(start, local.buffer[: min(SEGMENT_BYTES, reader.size_bytes - start)])

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(read, range(0, reader.size_bytes, SEGMENT_BYTES)))


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    endpoint = Endpoint(
        address=asked["address"],
        port=asked["port"],
        user=asked["user"],
        fingerprint_sha256=asked["fingerprint"],
    )
    with Session.connect(endpoint, lambda: str(asked["password"])) as session:
        (vm,) = find_vms(session, [asked["vm"]])
        handle = session.object(vim.VirtualMachine, vm.moref)
        tree = fetch_one(session, "find the snapshot", handle, ["snapshot"]).values["snapshot"]
        snapshot = tree.currentSnapshot
        config = fetch_one(session, "read the snapshot", snapshot, ["config.hardware.device"])
        (disk,) = disks_of(config.values["config.hardware.device"])
        reader = DatastoreHttpsTransport(direct=asked["direct"]).open(
            DiskRequest(session=session, vm=vm, snapshot_moref=snapshot._GetMoId(), disk=disk)
        )
        cpu_s, started_s = time.process_time(), time.perf_counter()
        read_all(reader)
        seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        size_bytes, route = reader.size_bytes, reader.route
        reader.close()
    print(
        json.dumps({"mb_per_s": size_bytes / seconds / 1e6, "cpu_seconds": cpu_s, "route": route})
    )


if __name__ == "__main__":
    main()
