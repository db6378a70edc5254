"""The process of a background lab: `python -m lab.lab_process FOLDER READY_FD [GUEST…]`.

A guest that is named `hyperv:GUEST` runs on a Hyper-V host; `hyperv:` alone asks for the host.

It holds the folder's lock while it lives, writes the state when the lab is ready, says so on
READY_FD, and serves the control socket until `down` or SIGTERM. Started by `lab.up`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.control_socket import ControlServer
from lab.guests import GuestKind
from lab.lab_folder import LabFolder
from lab.practice_lab import PracticeLab
from lab.up import ON_HYPERV, READY


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    folder, ready_fd, guests = LabFolder(Path(arguments[0])), int(arguments[1]), arguments[2:]
    os.set_inheritable(ready_fd, False)
    lock = folder.try_lock()
    if lock is None:
        print("another lab runs in this folder", file=sys.stderr)
        return 1
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run = folder.make_run_folder()
    control = ControlServer(run / "control.sock")
    hyperv = [name.removeprefix(ON_HYPERV) for name in guests if name.startswith(ON_HYPERV)]
    with PracticeLab(
        folder.datastores_path,
        run,
        [GuestKind(name) for name in guests if not name.startswith(ON_HYPERV)],
        [GuestKind(name) for name in hyperv if name] if hyperv else None,
    ) as lab:

        def describe(_arguments: Mapping[str, Any]) -> dict[str, Any]:
            state = {"running": True, "pid": os.getpid(), "folder": str(folder.path)}
            return {**state, "log": str(folder.log_path), **lab.describe()}

        def stop(_arguments: Mapping[str, Any]) -> dict[str, Any]:
            ended.set()
            return {}

        control.add("status", describe)
        control.add("down", stop)
        lab.add_commands(control)
        control.start()
        folder.write_state(describe({}))
        os.write(ready_fd, READY)
        os.close(ready_fd)
        while not ended.wait(1.0):  # a plain wait would hold back the signal handlers
            pass
        control.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
