"""The virtual machine whose guest is this very machine: the backup appliance's own.

It is always on and no QEMU runs it. A disk that is hot-added to it becomes a block device here
(`exported_disk`), which its device tree shows (`device_tree`). It can be neither powered off nor
have snapshots. Source: design notes on vSphere, section 4a.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from dataclasses import replace
from pathlib import Path

from lab.esx.change_tracking import new_tracking
from lab.esx.datastore_path import DatastorePath
from lab.esx.delta_files import make_delta, remove_disk_files
from lab.esx.device_tree import AttachedDisk, DeviceTree
from lab.esx.disk_chain import DiskChain
from lab.esx.errors import HostError
from lab.esx.exported_disk import ExportedDisk, release_dead_exports, release_exports_below
from lab.esx.hardware import Controller, Disk, DiskMode, VmConfig
from lab.esx.site import Site
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_state import GuestInfo, Heartbeat, NotSupportedError, PowerState
from lab.esx.vmdk import DiskFile
from lab.faults import FaultName


class ApplianceVm(VirtualMachine):
    """`device_root` is a folder that does not exist; what is told to look there finds its disks."""

    def __init__(self, site: Site, vm_id: str, config: VmConfig, device_root: Path) -> None:
        release_dead_exports()
        slots = {
            f"{one.prefix}.pciSlotNumber": str(one.pci_slot)
            for one in config.controllers
            if one.kind.bus == "scsi"
        }
        super().__init__(site, vm_id, replace(config, extra={**slots, **config.extra}))
        self.power, self.boot_time = PowerState.ON, site.now()
        self.device_root = device_root
        self._tree = DeviceTree(device_root, config.uuid)
        self._exports: dict[int, ExportedDisk] = {}
        self._redo: dict[int, DiskFile] = {}
        self._decoys: dict[int, Path] = {}
        for controller in config.controllers:
            self._show(controller)

    @property
    def guest_info(self) -> GuestInfo:
        return GuestInfo(
            tools_running=True,
            heartbeat=Heartbeat.GREEN,
            host_name=socket.gethostname(),
            ip_address="127.0.0.1",
        )

    @property
    def can_plug_controllers(self) -> bool:
        return True

    def controller_added(self, controller: Controller) -> None:
        self._show(controller)

    def refuse_if_appliance(self) -> None:
        raise NotSupportedError("the appliance cannot do that while it runs the lab")

    def plug(self, disk: Disk, controller: Controller, chain: DiskChain) -> None:
        self._show(controller)
        redo = disk.mode is DiskMode.INDEPENDENT_NONPERSISTENT
        if redo:
            path = _redo_path(disk.path, self.vm_id, disk.key)
            self._redo[disk.key] = make_delta(self.site.datastores, path, chain.leaf)
            chain = DiskChain(files=(self._redo[disk.key], *chain.files))
        else:
            self._distrust_tracking(chain)
        try:
            export = ExportedDisk(
                self.site.datastores, chain, self.run_folder / f"disk-{disk.key}", redo=redo
            )
        except HostError:
            self._drop_redo(disk.key)
            raise
        self._exports[disk.key] = export
        assert export.device is not None
        attached = AttachedDisk(
            bus=controller.bus_number,
            unit=disk.unit,
            size_bytes=disk.capacity_bytes,
            uuid=disk.uuid if self.config.disk_uuid_enabled else "",
            node=export.device,
        )
        fields = {"vm": self.vm_id, "vm_name": self.config.name, "path": str(disk.path)}
        if self.site.faults.take(FaultName.HOT_ADD_NEVER_APPEARS, **fields):
            return
        if self.site.faults.take(FaultName.HOT_ADD_WRONG_DISK, **fields):
            attached = self._decoy(disk, attached)
        self._tree.attach(attached)

    def unplug(self, disk: Disk) -> None:
        controller = self.config.controller(disk.controller_key)
        bus = controller.bus_number if controller is not None else disk.controller_key - 1000
        self._tree.detach(bus, disk.unit)
        if (export := self._exports.pop(disk.key, None)) is not None:
            export.close()
        if (decoy := self._decoys.pop(disk.key, None)) is not None:
            decoy.unlink()
        self._drop_redo(disk.key)

    def disk_grown(self, disk: Disk) -> None:
        raise NotSupportedError("a disk of the appliance cannot grow while it is attached")

    def close(self) -> None:
        self._tree.close()
        for export in self._exports.values():
            with contextlib.suppress(HostError, OSError):
                export.close()
        self._exports.clear()
        for key in list(self._redo):
            with contextlib.suppress(HostError):
                self._drop_redo(key)
        release_exports_below(self.run_folder)
        shutil.rmtree(self.device_root, ignore_errors=True)
        super().close()

    def _show(self, controller: Controller) -> None:
        if controller.kind.bus == "scsi":
            self._tree.add_controller(controller)

    def _distrust_tracking(self, chain: DiskChain) -> None:
        """Nobody tracks what is written here: every changeId of the disk is void."""
        track = chain.base.track_path
        if self.site.datastores.exists(track):
            fresh = new_tracking(chain.capacity_bytes).encode()
            self.site.datastores.files_of(track).replace(track.path, fresh)

    def _decoy(self, disk: Disk, attached: AttachedDisk) -> AttachedDisk:
        path = self.run_folder / f"decoy-{disk.key}.img"
        with path.open("wb") as file:
            file.truncate(disk.capacity_bytes)
        self._decoys[disk.key] = path
        digits = "6000c29" + "0" * 25
        other = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        return replace(attached, uuid=other, node=path)

    def _drop_redo(self, key: int) -> None:
        if (redo := self._redo.pop(key, None)) is not None:
            remove_disk_files(self.site.datastores, redo)


def _redo_path(path: DatastorePath, vm_id: str, key: int) -> DatastorePath:
    return path.sibling(f"{path.name.removesuffix('.vmdk')}-REDO-{vm_id}-{key}.vmdk")
