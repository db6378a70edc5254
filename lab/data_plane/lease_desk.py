"""Who makes leases: ExportVm, ExportSnapshot and ImportVApp.

While a lease is held the engine refuses to power, destroy or move the VM. An import that does not
end in HttpNfcLeaseComplete takes its VM away again.
Source: vSphere Web Services API, HttpNfcLease; design notes on vSphere, section 4c.
Thread model: any thread; a lease gets ready on a thread of its own, which `close` joins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pyVmomi import vim, vmodl

from lab.data_plane.import_spec import FileKind, ImportFile, engine_spec, import_files
from lab.data_plane.lease import (
    Lease,
    LeaseEndedError,
    LeaseFile,
    LeaseMode,
    LeaseState,
    OnEnd,
)
from lab.data_plane.lease_table import LeaseTable
from lab.data_plane.soap_lease import Leased, NfcLease, TransferPlace
from lab.esx.datastore import Datastores
from lab.esx.disk_chain import open_chain
from lab.esx.errors import HostError
from lab.esx.hardware import Disk, VmConfig
from lab.esx.vm_state import PowerState
from lab.faults import FaultName, FaultSwitches
from lab.vcenter.call import Call
from lab.vcenter.compute import ResourcePool
from lab.vcenter.folders import Folder
from lab.vcenter.host_faults import host_faults
from lab.vcenter.hosts import HostSystem
from lab.vcenter.lab_vcenter import LabVcenter

_STUCK_S = 3600.0


class ImportedVms(Protocol):
    """How an import makes its VM, and takes it away again. Raises vim faults."""

    def create(
        self, call: Call, spec: Any, folder: Folder, pool: ResourcePool, host: HostSystem | None
    ) -> Leased:
        """A VM with empty disks from a ConfigSpec."""
        ...

    def destroy(self, leased: Leased) -> None:
        """With its files. Idempotent."""
        ...


class LeaseDesk:
    """Begins leases. `place_of` says where a host's transfers are served."""

    def __init__(
        self,
        vcenter: LabVcenter,
        table: LeaseTable,
        datastores: Datastores,
        switches: FaultSwitches,
        place_of: Callable[[HostSystem | None], TransferPlace],
        imported: ImportedVms,
    ) -> None:
        self._vcenter = vcenter
        self._table = table
        self._datastores = datastores
        self._switches = switches
        self._place_of = place_of
        self._closing = threading.Event()
        self._threads: set[threading.Thread] = set()
        self._imported = imported

    def export_vm(self, call: Call, leased: Leased, host: HostSystem | None) -> Any:
        """ExportVm. Raises InvalidPowerState."""
        with host_faults():
            leased.engine.refuse_unless(PowerState.OFF)
        return self.export(call, leased, host)

    def export(self, call: Call, leased: Leased, host: HostSystem | None) -> Any:
        """ExportSnapshot, of the disks that `leased.config` shows as frozen."""
        if leased.engine.leases:
            raise vim.fault.TaskInProgress(msg="The virtual machine is exported already.")

        def on_end(lease: Lease, _state: LeaseState) -> None:
            leased.engine.release_lease(lease.lease_id)

        return self._begin(
            call, LeaseMode.EXPORT, leased, host, on_end, lambda: self._export_files(leased)
        )

    def import_vapp(
        self, call: Call, pool: ResourcePool, spec: Any, folder: Folder, host: HostSystem | None
    ) -> Any:
        """ImportVApp with a VmImportSpec."""
        if not isinstance(spec, vim.vm.VmImportSpec):
            raise vmodl.fault.NotSupported(msg="Only VmImportSpec is supported.")
        imported = self._imported
        wanted = list(import_files(spec.configSpec))
        leased = imported.create(call, engine_spec(spec.configSpec), folder, pool, host)

        def on_end(lease: Lease, state: LeaseState) -> None:
            leased.engine.release_lease(lease.lease_id)
            if state is LeaseState.ERROR:
                imported.destroy(leased)

        return self._begin(
            call, LeaseMode.IMPORT, leased, host, on_end, lambda: _import_files(leased, wanted)
        )

    def close(self) -> None:
        """Join the threads of leases that get ready. Idempotent."""
        self._closing.set()
        for thread in list(self._threads):
            thread.join()

    def _begin(
        self,
        call: Call,
        mode: LeaseMode,
        leased: Leased,
        host: HostSystem | None,
        on_end: OnEnd,
        files: Callable[[], Sequence[LeaseFile]],
    ) -> Any:
        session = call.authenticated()
        lease = self._table.begin(mode, on_end)
        leased.engine.hold_lease(lease.lease_id)
        shown = NfcLease(self._vcenter, lease, leased, self._place_of(host))
        shown.owner = session
        thread = threading.Thread(
            target=self._get_ready, args=(lease, leased, files), name="lab-lease"
        )
        self._threads.add(thread)
        thread.start()
        return shown.ref

    def _get_ready(
        self, lease: Lease, leased: Leased, files: Callable[[], Sequence[LeaseFile]]
    ) -> None:
        fields = {"vm": leased.entity.moid, "vm_name": leased.config.name}
        try:
            if self._switches.take(FaultName.LEASE_STUCK, **fields):
                self._closing.wait(_STUCK_S)
            if self._switches.take(FaultName.LEASE_ERROR, **fields):
                lease.fail(LeaseEndedError("CannotAccessFile", "the host cannot open the disk"))
                return
            try:
                lease.make_ready(files())
            except HostError as error:
                lease.fail(LeaseEndedError(error.fault, str(error)))
            self._table.wake()
        finally:
            self._threads.discard(threading.current_thread())

    def _export_files(self, leased: Leased) -> list[LeaseFile]:
        """Disks that a snapshot covers, then nvram."""
        found: list[LeaseFile] = []
        moid, config = leased.entity.moid, leased.config
        for disk in config.disks:
            if disk.mode.independent:
                continue
            chain = open_chain(self._datastores, disk.path)
            entries = [self._datastores.stat(path) for path in chain.paths()]
            found.append(
                LeaseFile(
                    key=f"/{moid}/{_controller_name(config, disk)}:{disk.unit}",
                    import_key=f"/{config.name}/{_controller_name(config, disk)}:{disk.unit}",
                    target_id=f"disk-{len(found)}.vmdk",
                    kind=FileKind.DISK,
                    path=disk.path,
                    disk_key=disk.key,
                    capacity_bytes=chain.capacity_bytes,
                    stored_bytes=sum(entry.allocated_bytes for entry in entries if entry),
                )
            )
        nvram = self._datastores.stat(config.nvram_path)
        if nvram is not None:
            found.append(
                LeaseFile(
                    key=f"/{moid}/nvram",
                    import_key=f"/{config.name}/nvram",
                    target_id=f"{config.name}.nvram",
                    kind=FileKind.NVRAM,
                    path=config.nvram_path,
                    disk_key=0,
                    capacity_bytes=0,
                    stored_bytes=nvram.size_bytes,
                )
            )
        return found


def _import_files(leased: Leased, wanted: Sequence[ImportFile]) -> list[LeaseFile]:
    """The spec's uploads; a disk is known by its place on the bus."""
    config = leased.config
    places = {f"{_controller_name(config, disk)}:{disk.unit}": disk for disk in config.disks}
    found = []
    for number, file in enumerate(wanted):
        disk = None
        if file.kind is FileKind.DISK:  # one whose unit the host chose is the next that is left
            place = file.key.rpartition("/")[2]
            disk = places.pop(place if place in places else next(iter(places)))
        if disk is not None:
            target_id, path = f"disk-{number}.vmdk", disk.path
        elif file.kind is FileKind.NVRAM:
            target_id, path = f"{config.name}.nvram", config.nvram_path
        else:
            target_id = f"file-{number}.iso"
            path = config.folder.child(target_id)
        found.append(
            LeaseFile(
                key=f"/{leased.entity.moid}/{file.key.rpartition('/')[2]}",
                import_key=file.key,
                target_id=target_id,
                kind=file.kind,
                path=path,
                disk_key=disk.key if disk else 0,
                capacity_bytes=disk.capacity_bytes if disk else 0,
                stored_bytes=0,
            )
        )
    return found


_CONTROLLER_NAMES = {
    "pvscsi": "ParaVirtualSCSIController",
    "lsisas1068": "VirtualLsiLogicSASController",
    "lsilogic": "VirtualLsiLogicController",
    "buslogic": "VirtualBusLogicController",
    "sata": "VirtualAHCIController",
    "nvme": "VirtualNVMEController",
    "ide": "VirtualIDEController",
}


def _controller_name(config: VmConfig, disk: Disk) -> str:
    controller = config.controller(disk.controller_key)
    if controller is None:
        return "Controller"
    return f"{_CONTROLLER_NAMES[controller.kind]}{controller.bus_number}"
