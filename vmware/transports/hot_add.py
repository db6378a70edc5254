"""Hot-add: the frozen disk becomes a disk of the appliance VM, and is read at storage speed.

The fastest way, where it works: the appliance runs in the same datacenter, on a host that reaches
the datastore. What is known to fail, or to hurt the source, is refused beforehand; the rest fails
in `open`, which leaves nothing attached.

Thread model: as the contract; one `HotAdd` per run, all over one `ApplianceDisks` per process.

Source: design notes section 4a; Broadcom KB 2010953 (NFSv3 lock hand-over), 306343 (vSAN).
"""

from __future__ import annotations

import logging
from pathlib import Path

from vmware.datastores import DatastoreFacts, datastores_of
from vmware.disks import DiskInfo, split_file_name
from vmware.errors import UnsupportedError, VsphereError
from vmware.inventory import VmInfo, read_vm
from vmware.session import Session
from vmware.transports.appliance_disks import ApplianceDisks, Attachment, DiskMode, SourceDisk
from vmware.transports.appliance_vm import Whereabouts, find_appliance_vm
from vmware.transports.attach_intent import Record, unrecorded
from vmware.transports.choice import of_error
from vmware.transports.contract import DiskReader, DiskRequest, DiskWriter, Refusal
from vmware.transports.direct_device import DirectReader, DirectWriter

log = logging.getLogger(__name__)

_FIRST_BYTES = 4096


class HotAdd:
    """The transport `hot-add`."""

    name = "hot-add"

    def __init__(self, disks: ApplianceDisks, *, run_id: str, record: Record = unrecorded) -> None:
        self._disks = disks
        self._run_id = run_id
        self._record = record

    def refusal(self, request: DiskRequest) -> Refusal | None:
        try:
            return self._refusal(request.session, request.vm, request.disk)
        except VsphereError as error:
            return of_error(error)

    def open(self, request: DiskRequest) -> DiskReader:
        attachment = self._attach(request.session, request.disk, DiskMode.READ)
        reader: DirectReader | None = None
        try:
            reader = DirectReader(
                _path(attachment), request.disk.capacity_bytes, lambda: _give_back(attachment)
            )
            reader.read_at(0, min(_FIRST_BYTES, reader.size_bytes))
        except BaseException:
            if reader is None:
                _give_back(attachment)
            else:
                reader.close()
            raise
        return reader

    def open_writer(
        self, session: Session, vm: VmInfo, disk: DiskInfo, *, empty: bool
    ) -> DiskWriter:
        """Attach a disk of a VM that is off for writing.

        `disk` is the file to write to, never a snapshot's redo log. `empty`: it was just made, so
        it reads as zeros. `close` raises when the disk could not be detached again.

        Raises: UnsupportedError: `refusal` says why; other VsphereErrors. Nothing is attached.
        """
        refusal = self._refusal(session, vm, disk)
        if refusal is not None:
            raise UnsupportedError(f"{disk.label}: {refusal.text}; {refusal.next_step}")
        attachment = self._attach(session, disk, DiskMode.WRITE)
        try:
            return DirectWriter(
                _path(attachment), disk.capacity_bytes, attachment.release, empty=empty
            )
        except BaseException:
            _give_back(attachment)
            raise

    def _attach(self, session: Session, disk: DiskInfo, mode: DiskMode) -> Attachment:
        appliance = find_appliance_vm(session, self._disks.devices.product_uuid())
        if isinstance(appliance, Whereabouts):
            raise UnsupportedError(f"hot-add: {appliance.value}")
        source = SourceDisk(
            file_name=disk.file_name,
            capacity_bytes=disk.capacity_bytes,
            backing_uuid=disk.backing_uuid or None,
        )
        return self._disks.attach(
            session, appliance, source, mode, run_id=self._run_id, record=self._record
        )

    def _refusal(self, session: Session, vm: VmInfo, disk: DiskInfo) -> Refusal | None:
        of_disk = _of_disk(disk)
        if of_disk is not None:
            return of_disk
        moref = find_appliance_vm(session, self._disks.devices.product_uuid())
        if isinstance(moref, Whereabouts):
            return Refusal(
                code="transport.appliance-not-here",
                text=moref.value,
                next_step="run the appliance as a VM of this vCenter to read its disks directly",
            )
        appliance = read_vm(session, moref)
        place = _of_place(vm, appliance) or _of_datastores(
            vm, disk, appliance, datastores_of(session, vm.moref), session
        )
        if place is not None:
            return place
        if not self._disks.has_slot(session, moref):
            return Refusal(
                code="transport.no-scsi-slot",
                text="every place on the appliance's SCSI controllers is taken",
                next_step="add a paravirtual SCSI controller to the appliance VM",
            )
        return None


def _of_disk(disk: DiskInfo) -> Refusal | None:
    if disk.controller_family == "ide":
        return Refusal(
            code="transport.ide-disk",
            text=f"{disk.label} is on an IDE controller, and such disks cannot be hot-added",
            next_step="move it to a SCSI, SATA or NVMe controller",
        )
    if disk.rdm_compatibility:
        return Refusal(
            code="transport.raw-device",
            text=f"{disk.label} is a raw device mapping",
            next_step="none: another transport reads it",
        )
    return None


def _of_place(vm: VmInfo, appliance: VmInfo) -> Refusal | None:
    if appliance.moref == vm.moref:
        return Refusal(
            code="transport.own-disk",
            text="the VM is the appliance itself",
            next_step="none: another transport reads it",
        )
    if appliance.datacenter_moref != vm.datacenter_moref:
        return Refusal(
            code="transport.other-datacenter",
            text=f"the appliance is in datacenter {appliance.datacenter_path}, the VM in "
            f"{vm.datacenter_path}",
            next_step="run an appliance in the VM's datacenter",
        )
    return None


def _of_datastores(
    vm: VmInfo,
    disk: DiskInfo,
    appliance: VmInfo,
    datastores: tuple[DatastoreFacts, ...],
    session: Session,
) -> Refusal | None:
    needed = {split_file_name(name)[0] for name in (disk.file_name, *disk.chain) if name}
    known = {datastore.name: datastore for datastore in datastores}
    for name in sorted(needed):
        datastore = known.get(name)
        if datastore is None or appliance.host_moref not in datastore.writable_hosts:
            return Refusal(
                code="transport.datastore-out-of-reach",
                text=f"the appliance's host {appliance.host_name} cannot write to the vSphere "
                f"datastore {name or '(unknown)'}",
                next_step="mount the datastore there, or run the appliance on a host that has it",
            )
        if datastore.kind.upper() == "NFS" and appliance.host_moref != vm.host_moref:
            return Refusal(
                code="transport.nfs-other-host",
                text=f"{name} is an NFS 3 datastore and the VM runs on another host than the "
                "appliance: hot-add would freeze the VM for half a minute",
                next_step="run an appliance on the VM's host",
            )
        if datastore.kind.lower() == "vsan" and not any(
            own.kind.lower() == "vsan" for own in datastores_of(session, appliance.moref)
        ):
            return Refusal(
                code="transport.appliance-not-on-vsan",
                text=f"{name} is a vSAN datastore, and the appliance has no disk on vSAN",
                next_step="put the appliance on a vSAN datastore",
            )
    return None


def _path(attachment: Attachment) -> Path:
    return attachment.device.path


def _give_back(attachment: Attachment) -> None:
    """What cannot be taken off stays in the journal of intents."""
    try:
        attachment.release()
    except VsphereError as error:
        log.warning("a hot-added disk could not be detached: %s", error)
