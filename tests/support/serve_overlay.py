"""A process to be killed: serves an overlay over a disk of one repeated byte, until it ends.

`python -m tests.support.serve_overlay FOLDER SOCKET SIZE`; prints `ready` once clients can connect.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_errors import OverlayMissingError
from appliance.exports.nbd import NbdExport, NbdServer
from tests.support.memory_device import MemoryDevice

BASE_BYTE = 0xBB


def main() -> None:
    folder, socket_path, size_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    base = MemoryDevice(bytes((BASE_BYTE,)) * size_bytes)
    try:
        overlay = Overlay.open(folder, base, {})
    except OverlayMissingError:
        overlay = Overlay.create(folder, base, {})
    export = NbdExport(name="disk", disk=overlay, read_only=False)
    with NbdServer([export], address=socket_path):
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
