"""A restore in a process of its own, which says where it is and stops there, to be killed.

    python -m tests.support.restore_driver HOME DEVICE_ROOT POINT new|in-place TRANSPORT STOP

STOP is `begun` (every disk is open, nothing written) or `written` (something is). It prints
`STOPPED` there and waits; without reaching it, it prints `ENDED`.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.catalog.catalog import Catalog
from appliance.jobs.rollback_contract import RollbackOptions
from appliance.jobs.vm_restore import RestoreRoom, VmRestoreOptions, restore_vm
from appliance.jobs.vm_rollback import roll_back_vm
from appliance.repository.repository import Repository
from appliance.service.vm_sources import open_target
from appliance.sources.vsphere_transports import SourceTools
from vmware.transports.appliance_disks import ApplianceDisks

_first = threading.Lock()


def stop() -> None:
    """Several threads get here; one of them says so."""
    if _first.acquire(blocking=False):
        print("STOPPED", flush=True)
    time.sleep(600)


class StoppingProgress(Progress):
    def advance(self, done_bytes: int) -> None:
        super().advance(done_bytes)
        stop()


def main(home: Path, root: Path, point_id: str, kind: str, transport: str, where: str) -> None:
    tools = SourceTools(appliance_disks=ApplianceDisks(device_root=root))
    with (
        Catalog.open(home) as catalog,
        Repository.open(home / "repository") as repository,
        open_target(catalog, tools=tools) as opened,
    ):
        room = RestoreRoom(repository=repository, runs=catalog.runs, run_locks=catalog.run_locks)
        point = repository.points.find(point_id)
        writing = StoppingProgress() if where == "written" else Progress()
        context = RunContext(CancelToken(), writing)
        if kind == "new":
            options = VmRestoreOptions(name="killed", transports=(transport,))

            def begins(number: int, label: str, progress: Progress) -> None:
                if where == "begun":
                    stop()

            restore_vm(room, opened.target, point, options, context, begins)
        else:

            def phase(name: str, progress: Progress) -> None:
                if name.startswith("write"):
                    progress.__class__ = StoppingProgress

            context = RunContext(CancelToken(), Progress())
            roll_back_vm(
                room, home, opened.source, opened.target, point, RollbackOptions(), context, phase
            )
    print("ENDED", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:7])
