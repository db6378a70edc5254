"""A machine's state as clients see it: runtime, guest, snapshot tree, files and storage.

Each function makes one property of VirtualMachine from the engine's values. Pure but for listing
the machine's files. Source: vSphere Web Services API (RuntimeInfo, GuestInfo, SnapshotInfo,
FileLayoutEx, StorageInfo).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from pyVmomi import vim

from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import DiskChain, open_chain
from lab.esx.errors import HostError
from lab.esx.hardware import Disk
from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.esx.vm_state import PowerState, Question, Snapshot

_RUNNING, _NOT_RUNNING = "guestToolsRunning", "guestToolsNotRunning"


def runtime_info(engine: Engine, host: Any) -> Any:
    question = engine.question
    reachable = engine.site.datastores.accessible(engine.config.vmx_path.datastore)
    return vim.vm.RuntimeInfo(
        connectionState="connected" if reachable else "inaccessible",
        powerState=engine.power.value,
        host=host,
        bootTime=engine.boot_time,
        faultToleranceState="notConfigured",
        recordReplayState="inactive",
        consolidationNeeded=engine.consolidation_needed,
        snapshotInBackground=False,
        suspendInterval=0,
        numMksConnections=0,
        toolsInstallerMounted=False,
        maxCpuUsage=engine.config.cpus * 2400 if engine.on else None,
        maxMemoryUsage=engine.config.memory_mib if engine.on else None,
        question=_question(question) if question is not None else None,
    )


def _question(question: Question) -> Any:
    described: Any = vim.ElementDescription
    return vim.vm.QuestionInfo(
        id=question.id,
        text=question.text,
        choice=vim.option.ChoiceOption(
            choiceInfo=[
                described(key=one.key, label=one.label, summary=one.summary)
                for one in question.choices
            ],
            defaultIndex=question.default_index,
        ),
        message=[
            vim.vm.Message(id=question.message_id, text=question.text),
        ],
    )


def guest_info(engine: Engine) -> Any:
    info = engine.guest_info
    config = engine.config
    nics = [
        vim.vm.GuestInfo.NicInfo(
            network=nic.network,
            ipAddress=[info.ip_address] if info.ip_address and not place else [],
            macAddress=nic.mac,
            connected=engine.on and nic.connected,
            deviceConfigId=nic.key,
        )
        for place, nic in enumerate(config.nics if info.tools_running else ())
    ]
    return vim.vm.GuestInfo(
        toolsStatus="toolsOk" if info.tools_running else "toolsNotRunning",
        toolsVersionStatus="guestToolsCurrent",
        toolsVersionStatus2="guestToolsCurrent",
        toolsRunningStatus=_RUNNING if info.tools_running else _NOT_RUNNING,
        toolsVersion="12352",
        guestId=config.guest_id if info.tools_running else None,
        guestFamily="linuxGuest" if info.tools_running else None,
        hostName=info.host_name or None,
        ipAddress=info.ip_address or None,
        net=nics,
        guestState="running" if info.tools_running else "notRunning",
        guestOperationsReady=False,
        interactiveGuestOperationsReady=False,
        guestStateChangeSupported=info.tools_running,
        guestKernelCrashed=False,
    )


def snapshot_info(engine: Engine, ref_of: Callable[[int], Any], vm: Any) -> Any:
    """None without snapshots."""
    if not engine.snapshots:
        return None
    current = engine.current_snapshot
    return vim.vm.SnapshotInfo(
        currentSnapshot=ref_of(current) if current is not None else None,
        rootSnapshotList=_tree(engine.snapshots.values(), None, ref_of, vm),
    )


def _tree(
    snapshots: Iterable[Snapshot], parent: int | None, ref_of: Callable[[int], Any], vm: Any
) -> list[Any]:
    every = list(snapshots)
    return [
        vim.vm.SnapshotTree(
            snapshot=ref_of(one.id),
            vm=vm,
            name=one.name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c"),
            description=one.description,
            id=one.id,
            createTime=one.created_at,
            state=PowerState.OFF.value,  # without memory, a revert ends powered off
            quiesced=one.quiesced,
            replaySupported=False,
            childSnapshotList=_tree(every, one.id, ref_of, vm),
        )
        for one in sorted(every, key=lambda one: one.id)
        if one.parent == parent
    ]


def layout_ex(engine: Engine, snapshot_ref: Callable[[int], Any]) -> Any:
    """Every file the machine has, by key; disks and snapshots as chains of keys."""
    layout = _Layout(engine.site.datastores)
    config = engine.config
    layout.add(config.vmx_path, "config")
    layout.add(config.nvram_path, "nvram")
    layout.add(engine.file(".vmsd"), "snapshotList")
    layout.add(config.folder.child("vmware.log"), "log")
    disks = [layout.disk(disk) for disk in config.disks]
    snapshots = [
        vim.vm.FileLayoutEx.SnapshotLayout(
            key=snapshot_ref(one.id),
            dataKey=layout.add(
                config.folder.child(f"{config.file_stem}-Snapshot{one.id}.vmsn"), "snapshotData"
            ),
            memoryKey=-1,
            disk=[layout.disk(disk) for disk in one.config.disks],
        )
        for one in engine.snapshots.values()
    ]
    return vim.vm.FileLayoutEx(
        file=layout.files, disk=disks, snapshot=snapshots, timestamp=engine.site.now()
    )


class _Layout:
    def __init__(self, datastores: Datastores) -> None:
        self.files: list[Any] = []
        self._datastores = datastores
        self._keys: dict[DatastorePath, int] = {}

    def add(self, path: DatastorePath, kind: str) -> int:
        if path not in self._keys:
            entry = None
            with contextlib.suppress(HostError):
                entry = self._datastores.stat(path)
            self._keys[path] = len(self.files)
            self.files.append(
                vim.vm.FileLayoutEx.FileInfo(
                    key=self._keys[path],
                    name=str(path),
                    type=kind,
                    size=entry.size_bytes if entry else 0,
                    uniqueSize=entry.allocated_bytes if entry else 0,
                    accessible=entry is not None,
                )
            )
        return self._keys[path]

    def disk(self, disk: Disk) -> Any:
        units = [
            vim.vm.FileLayoutEx.DiskUnit(
                fileKey=[
                    self.add(file.path, "diskDescriptor"),
                    self.add(file.extent_path, "diskExtent"),
                ]
            )
            for file in reversed(_chain(self._datastores, disk.path).files)
        ]
        return vim.vm.FileLayoutEx.DiskLayout(key=disk.key, chain=units)


def _chain(datastores: Datastores, path: DatastorePath) -> DiskChain:
    try:
        return open_chain(datastores, path)
    except HostError:
        return DiskChain(files=())


def storage_info(engine: Engine, datastore_ref: Callable[[str], Any]) -> Any:
    """Space by datastore: what the files take, and what they could still grow by."""
    layout = layout_ex(engine, lambda number: vim.vm.Snapshot(f"snapshot-{number}"))
    committed: dict[str, int] = {}
    uncommitted: dict[str, int] = {}
    for file in layout.file:
        name = DatastorePath.parse(file.name).datastore
        committed[name] = committed.get(name, 0) + file.uniqueSize
        left = max(0, file.size - file.uniqueSize)
        uncommitted[name] = uncommitted.get(name, 0) + left
    return vim.vm.StorageInfo(
        perDatastoreUsage=[
            vim.vm.StorageInfo.UsageOnDatastore(
                datastore=datastore_ref(name),
                committed=committed[name],
                uncommitted=uncommitted[name],
                unshared=committed[name],
            )
            for name in sorted(committed)
        ],
        timestamp=engine.site.now(),
    )


def capability() -> Any:
    values = {
        info.name: False
        for info in vim.vm.Capability._GetPropertyList()
        if info.type is bool and info.flags == 0  # required ones
    }
    return vim.vm.Capability(
        **values
        | {
            "snapshotOperationsSupported": True,
            "multipleSnapshotsSupported": True,
            "quiescedSnapshotsSupported": True,
            "changeTrackingSupported": True,
            "snapshotConfigSupported": True,
            "memorySnapshotsSupported": False,
            "revertToSnapshotSupported": True,
            "disableSnapshotsSupported": False,
            "lockSnapshotsSupported": False,
            "diskOnlySnapshotOnSuspendedVMSupported": False,
            "poweredOffSnapshotsSupported": True,
        }
    )
