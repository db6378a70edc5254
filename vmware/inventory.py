"""What VMs there are and what matters about each: one pass of the property collector for all.

Everything is read by leaf paths, over XML (`vmware.soap_tree`), and each page is turned into
`VmInfo`s while it is in memory.
Invariants: a VM that the server cannot describe (disconnected host, missing privilege) is still
listed, with what is known and the reason for the rest, so that nobody takes it for deleted.
Functions block; they keep no state.
Source: design notes sections 1 and 10 (why never `runtime` or `summary` as a whole).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from pyVmomi import vim

from vmware.disks import DiskInfo, Obstacle, disk_obstacle, disks_of, disks_of_xml
from vmware.errors import ObjectGoneError
from vmware.places import (
    NOWHERE,
    PLACES,
    Place,
    Places,
    Reference,
    place_of,
    plain_name,
    reference,
)
from vmware.properties import Record, Wanted, read_all, read_some
from vmware.session import Session
from vmware.soap_tree import VIM

__all__ = [
    "Connection",
    "DiskInfo",
    "Obstacle",
    "Power",
    "Unreadable",
    "VM_PATHS",
    "VmInfo",
    "disk_obstacle",
    "disks_of",
    "find_vms",
    "list_vms",
    "read_vm",
    "read_vms",
    "vm_obstacle",
]

#: What is read of each VM.
VM_PATHS = (
    "name",
    "parent",
    "parentVApp",
    "resourcePool",
    "snapshot",
    "config.instanceUuid",
    "config.uuid",
    "config.changeVersion",
    "config.changeTrackingEnabled",
    "config.version",
    "config.guestId",
    "config.guestFullName",
    "config.template",
    "config.keyId",
    "config.ftInfo",
    "config.files.vmPathName",
    "config.hardware.device",
    "capability.changeTrackingSupported",
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.host",
    "runtime.question",
    "runtime.consolidationNeeded",
    "guest.toolsRunningStatus",
)
_VM = Wanted(kind=vim.VirtualMachine, paths=VM_PATHS)
_NAMES = Wanted(kind=vim.VirtualMachine, paths=("name", "config.instanceUuid"))
_TOOLS_RUN = ("guestToolsRunning", "guestToolsExecutingScripts")


_E = TypeVar("_E", bound=StrEnum)


class Power(StrEnum):
    ON = "poweredOn"
    OFF = "poweredOff"
    SUSPENDED = "suspended"
    UNKNOWN = ""


class Connection(StrEnum):
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    ORPHANED = "orphaned"
    INACCESSIBLE = "inaccessible"
    INVALID = "invalid"
    UNKNOWN = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A property that the server did not give, and the fault it named (empty: it named none)."""

    path: str
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmInfo:
    """One VM at the moment of reading. Text is empty when the server does not say."""

    moref: str
    name: str
    instance_uuid: str  # unique in one vCenter
    bios_uuid: str  # clones may share it
    power: Power
    connection: Connection
    folder_path: str  # inventory path, such as `Datacenter/vm/Production`
    resource_pool_moref: str
    host_moref: str
    host_name: str
    cluster_name: str  # of a stand-alone host: empty
    datacenter_moref: str
    datacenter_path: str  # inventory path: the `dcPath` of datastore URLs
    cbt_enabled: bool
    cbt_supported: bool
    hardware_version: int  # 19 of `vmx-19`; 0: not known
    guest_id: str
    guest_full_name: str
    tools_running: bool
    has_snapshots: bool
    question: str  # text of the question that the VM waits for an answer to
    template: bool
    encrypted: bool
    fault_tolerant: bool
    consolidation_needed: bool
    vmx_file_name: str  # `[datastore] folder/file.vmx`
    disks: tuple[DiskInfo, ...]
    change_version: str  # of the configuration; another one after each change
    unreadable: tuple[Unreadable, ...]


def list_vms(session: Session) -> list[VmInfo]:
    """All VMs and templates that the account may see, by name; one collector pass.

    Raises:
        VsphereError: the inventory as a whole cannot be read.
    """
    found = read_all(session, "read the inventory", [_VM, *PLACES], _row_or_place)
    places = Places(item for item in found if isinstance(item, Place))
    rows = [item for item in found if isinstance(item, _Row)]
    return _placed(rows, places)


def read_vm(session: Session, moref: str) -> VmInfo:
    """One VM, as it is now.

    Raises:
        ObjectGoneError: there is no such VM (any more).
    """
    target = session.object(vim.VirtualMachine, moref)
    rows = read_some(session, f"read VM {moref}", [target], [_VM], _row)
    if not rows:
        raise ObjectGoneError(f"VM {moref}: the server shows nothing of it")
    return _with_places(session, rows)[0]


def find_vms(session: Session, patterns: Sequence[str]) -> list[VmInfo]:
    """The VMs that any pattern names, by name; reads the details of these only.

    A pattern is a name, a glob (`web-*`), an id (`vm-42`) or an instance UUID; a name that equals
    it exactly goes before its reading as a glob. Two VMs in different folders may have the same
    name: both are returned.
    """
    named = read_all(session, "read the names of the VMs", [_NAMES], _name_of)
    morefs = sorted({moref for pattern in patterns for moref in _matches(named, pattern)})
    return read_vms(session, morefs)


def read_vms(session: Session, morefs: Sequence[str]) -> list[VmInfo]:
    """These VMs by name; one that is gone is left out."""
    targets = [session.object(vim.VirtualMachine, moref) for moref in morefs]
    if not targets:
        return []
    rows: list[_Row] = []
    try:
        rows = read_some(session, "read VMs", targets, [_VM], _row)
    except ObjectGoneError:  # one spoils the whole call: ask one by one
        for target in targets:
            try:
                rows += read_some(session, "read a VM", [target], [_VM], _row)
            except ObjectGoneError:
                continue
    return _with_places(session, rows)


def vm_obstacle(vm: VmInfo) -> Obstacle | None:
    """Why no snapshot of this VM can be made now; None: nothing is known against it."""
    if vm.connection not in (Connection.CONNECTED, Connection.UNKNOWN):
        return Obstacle(
            code="vm.unavailable",
            text=f"{vm.name} is {vm.connection.value} in vSphere",
            next_step="bring its host or its datastore back",
        )
    if vm.fault_tolerant:
        return Obstacle(
            code="vm.fault-tolerant",
            text=f"{vm.name} uses Fault Tolerance, which excludes snapshots",
            next_step="back it up from within the guest, or turn Fault Tolerance off",
        )
    shared = [disk.label for disk in vm.disks if disk.shared_bus not in ("", "noSharing")]
    if shared and vm.power is not Power.OFF:
        return Obstacle(
            code="vm.shared-bus",
            text=f"{vm.name} shares the SCSI bus of {', '.join(shared)}; no snapshot while it runs",
            next_step="back it up from within the guest, or power it off first",
        )
    if vm.question:
        return Obstacle(
            code="vm.question",
            text=f"{vm.name} waits for an answer: {vm.question}",
            next_step="answer it in the vSphere client",
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A VM whose places are still ids."""

    vm: VmInfo
    folder: Reference
    pool: Reference
    host: Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class _Name:
    moref: str
    name: str
    instance_uuid: str


def _row_or_place(record: Record) -> _Row | Place:
    return _row(record) if record.kind == "VirtualMachine" else place_of(record)


def _name_of(record: Record) -> _Name:
    return _Name(
        moref=record.moref,
        name=plain_name(record.text("name")),
        instance_uuid=record.text("config.instanceUuid"),
    )


def _matches(named: Sequence[_Name], pattern: str) -> list[str]:
    exact = [
        item.moref
        for item in named
        if pattern in (item.name, item.moref) or pattern.lower() == item.instance_uuid.lower() != ""
    ]
    return exact or [item.moref for item in named if fnmatch.fnmatchcase(item.name, pattern)]


def _row(record: Record) -> _Row:
    question = record.values.get("runtime.question")
    host = reference(record, "runtime.host")
    pool = reference(record, "resourcePool")
    vapp = reference(record, "parentVApp")
    version = record.text("config.version").removeprefix("vmx-")
    vm = VmInfo(
        moref=record.moref,
        name=plain_name(record.text("name")),
        instance_uuid=record.text("config.instanceUuid"),
        bios_uuid=record.text("config.uuid"),
        power=_known(Power, record.text("runtime.powerState")),
        connection=_known(Connection, record.text("runtime.connectionState")),
        folder_path="",
        resource_pool_moref=pool.moref,
        host_moref=host.moref,
        host_name="",
        cluster_name="",
        datacenter_moref="",
        datacenter_path="",
        cbt_enabled=record.flag("config.changeTrackingEnabled"),
        cbt_supported=record.flag("capability.changeTrackingSupported"),
        hardware_version=int(version) if version.isdecimal() else 0,
        guest_id=record.text("config.guestId"),
        guest_full_name=record.text("config.guestFullName"),
        tools_running=record.text("guest.toolsRunningStatus") in _TOOLS_RUN,
        has_snapshots="snapshot" in record.values,
        question="" if question is None else question.findtext(f"{VIM}text", ""),
        template=record.flag("config.template"),
        encrypted="config.keyId" in record.values,
        fault_tolerant="config.ftInfo" in record.values,
        consolidation_needed=record.flag("runtime.consolidationNeeded"),
        vmx_file_name=record.text("config.files.vmPathName"),
        disks=disks_of_xml(record.values.get("config.hardware.device")),
        change_version=record.text("config.changeVersion"),
        unreadable=tuple(
            Unreadable(path=path, fault=fault) for path, fault in record.unreadable.items()
        ),
    )
    folder = reference(record, "parent")
    return _Row(vm=vm, folder=folder if folder.moref else vapp, pool=pool, host=host)


def _known(kind: type[_E], text: str) -> _E:
    return kind(text) if text in set(kind) else kind("")


def _with_places(session: Session, rows: Sequence[_Row]) -> list[VmInfo]:
    places = Places()
    above = {item for row in rows for item in (row.folder, row.pool, row.host)} - {NOWHERE}
    places.learn(session, above)
    return _placed(rows, places)


def _placed(rows: Sequence[_Row], places: Places) -> list[VmInfo]:
    found = []
    for row in rows:
        folder = row.folder.moref
        if row.folder.kind == "VirtualApp":
            owner = places.above(folder, "Folder")
            folder = owner.moref if owner else ""
        datacenter = places.above(folder or row.host.moref, "Datacenter")
        cluster = places.above(row.host.moref, "ClusterComputeResource")
        found.append(
            replace(
                row.vm,
                folder_path=places.path(folder),
                host_name=places.name(row.host.moref),
                cluster_name=plain_name(cluster.name) if cluster else "",
                datacenter_moref=datacenter.moref if datacenter else "",
                datacenter_path=places.path(datacenter.moref) if datacenter else "",
            )
        )
    return sorted(found, key=lambda vm: (vm.name, vm.moref))
