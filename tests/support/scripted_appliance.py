"""The appliance VM in memory, joined to a guest's /sys and /dev: attached disks appear there.

appliance = ScriptedAppliance(server, GuestScsi(tmp_path))
appliance.files["[ds] web/web.vmdk"] = BackingFile(content=b"…", uuid="6000C29a-…")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.support.guest_scsi import GuestScsi
from tests.support.scripted_vcenter import ScriptedObject, ScriptedVcenter, ScriptedVm

PRODUCT_UUID = "42220000-1122-3344-5566-77889900aabb"
SWAPPED_UUID = "00002242-2211-4433-5566-77889900aabb"

_Disk = vim.vm.device.VirtualDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class BackingFile:
    """What a datastore has under a name. `shown_uuid`: what the guest sees, if another."""

    content: bytes | Path
    uuid: str = ""
    shown_uuid: str | None = None
    shown_size: int = -1


class ScriptedAppliance(ScriptedVm):
    def __init__(self, server: ScriptedVcenter, guest: GuestScsi, moref: str = "vm-9") -> None:
        super().__init__(server, moref)
        self.guest = guest
        self.files: dict[str, BackingFile] = {}
        self.appears = True
        self.modes: list[str] = []
        self.values["config.extraConfig"] = [
            vim.option.OptionValue(key="scsi0.pciSlotNumber", value="192")
        ]
        self.values["config.hardware.device"] = [
            vim.vm.device.ParaVirtualSCSIController(
                key=1000, busNumber=0, sharedBus="noSharing", scsiCtlrUnitNumber=7
            ),
            _disk(2000, 0, "[ds] appliance/appliance.vmdk", "independent_persistent", 1 << 30),
        ]
        server.objects["search"] = ScriptedSearch(server, {PRODUCT_UUID: [moref]})

    @property
    def attached(self) -> list[str]:
        """Files of the disks that hang on it beside its own."""
        disks = [d for d in self.values["config.hardware.device"] if isinstance(d, _Disk)]
        return [disk.backing.fileName for disk in disks[1:]]

    def ReconfigVM_Task(self, spec: Any) -> Any:
        if not spec.deviceChange:
            return super().ReconfigVM_Task(spec)
        for change in spec.deviceChange:
            assert change.fileOperation is None, "a file operation would touch the source's disk"
            fault = (self._add if change.operation == "add" else self._remove)(change.device)
            if fault is not None:
                return self.server.task(error=fault)
        return self.server.task()

    def _add(self, disk: Any) -> Exception | None:
        devices = self.values["config.hardware.device"]
        taken = [d.unitNumber for d in devices if d.controllerKey == disk.controllerKey]
        if disk.unitNumber in [7, *taken] or disk.key >= 0:
            return vim.fault.InvalidDeviceSpec(deviceIndex=0)  # type: ignore[no-any-return]
        file = self.files.get(disk.backing.fileName)
        if file is None:
            return vim.fault.FileNotFound(file=disk.backing.fileName)  # type: ignore[no-any-return]
        self.modes.append(disk.backing.diskMode)
        key = 2000 + self.server.new_number()
        new = _disk(
            key,
            disk.unitNumber,
            disk.backing.fileName,
            disk.backing.diskMode,
            disk.capacityInKB * 1024,
            file.uuid,
        )
        self.values["config.hardware.device"] = [*devices, new]
        if self.appears:
            uuid = file.uuid if file.shown_uuid is None else file.shown_uuid
            self.guest.plug(file.content, unit=disk.unitNumber, uuid=uuid, size=file.shown_size)
        return None

    def _remove(self, disk: Any) -> Exception | None:
        devices = self.values["config.hardware.device"]
        found = [d for d in devices if d.key == disk.key]
        if not found:
            return vim.fault.InvalidDeviceSpec(deviceIndex=0)  # type: ignore[no-any-return]
        self.values["config.hardware.device"] = [d for d in devices if d.key != disk.key]
        if self.appears:
            self.guest.unplug(found[0].unitNumber)
        return None


class ScriptedSearch(ScriptedObject):
    """SMBIOS uuid -> morefs."""

    def __init__(self, server: ScriptedVcenter, by_uuid: dict[str, list[str]]) -> None:
        super().__init__({})
        self._server = server
        self.by_uuid = by_uuid

    def FindAllByUuid(self, datacenter: Any, uuid: str, vm: bool, instance: bool) -> Any:
        assert vm
        assert not instance
        morefs = self.by_uuid.get(uuid, [])
        return [vim.VirtualMachine(moref, self._server) for moref in morefs]


def _disk(
    key: int, unit: int, file_name: str, mode: str, capacity_bytes: int, uuid: str = ""
) -> Any:
    return _Disk(
        key=key,
        controllerKey=1000,
        unitNumber=unit,
        capacityInKB=capacity_bytes // 1024,
        capacityInBytes=capacity_bytes,
        backing=_Disk.FlatVer2BackingInfo(fileName=file_name, diskMode=mode, uuid=uuid),
    )
