"""HttpNfcLease as a managed object, and who makes one: ExportVm, ExportSnapshot, ImportVApp.

A lease belongs to the session that began it and is aborted when the session ends. While it is
held the engine refuses to power, destroy or move the VM. An import that does not end in
HttpNfcLeaseComplete takes its VM away again.
Source: vSphere Web Services API, HttpNfcLease; design notes on vSphere, section 4c.
Thread model: a lease gets ready on a thread of its own, which `close` joins.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from lab.data_plane.nfc import PREFIX
from lab.esx.datastore import Datastores
from lab.esx.disk_chain import open_chain
from lab.esx.errors import HostError
from lab.esx.hardware import Disk, VmConfig
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_state import PowerState
from lab.faults import FaultName, FaultSwitches
from lab.vcenter.call import Call
from lab.vcenter.certificate import ServerIdentity
from lab.vcenter.compute import ResourcePool
from lab.vcenter.folders import Folder
from lab.vcenter.host_faults import host_faults
from lab.vcenter.hosts import HostSystem
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.managed_object import LabObject, ManagedEntity, computed, method

_STUCK_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A VM under a lease: its inventory object, its engine, the disks that are meant."""

    entity: ManagedEntity
    engine: VirtualMachine
    config: VmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPlace:
    """Where a lease's URLs point."""

    authority: str  # "*:port" leaves the host to the client
    identity: ServerIdentity


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


class NfcLease(LabObject):
    vim_type = vim.HttpNfcLease
    moid_prefix = "session"

    def __init__(self, vcenter: LabVcenter, lease: Lease, leased: Leased, place: TransferPlace):
        super().__init__(vcenter, f"session[{lease.lease_id}]")
        self.lease = lease
        self._leased = leased
        self._place = place
        lease.changed = self.touch

    def guarded_by(self) -> LabObject:
        return self._leased.entity

    def unregister(self) -> None:
        """The session ended, or the lab."""
        self.lease.fail(LeaseEndedError("NotAuthenticated", "the session ended"))
        super().unregister()

    @computed("state")
    def _state(self, _call: Call | None) -> Any:
        return self.lease.state.value

    @computed("mode")
    def _mode(self, _call: Call | None) -> Any:
        return "pushOrGet"

    @computed("initializeProgress")
    def _initialize_progress(self, _call: Call | None) -> Any:
        return 0 if self.lease.state is LeaseState.INITIALIZING else 100

    @computed("transferProgress")
    def _transfer_progress(self, _call: Call | None) -> Any:
        return self.lease.percent

    @computed("capabilities")
    def _capabilities(self, _call: Call | None) -> Any:
        return vim.HttpNfcLease.Capabilities(pullModeSupported=False, corsSupported=False)

    @computed("error")
    def _error(self, _call: Call | None) -> Any:
        if self.lease.state is not LeaseState.ERROR or self.lease.error is None:
            return None
        return _fault(self.lease.error)

    @computed("info")
    def _info(self, _call: Call | None) -> Any:
        if self.lease.state is LeaseState.INITIALIZING or not self.lease.files:
            return None
        return vim.HttpNfcLease.Info(
            lease=self.ref,
            entity=self._leased.entity.ref,
            deviceUrl=[self._device_url(file) for file in self.lease.files],
            totalDiskCapacityInKB=sum(file.capacity_bytes for file in self.lease.files) >> 10,
            leaseTimeout=int(self.lease.timeout_s),
        )

    def _device_url(self, file: LeaseFile) -> Any:
        return vim.HttpNfcLease.DeviceUrl(
            key=file.key,
            importKey=file.import_key,
            url=f"https://{self._place.authority}{PREFIX}/{self.lease.lease_id}/{file.target_id}",
            sslThumbprint=self._place.identity.fingerprint_sha1,
            disk=file.kind is FileKind.DISK,
            targetId=file.target_id,
            fileSize=file.stored_bytes,
        )

    @method("HttpNfcLeaseProgress")
    def progress(self, _call: Call, percent: int) -> None:
        moid = self._leased.entity.moid
        if self.vcenter.switches.take(FaultName.LEASE_EXPIRY, vm=moid):
            self.lease.expire()
        try:
            self.lease.progress(percent)
        except ValueError as error:
            raise vmodl.fault.InvalidArgument(msg=str(error), invalidProperty="percent") from error
        except LeaseEndedError as error:
            raise _fault(error) from error

    @method("HttpNfcLeaseComplete")
    def complete(self, _call: Call) -> None:
        with _lease_faults():
            self.lease.complete()

    @method("HttpNfcLeaseAbort")
    def abort(self, _call: Call, _reason: Any) -> None:
        with _lease_faults():
            self.lease.abort()

    @method("HttpNfcLeaseGetManifest")
    def manifest(self, _call: Call) -> Any:
        with _lease_faults():
            self.lease.require_ready()
        return [
            vim.HttpNfcLease.ManifestEntry(
                key=entry.key,
                sha1=entry.checksum_hex if entry.checksum_type == "sha1" else "",
                checksum=entry.checksum_hex,
                checksumType=entry.checksum_type,
                size=entry.size_bytes,
                disk=entry.disk,
                capacity=entry.capacity_bytes if entry.disk else None,
                populatedSize=entry.populated_bytes if entry.disk else None,
            )
            for entry in self.lease.manifest()
        ]

    @method("HttpNfcLeaseSetManifestChecksumType")
    def set_checksum_types(self, _call: Call, chosen: list[Any]) -> None:
        with _lease_faults():
            self.lease.require_ready()
        for pair in chosen:
            try:
                self.lease.set_checksum_type(pair.key, pair.value.lower())
            except ValueError as error:
                raise vmodl.fault.InvalidArgument(
                    msg=f"no checksum type {error}", invalidProperty="deviceUrlsToChecksumTypes"
                ) from error


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
        disk = places[file.key.rpartition("/")[2]] if file.kind is FileKind.DISK else None
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


def _fault(error: LeaseEndedError) -> Any:
    kind = getattr(vim.fault, error.fault, None) or getattr(vmodl.fault, error.fault)
    return kind(msg=str(error))


@contextlib.contextmanager
def _lease_faults() -> Iterator[None]:
    try:
        yield
    except LeaseEndedError as error:
        raise _fault(error) from error
