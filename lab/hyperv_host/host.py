"""A practice Hyper-V host: its machines, switches, jobs and reference points, on real files.

`D:\\Hyper-V` holds the machines that it starts with, `E:\\` is storage to move them to. Everything
is below one folder; nothing is left when the host is closed.

Thread model: any thread; a machine's operations are serialised by the machine.
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lab.esx.areas import Area, clipped
from lab.faults import FaultName, FaultSwitches
from lab.hyperv_host.checkpoints import create_checkpoint, remove_checkpoint
from lab.hyperv_host.cluster_view import ClusterView
from lab.hyperv_host.errors import FAILED, HypervError, NotFoundError, ParameterError
from lab.hyperv_host.file_holds import FileHolds, NoHolds
from lab.hyperv_host.jobs import Job, Jobs
from lab.hyperv_host.site import HostSite
from lab.hyperv_host.vhdx_chain import create_disk
from lab.hyperv_host.vhdx_disk import VhdxDisk
from lab.hyperv_host.vhdx_format import MIB
from lab.hyperv_host.virtual_machine import Checkpoint, HypervVm
from lab.hyperv_host.vm_settings import (
    WINDOWS_TEMPLATE,
    Adapter,
    ControllerType,
    Drive,
    Memory,
    VmSettings,
    new_identity,
    new_mac,
    new_scsi_ids,
)
from lab.hyperv_host.windows_path import Volumes, WindowsPath

VM_FOLDER = WindowsPath("D:\\Hyper-V")
SWITCH = "Production"
_DRIVES = "CDE"
_GUEST_BLOCK_BYTES = 2 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    switch_id: str
    name: str
    kind: str  # private, internal, external
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePoint:
    """`disks`: (attachment, change tracking id)."""

    point_id: str
    vm_id: str
    consistency: int
    disks: tuple[tuple[str, str], ...]


class HypervHost:
    def __init__(
        self,
        folder: Path,
        run_folder: Path,
        *,
        computer: str,
        faults: FaultSwitches | None = None,
        heartbeat_s: float = 5.0,
        cluster: ClusterView | None = None,
    ) -> None:
        """`folder` takes the volumes; `run_folder` sockets and logs, its path must be short.

        `cluster`: the failover cluster that it is a node of.
        """
        self.cluster = cluster
        self.computer = computer
        self.faults = faults or FaultSwitches()
        self.volumes = Volumes(folder, _DRIVES)
        self.volumes.place(VM_FOLDER).mkdir(exist_ok=True)
        self.jobs = Jobs()
        self.switches = [
            Switch(switch_id=str(uuid.uuid4()), name=SWITCH, kind="external"),
            Switch(switch_id=str(uuid.uuid4()), name="Isolated", kind="private"),
        ]
        self.site = HostSite(
            volumes=self.volumes,
            run_folder=run_folder,
            faults=self.faults,
            reachable_switches=frozenset({SWITCH}),
            stopping=self.jobs.stopping.is_set,
            heartbeat_s=heartbeat_s,
        )
        self._lock = threading.Lock()
        self._vms: dict[str, HypervVm] = {}
        self._points: list[ReferencePoint] = []

    def use_holds(self, holds: FileHolds) -> None:
        """Before a machine is started."""
        self.site.holds = holds

    def close(self) -> None:
        """End every job and guest. Idempotent."""
        self.jobs.close()
        self.site.holds = NoHolds()
        for vm in self.vms():
            vm.close()

    # ------------------------------------------------------------------ machines

    def vms(self) -> list[HypervVm]:
        with self._lock:
            return list(self._vms.values())

    def vm(self, vm_id: str) -> HypervVm:
        """Raises NotFoundError."""
        with self._lock:
            found = self._vms.get(vm_id.strip("{}").lower())
        if found is None:
            raise NotFoundError(f"Hyper-V was unable to find a virtual machine with id {vm_id}.")
        return found

    def new_vm(
        self,
        name: str,
        folder: WindowsPath,
        *,
        generation: int,
        memory: Memory,
        version: str = "",
        scsi_controllers: int = 1,
    ) -> HypervVm:
        """Without disks and adapters, off. Raises ParameterError."""
        if generation not in (1, 2) or not name.strip() or "\\" in name:
            raise ParameterError("The parameter is incorrect.")
        if not 32 << 20 <= memory.startup_bytes <= 12 << 40:
            raise ParameterError("The startup memory is out of range.")
        settings = VmSettings(
            vm_id=str(uuid.uuid4()),
            name=name,
            folder=folder.joined(name),
            generation=generation,
            version=version or "10.0",
            processors=1,
            memory=memory,
            identity=new_identity(),
            scsi_ids=new_scsi_ids(scsi_controllers),
        )
        if generation == 2:  # as New-VM makes them
            settings = settings.with_secure_boot(WINDOWS_TEMPLATE)
        vm = HypervVm(self.site, settings)
        with self._lock:
            self._vms[settings.vm_id] = vm
        return vm

    def remove_vm(self, vm: HypervVm) -> None:
        """Its disk files stay."""
        vm.turn_off()
        with self._lock:
            self._vms.pop(vm.settings.vm_id, None)
            vm_id = vm.settings.vm_id
            self._points = [point for point in self._points if point.vm_id != vm_id]
        paths = [vm.settings.vmcx_path.folder.joined(f"{vm.settings.vmcx_path.stem}.vmrs")]
        for path in (vm.settings.vmcx_path, *paths):
            self.volumes.place(path).unlink(missing_ok=True)
        for name in ("Virtual Machines", "Snapshots", ""):
            place = self.volumes.place(
                vm.settings.folder.joined(name) if name else vm.settings.folder
            )
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()

    def add_guest(
        self,
        name: str,
        image: Path,
        *,
        memory_mib: int,
        generation: int = 1,
        secure_boot: str = "",
        folder: WindowsPath = VM_FOLDER,
    ) -> HypervVm:
        """A machine whose first disk is a copy of a raw image, connected.

        `secure_boot`: the template of a generation 2 machine, "": off.
        """
        memory_bytes = memory_mib << 20
        memory = Memory(
            startup_bytes=memory_bytes,
            minimum_bytes=memory_bytes,
            maximum_bytes=memory_bytes,
            dynamic=False,
        )
        vm = self.new_vm(name, folder, generation=generation, memory=memory)
        path = vm.settings.folder.joined("Virtual Hard Disks", f"{name}.vhdx")
        place = self.volumes.place(path)
        place.parent.mkdir(parents=True)
        copy_image(image, place)
        adapter = Adapter(
            adapter_id=str(uuid.uuid4()).upper(),
            name="Network Adapter",
            mac=new_mac(),
            dynamic_mac=True,
            switch=SWITCH,
        )
        kind = ControllerType.IDE if generation == 1 else ControllerType.SCSI
        drive = Drive(controller=kind, controller_number=0, location=0, path=path)
        settings = vm.settings.with_secure_boot(secure_boot).with_drive(drive)
        vm.update(replace(settings, adapters=(adapter,)))
        return vm

    def switch(self, name: str) -> Switch:
        """Raises NotFoundError."""
        for switch in self.switches:
            if switch.name.lower() == name.lower():
                return switch
        raise NotFoundError(f"no virtual switch is named '{name}'")

    def hand_over(self, vm: HypervVm, to: HypervHost) -> None:
        """The machine and its reference points belong to another node from now on.

        Its operation is held by the caller.
        """
        vm_id = vm.settings.vm_id
        with self._lock:
            del self._vms[vm_id]
            points = [point for point in self._points if point.vm_id == vm_id]
            self._points = [point for point in self._points if point.vm_id != vm_id]
        vm.site = to.site
        with to._lock:
            to._vms[vm_id] = vm
            to._points += points

    @contextmanager
    def own(self, vm: HypervVm) -> Iterator[None]:
        """One operation of a machine that is here. Raises NotFoundError: it has moved away."""
        with vm.operation():
            self.vm(vm.settings.vm_id)
            yield

    def add_private_switch(self, name: str, notes: str) -> Switch:
        switch = Switch(switch_id=str(uuid.uuid4()), name=name, kind="private", notes=notes)
        with self._lock:
            self.switches = [*self.switches, switch]
        return switch

    def remove_switch(self, switch: Switch) -> None:
        with self._lock:
            self.switches = [one for one in self.switches if one is not switch]

    def vms_on(self, switch: Switch) -> list[HypervVm]:
        return [
            vm
            for vm in self.vms()
            if any(one.switch.lower() == switch.name.lower() for one in vm.settings.adapters)
        ]

    # ------------------------------------------------------------------ checkpoints

    def checkpoint(self, instance_id: str) -> tuple[HypervVm, Checkpoint]:
        """Raises NotFoundError."""
        for vm in self.vms():
            for checkpoint in vm.checkpoints:
                if checkpoint.instance_id.lower() == instance_id.lower():
                    return vm, checkpoint
        raise NotFoundError(f"no checkpoint {instance_id}")

    def start_checkpoint(
        self, vm: HypervVm, *, recovery: bool, consistency: int, backup_type: str = "copy"
    ) -> Job:
        def work(job: Job) -> None:
            with self.own(vm):
                create_checkpoint(
                    vm, recovery=recovery, consistency=consistency, job=job, backup_type=backup_type
                )

        return self.jobs.start("Creating Checkpoint", work)

    def start_removal(self, vm: HypervVm, checkpoint: Checkpoint) -> Job:
        def work(_: Job) -> None:
            with self.own(vm):
                remove_checkpoint(vm, checkpoint)

        return self.jobs.start("Deleting Checkpoint", work)

    def start_conversion(self, vm: HypervVm, checkpoint: Checkpoint) -> Job:
        """Make the reference point of the checkpoint's moment, then remove the checkpoint."""

        def work(job: Job) -> None:
            with self.own(vm):
                convert(job)

        def convert(job: Job) -> None:
            empty = self.faults.take(FaultName.RCT_EMPTY_ID, **vm.fault_fields)
            disks = []
            for drive in vm.settings.drives:
                if drive.name in checkpoint.moments:
                    tracking = vm.tracked[drive.name].tracking
                    rct_id = "" if empty else tracking.id_of(checkpoint.moments[drive.name])
                    disks.append((vm.settings.attachment(drive), rct_id))
            point = ReferencePoint(
                point_id=f"Microsoft:{vm.settings.vm_id.upper()}\\{str(uuid.uuid4()).upper()}",
                vm_id=vm.settings.vm_id,
                consistency=checkpoint.consistency,
                disks=tuple(disks),
            )
            with self._lock:
                self._points.append(point)
            job.reference_points.append(point.point_id)
            remove_checkpoint(vm, checkpoint)

        return self.jobs.start("Converting Checkpoint to Reference Point", work)

    def reference_points(self) -> list[ReferencePoint]:
        with self._lock:
            return list(self._points)

    def remove_reference_point(self, point_id: str) -> None:
        with self._lock:
            self._points = [one for one in self._points if one.point_id != point_id]

    def changes(self, path: WindowsPath, limit_id: str, offset: int, length: int) -> Iterable[Area]:
        """What differs in a region of a frozen file from the state of an earlier id.

        Raises:
            NotFoundError, ParameterError, HypervError
        """
        for vm in self.vms():
            for checkpoint in vm.checkpoints:
                for name, frozen in checkpoint.frozen.items():
                    if not frozen.same(path):
                        continue
                    if self.faults.take(FaultName.RCT_QUERY_FAILURE, **vm.fault_fields):
                        raise HypervError("GetVirtualDiskChanges", FAILED)
                    tracking = vm.tracked[name].tracking
                    if not 0 < length < tracking.size_bytes or offset >= tracking.size_bytes:
                        raise ParameterError("ByteLength must be less than the size of the disk")
                    areas = tracking.changes(limit_id, checkpoint.moments[name])
                    return clipped(areas, offset, offset + length)
        raise NotFoundError(f"'{path}' is not the file of a checkpoint")


def copy_image(image: Path, place: Path) -> None:
    """Raw to VHDX, blocks of zeros left out."""
    size_bytes = -(-image.stat().st_size // MIB) * MIB
    create_disk(place, size_bytes, block_bytes=_GUEST_BLOCK_BYTES)
    disk, zeros = VhdxDisk(place, writable=True), bytes(_GUEST_BLOCK_BYTES)
    try:
        with image.open("rb") as file:
            for offset in _data_blocks(file.fileno(), image.stat().st_size):
                block = os.pread(file.fileno(), _GUEST_BLOCK_BYTES, offset)
                if block != zeros[: len(block)]:
                    disk.write_at(offset, block.ljust(-(-len(block) // 512) * 512, b"\0"))
        disk.flush()
    finally:
        disk.close()


def _data_blocks(fd: int, size_bytes: int) -> Iterator[int]:
    """Where blocks begin that are not holes of the file."""
    offset = 0
    while offset < size_bytes:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset -= offset % _GUEST_BLOCK_BYTES
        yield offset
        offset += _GUEST_BLOCK_BYTES
