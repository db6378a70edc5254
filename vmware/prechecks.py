"""Before a backup touches a VM: what would make it fail, and what would make it worse.

Read-only. Everything found is returned at once, as findings that block or warn, so that an operator
needs not fix one thing to hear of the next. What is about single disks (independent, physical RDM,
…) warns: the VM is backed up without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from vmware.datastores import DatastoreFacts, datastores_of, name_of_file
from vmware.errors import ObjectGoneError
from vmware.findings import Finding, Weight
from vmware.inventory import DiskInfo, disk_obstacle, disks_of
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.snapshot_tree import SnapshotEntry, flatten

LEAST_FREE_SHARE = 0.10  # of the VM's disks on a datastore
MOST_LEVELS = 31  # the limit is 32, and one more is to come

_PATHS = (
    "config.ftInfo",
    "config.hardware.device",
    "recentTask",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.faultToleranceState",
    "runtime.powerState",
    "runtime.question",
    "runtime.snapshotInBackground",
    "snapshot",
)
_FT_OFF = (None, "notConfigured", "disabled")


def check_vm(session: Session, vm_moref: str) -> tuple[Finding, ...]:
    """What stands against a backup of the VM now; blocking findings first.

    Raises: ObjectGoneError, or another VsphereError: it cannot be looked at.
    """
    vm = session.object(vim.VirtualMachine, vm_moref)
    read = fetch_one(session, f"check {vm_moref}", vm, _PATHS).values
    connection = str(read.get("runtime.connectionState", "disconnected"))
    if connection != "connected" or "config.hardware.device" not in read:
        return (_disconnected(connection),)
    disks = disks_of(read["config.hardware.device"])
    findings = [
        *_state(read),
        *_running_tasks(session, read.get("recentTask") or []),
        *_levels(flatten(read.get("snapshot"))),
        *_disks(disks, on=str(read.get("runtime.powerState")) == "poweredOn"),
        *_space(disks, datastores_of(session, vm_moref)),
    ]
    return tuple(sorted(findings, key=lambda finding: finding.weight is not Weight.BLOCKING))


def _disconnected(state: str) -> Finding:
    return Finding(
        "vm.not-connected",
        f"the VM is {state}, so its host cannot work on it",
        "bring its host back, or remove the VM from the inventory if it is gone",
        Weight.BLOCKING,
    )


def _state(read: Mapping[str, Any]) -> list[Finding]:
    findings = []
    question = read.get("runtime.question")
    if question is not None:
        findings.append(
            Finding(
                "vm.question-pending",
                f"the VM waits for an answer: {_short(question.text)}",
                "answer it in the vSphere client",
                Weight.BLOCKING,
            )
        )
    fault_tolerance = read.get("runtime.faultToleranceState")
    if (str(fault_tolerance) if fault_tolerance else None) not in _FT_OFF:
        findings.append(
            Finding(
                "vm.fault-tolerance",
                "the VM runs with Fault Tolerance, which allows no snapshot of this kind",
                "back it up from inside, or turn Fault Tolerance off",
                Weight.BLOCKING,
            )
        )
    if read.get("runtime.snapshotInBackground"):
        findings.append(
            Finding(
                "vm.snapshot-in-background",
                "a snapshot of the VM is still being committed in the background",
                "wait until it is done",
                Weight.BLOCKING,
            )
        )
    if read.get("runtime.consolidationNeeded"):
        findings.append(
            Finding(
                "vm.consolidation-needed",
                "disk files of an earlier snapshot are not merged yet",
                "consolidate the VM's disks; look for what locks its files",
            )
        )
    return findings


def _running_tasks(session: Session, tasks: list[Any]) -> list[Finding]:
    for task in tasks:
        try:
            info = fetch_one(
                session, "look at a task", task, ("info.state", "info.descriptionId")
            ).values
        except ObjectGoneError:
            continue
        if info.get("info.state") == "running":
            return [
                Finding(
                    "vm.task-running",
                    f"a task runs on the VM: {_short(info.get('info.descriptionId', '?'))}",
                    "none: the snapshot waits for it as long as it may",
                )
            ]
    return []


def _levels(entries: tuple[SnapshotEntry, ...]) -> list[Finding]:
    depth = max((entry.depth for entry in entries), default=0)
    if depth < MOST_LEVELS:
        return []
    return [
        Finding(
            "vm.too-many-snapshots",
            f"the VM has {depth} levels of snapshots, and at most 32 are possible",
            "remove snapshots that are not needed",
            Weight.BLOCKING,
        )
    ]


def _disks(disks: tuple[DiskInfo, ...], *, on: bool) -> list[Finding]:
    findings = []
    for disk in disks:
        obstacle = disk_obstacle(disk)
        if obstacle is not None:
            findings.append(
                Finding(obstacle.code, f"{disk.label}: {obstacle.text}", obstacle.next_step)
            )
    return findings


def _space(disks: tuple[DiskInfo, ...], datastores: tuple[DatastoreFacts, ...]) -> list[Finding]:
    findings = []
    for datastore in datastores:
        if not datastore.accessible:
            findings.append(
                Finding(
                    "vm.datastore-inaccessible",
                    f"the vSphere datastore {datastore.name} cannot be reached by its hosts",
                    "look at its state in the vSphere client",
                    Weight.BLOCKING,
                )
            )
            continue
        used_bytes = sum(
            disk.capacity_bytes for disk in disks if name_of_file(disk.file_name) == datastore.name
        )
        if datastore.free_bytes < used_bytes * LEAST_FREE_SHARE:
            findings.append(
                Finding(
                    "vm.little-space",
                    f"the vSphere datastore {datastore.name} has {datastore.free_bytes >> 20} MiB "
                    f"free for the snapshot of disks of {used_bytes >> 20} MiB",
                    "free space there, or the VM may stop while its snapshot grows",
                )
            )
    return findings


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else line[:199] + "…"
