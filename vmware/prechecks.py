"""Before a backup touches a VM: what would make it fail, and what would make it worse.

Read-only. Everything found is returned at once, as findings that block or warn, so that an operator
needs not fix one thing to hear of the next. What is about single disks (independent, physical RDM,
…) warns: the VM is backed up without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from vmware.datastores import DatastoreFacts, datastores_of
from vmware.disks import Obstacle, disk_obstacle, split_file_name
from vmware.errors import ObjectGoneError
from vmware.findings import Finding, Weight
from vmware.inventory import Power, VmInfo, vm_obstacle
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.snapshot_tree import SnapshotEntry, flatten

LEAST_FREE_SHARE = 0.10  # of the VM's disks on a datastore
MOST_LEVELS = 31  # the limit is 32, and one more is to come

_PATHS = ("recentTask", "runtime.consolidationNeeded", "runtime.snapshotInBackground", "snapshot")


def check_vm(session: Session, vm: VmInfo) -> tuple[Finding, ...]:
    """What stands against a backup of the VM now; blocking findings first.

    `vm` should be read just before. What can be seen from it alone comes from `vm_obstacle` and
    `disk_obstacle`.

    Raises: ObjectGoneError, or another VsphereError: it cannot be looked at.
    """
    obstacle = vm_obstacle(vm)
    if obstacle is not None:
        return (_of(obstacle, Weight.BLOCKING),)
    managed = session.object(vim.VirtualMachine, vm.moref)
    read = fetch_one(session, f"check {vm.name}", managed, _PATHS).values
    findings = [
        *_state(read),
        *_running_tasks(session, read.get("recentTask") or []),
        *_levels(flatten(read.get("snapshot"))),
        *_disks(vm),
        *_space(vm, datastores_of(session, vm.moref)),
    ]
    return tuple(sorted(findings, key=lambda finding: finding.weight is not Weight.BLOCKING))


def _of(obstacle: Obstacle, weight: Weight) -> Finding:
    return Finding(obstacle.code, obstacle.text, obstacle.next_step, weight)


def _state(read: Mapping[str, Any]) -> list[Finding]:
    findings = []
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


def _disks(vm: VmInfo) -> list[Finding]:
    obstacles = [disk_obstacle(disk, vm_off=vm.power is Power.OFF) for disk in vm.disks]
    findings = [_of(obstacle, Weight.WARNING) for obstacle in obstacles if obstacle]
    if len(findings) == len(vm.disks):
        findings.append(
            Finding(
                "vm.no-disk",
                "the VM has no disk that a snapshot covers",
                "make a disk dependent, or back the VM up from within the guest",
                Weight.BLOCKING,
            )
        )
    return findings


def _space(vm: VmInfo, datastores: tuple[DatastoreFacts, ...]) -> list[Finding]:
    findings = []
    files = [vm.vmx_file_name]
    for disk in vm.disks:
        files += [disk.file_name, *disk.chain]
    needed = {split_file_name(name)[0] for name in files}  # others hold images of CDs and such
    for datastore in datastores:
        if not datastore.accessible:
            findings.append(
                Finding(
                    "vm.datastore-inaccessible",
                    f"the vSphere datastore {datastore.name} cannot be reached by its hosts",
                    "look at its state in the vSphere client",
                    Weight.BLOCKING if datastore.name in needed else Weight.WARNING,
                )
            )
            continue
        on_it = [d.capacity_bytes for d in vm.disks if d.datastore_name == datastore.name]
        if datastore.free_bytes < sum(on_it) * LEAST_FREE_SHARE:
            findings.append(
                Finding(
                    "vm.little-space",
                    f"the vSphere datastore {datastore.name} has {datastore.free_bytes >> 20} MiB "
                    f"free for the snapshot of disks of {sum(on_it) >> 20} MiB",
                    "free space there, or the VM may stop while its snapshot grows",
                )
            )
    return findings


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else line[:199] + "…"
