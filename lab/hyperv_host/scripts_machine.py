"""The scripts that make, change, power, move and remove machines.

Thread model: as `script_call`; they block as the cmdlets do.
"""

from __future__ import annotations

import re
import shutil
import uuid
from dataclasses import replace
from functools import partial

from lab.faults import FaultName
from lab.hyperv_host.errors import HypervError, InUseError, NotFoundError, ParameterError
from lab.hyperv_host.host import HypervHost, copy_image
from lab.hyperv_host.iscsi import IscsiInitiator
from lab.hyperv_host.script_call import Document, Parameters, Script, ScriptStop
from lab.hyperv_host.scripts_inventory import find_vm
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import (
    DVD_SLOT,
    Adapter,
    ControllerType,
    Drive,
    Identity,
    Memory,
    VmSettings,
    VmState,
    new_mac,
)
from lab.hyperv_host.windows_path import WindowsPath

_MARKER = re.compile(r"holdfast-[0-9A-Za-z-]{1,90}")
_MAC = re.compile(r"[0-9A-Fa-f]{12}")
_SCSI_CONTROLLERS_MAX = 4


def machine_scripts(host: HypervHost, iscsi: IscsiInitiator) -> dict[str, Script]:
    ours = frozenset({"vm_id", "marker"})
    slot = frozenset({"controller", "controller_number", "location"})
    return {
        "new_vm": Script(
            partial(_new_vm, host),
            frozenset({"marker", "name", "folder", "generation", "version", "processors"})
            | {"nested", "memory", "secure_boot", "secure_boot_template", "tpm"}
            | {"scsi_controllers", "adapters", "identity"},
        ),
        "attach_disk": Script(
            partial(_attach_disk, host, iscsi),
            ours | slot | {"path", "disk_number", "boot_first"},
        ),
        "import_disk": Script(
            partial(_import_disk, host, iscsi),
            ours | slot | {"serial", "path"},
        ),
        "remove_vm": Script(partial(_remove_vm, host), ours),
        "set_notes": Script(partial(_set_notes, host), ours | {"name", "notes"}),
        "set_power": Script(partial(_set_power, host), frozenset({"vm_id", "power"})),
        "move_storage": Script(partial(_move_storage, host), frozenset({"vm_id", "folder"})),
        "configure_vm": Script(
            partial(_configure, host),
            frozenset({"vm_id", "processors", "nested", "memory", "secure_boot"})
            | {"secure_boot_template", "boot_disk", "adapters"},
        ),
        "apply_settings": Script(
            partial(_apply_settings, host),
            ours
            | {"start_action", "start_delay_s", "stop_action", "checkpoint_type"}
            | {"automatic_checkpoints", "processor", "memory", "adapters"},
        ),
        "swap_disks": Script(partial(_swap_disks, host), frozenset({"vm_id", "disks"})),
    }


def checked_marker(given: Parameters) -> str:
    marker = given.text("marker")
    if _MARKER.fullmatch(marker) is None:
        raise ScriptStop("bad-marker", marker)
    return marker


def _marked_vm(host: HypervHost, given: Parameters) -> HypervVm:
    vm = find_vm(host, given.text("vm_id"))
    marker = given.text("marker")
    if not marker or marker not in vm.settings.notes:
        raise ScriptStop("not-ours", vm.settings.vm_id)
    return vm


def _new_vm(host: HypervHost, given: Parameters) -> Document:
    marker = checked_marker(given)
    for adapter in given.records("adapters"):
        if adapter.text("switch_name"):
            _switch(host, adapter.text("switch_name"))
    scsi_controllers = given.number("scsi_controllers")
    if not 0 <= scsi_controllers <= _SCSI_CONTROLLERS_MAX:
        raise ParameterError("a machine has at most 4 SCSI controllers")
    vm = host.new_vm(
        given.text("name"),
        WindowsPath.parse(given.text("folder")),
        generation=given.number("generation"),
        version=given.text("version"),
        scsi_controllers=max(1, scsi_controllers),
        memory=_memory(given),
    )
    try:
        vm.update(_new_settings(vm.settings, given, marker))
    except HypervError:
        host.remove_vm(vm)
        raise
    return {"id": vm.settings.vm_id}


def _memory(given: Parameters) -> Memory:
    memory = given.record("memory")
    return Memory(
        startup_bytes=memory.number("startup_bytes"),
        minimum_bytes=memory.number("minimum_bytes"),
        maximum_bytes=memory.number("maximum_bytes"),
        dynamic=memory.flag("dynamic"),
    )


def _configure(host: HypervHost, given: Parameters) -> Document:
    vm = find_vm(host, given.text("vm_id"))
    with vm.operation():
        if vm.state is not VmState.OFF:
            raise ScriptStop("vm-not-off", "Running")
        switches = {one.text("id"): one.text("switch_name") for one in given.records("adapters")}
        for name in filter(None, switches.values()):
            _switch(host, name)
        settings = replace(
            vm.settings,
            processors=given.number("processors"),
            nested=given.flag("nested"),
            memory=_memory(given),
            adapters=tuple(
                replace(one, switch=switches.get(vm.settings.adapter_instance(one), one.switch))
                for one in vm.settings.adapters
            ),
        )
        if settings.generation == 2:
            settings = replace(
                settings,
                secure_boot=given.flag("secure_boot"),
                secure_boot_template=given.text("secure_boot_template"),
            )
            if given.has("boot_disk"):
                slot = given.record("boot_disk")
                drive = settings.drive(
                    slot.text("controller"),
                    slot.number("controller_number"),
                    slot.number("location"),
                )
                settings = replace(settings, boot_first=drive.name)
        vm.update(settings)
    return {"id": vm.settings.vm_id}


def _apply_settings(host: HypervHost, given: Parameters) -> Document:
    """What this host knows of; the rest it takes as a real one would."""
    vm = _marked_vm(host, given)
    settings = vm.settings
    refused = ["adapters"] if len(given.records("adapters")) > len(settings.adapters) else []
    for name in ("reserve", "limit", "weight"):
        given.record("processor").number(name)
    for name in ("buffer", "weight"):
        given.record("memory").number(name)
    if given.number("start_action") in (2, 3, 4) and given.number("stop_action") in (2, 3, 4):
        settings = replace(
            settings,
            start_action=given.number("start_action"),
            start_delay_s=given.number("start_delay_s"),
            stop_action=given.number("stop_action"),
        )
    else:
        refused.append("actions")
    vm.update(
        replace(
            settings,
            checkpoint_type=given.number("checkpoint_type"),
            automatic_checkpoints=given.flag("automatic_checkpoints"),
        )
    )
    return {"refused": refused}


def _switch(host: HypervHost, name: str) -> None:
    try:
        host.switch(name)
    except NotFoundError as error:
        raise ScriptStop("switch-not-found", name) from error


def _new_settings(settings: VmSettings, given: Parameters, marker: str) -> VmSettings:
    processors = given.number("processors")
    if not 1 <= processors <= 240:
        raise ParameterError("The number of virtual processors is out of range.")
    template = given.text("secure_boot_template") if given.flag("secure_boot") else ""
    if given.flag("secure_boot") and not template:
        raise ParameterError("Cannot validate argument on parameter 'SecureBootTemplate'.")
    if settings.generation == 1 and given.flag("tpm"):
        raise ParameterError("The operation is not supported for a generation 1 machine.")
    return replace(
        settings.with_secure_boot(template),
        notes=marker,
        processors=processors,
        nested=given.flag("nested"),
        tpm=given.flag("tpm"),
        adapters=tuple(_new_adapter(one, settings.generation) for one in given.records("adapters")),
        identity=_identity(settings.identity, given),
    )


def _new_adapter(given: Parameters, generation: int) -> Adapter:
    mac = given.text("mac")
    if mac and _MAC.fullmatch(mac) is None:
        raise ParameterError(f"'{mac}' is not a MAC address.")
    if given.flag("legacy") and generation == 2:
        raise ParameterError("A generation 2 machine has no legacy network adapter.")
    if not 0 <= given.number("vlan_id") <= 4094:
        raise ParameterError("The VLAN id is out of range.")
    return Adapter(
        adapter_id=str(uuid.uuid4()).upper(),
        name=given.text("name"),
        mac=mac.upper() or new_mac(),
        dynamic_mac=not mac,
        legacy=given.flag("legacy"),
        switch=given.text("switch_name"),
        vlan_id=given.number("vlan_id"),
    )


def _identity(identity: Identity, given: Parameters) -> Identity:
    if not given.has("identity"):
        return identity
    wanted = given.record("identity")
    names = ("bios_guid", "bios_serial", "board_serial", "chassis_serial", "chassis_asset_tag")
    given_names = {name: wanted.text(name) for name in names if wanted.text(name)}
    if "bios_guid" in given_names:
        given_names["bios_guid"] = f"{{{str(uuid.UUID(given_names['bios_guid'])).upper()}}}"
    return replace(identity, **given_names)


def _attach_disk(host: HypervHost, iscsi: IscsiInitiator, given: Parameters) -> Document:
    vm = _marked_vm(host, given)
    path = WindowsPath.parse(given.text("path")) if given.text("path") else None
    with vm.operation():
        if vm.state is not VmState.OFF:
            raise HypervError("The practice host attaches disks to machines that are off.")
        if path is not None:
            host.volumes.existing_file(path)
            _refuse_attached(host, path)
        else:
            _refuse_disk(host, iscsi, given.number("disk_number"))
        drive = Drive(
            controller=_controller(given),
            controller_number=given.number("controller_number"),
            location=given.number("location"),
            path=path,
            disk_number=None if path is not None else given.number("disk_number"),
        )
        settings = vm.settings
        if drive.slot == DVD_SLOT:
            settings = replace(settings, has_dvd=False)
        settings = settings.with_drive(drive)
        if given.flag("boot_first") and settings.generation == 2:
            settings = replace(settings, boot_first=drive.name)
        vm.update(settings)
        return {"attachment": settings.attachment(drive)}


def _refuse_attached(host: HypervHost, path: WindowsPath) -> None:
    for vm in host.vms():
        if any(drive.path is not None and drive.path.same(path) for drive in vm.settings.drives):
            raise InUseError(f"'{path}' is attached to '{vm.settings.name}' already.")


def _refuse_disk(host: HypervHost, iscsi: IscsiInitiator, number: int) -> None:
    _, disk = iscsi.numbered(number)
    if disk.mounted is not None:
        raise HypervError(f"The physical disk {number} is online.")
    for vm in host.vms():
        if any(drive.disk_number == number for drive in vm.settings.drives):
            raise InUseError(f"Disk {number} is attached to '{vm.settings.name}' already.")


def _import_disk(host: HypervHost, iscsi: IscsiInitiator, given: Parameters) -> Document:
    vm = _marked_vm(host, given)
    path = WindowsPath.parse(given.text("path"))
    with vm.operation():
        if vm.state is not VmState.OFF:
            raise ScriptStop("vm-not-off", "Running")
        number, location = given.number("controller_number"), given.number("location")
        try:
            drive = vm.settings.drive(given.text("controller"), number, location)
            if drive.path is not None and drive.path.same(path):
                return {"copied": False}
            _, disk = iscsi.disk(given.text("serial"))
        except NotFoundError as error:
            raise ScriptStop("disk-not-found", str(path)) from error
        if drive.disk_number != disk.number:
            raise ScriptStop("disk-changed", str(drive.path))
        place = host.volumes.place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        with iscsi.shown_whole(disk.number) as image:
            copy_image(image, place)
        vm.update(vm.settings.with_drive_replaced(replace(drive, path=path, disk_number=None)))
    return {"copied": True}


def _controller(given: Parameters) -> ControllerType:
    try:
        return ControllerType(given.text("controller"))
    except ValueError as error:
        raise ParameterError(f"no controller type {given.text('controller')!r}") from error


def _remove_vm(host: HypervHost, given: Parameters) -> Document:
    try:
        find_vm(host, given.text("vm_id"))
    except ScriptStop:
        return {"found": False, "disk_paths": []}
    vm = _marked_vm(host, given)
    paths = [str(drive.path) for drive in vm.settings.drives if drive.path is not None]
    host.remove_vm(vm)
    return {"found": True, "disk_paths": paths}


def _set_notes(host: HypervHost, given: Parameters) -> Document:
    vm = _marked_vm(host, given)
    with vm.operation():
        vm.update(replace(vm.settings, name=given.text("name"), notes=given.text("notes")))
    return {"id": vm.settings.vm_id}


def _set_power(host: HypervHost, given: Parameters) -> Document:
    vm = find_vm(host, given.text("vm_id"))
    match given.text("power"):
        case "on":
            vm.start()
        case "off":
            vm.turn_off()
        case "shutdown":
            vm.shut_down()
    return {"state": int(vm.state)}


def _move_storage(host: HypervHost, given: Parameters) -> Document:
    vm = find_vm(host, given.text("vm_id"))
    folder = WindowsPath.parse(given.text("folder"))
    disks_folder = folder.joined("Virtual Hard Disks")
    with vm.operation():
        if vm.settings.has_pass_through:
            raise HypervError("Storage migration is not supported for pass-through disks.")
        host.volumes.place(folder)
        if host.faults.take(FaultName.RELOCATE_FAILURE, **vm.fault_fields):
            raise HypervError("Storage migration for the virtual machine failed.")
        host.volumes.place(disks_folder).mkdir(parents=True, exist_ok=True)
        with vm.opened_disks():
            for name, disk in vm.disks.items():
                if disk.leaf.folder.same(disks_folder):
                    continue
                old = disk.move(disks_folder, host.site.stopping)
                vm.release(name)
                if vm.machine is not None:
                    vm.hold(name)
                for path in old:
                    host.volumes.file(path).unlink()
                for checkpoint in vm.checkpoints:
                    if name in checkpoint.frozen:
                        frozen = disks_folder.joined(checkpoint.frozen[name].name)
                        checkpoint.frozen[name] = frozen
            vm.leaves_changed()
        _move_configuration(host, vm, folder)
    return {
        "folder": str(vm.settings.folder),
        "disk_paths": [str(drive.path or "") for drive in vm.settings.drives],
    }


def _move_configuration(host: HypervHost, vm: HypervVm, folder: WindowsPath) -> None:
    old = vm.settings.vmcx_path
    vm.update(replace(vm.settings, folder=folder))
    if vm.settings.vmcx_path.same(old):
        return
    for path in (old, old.folder.joined(f"{old.stem}.vmrs")):
        host.volumes.place(path).unlink(missing_ok=True)
    snapshots = folder.joined("Snapshots")
    for checkpoint in vm.checkpoints:
        host.volumes.place(snapshots).mkdir(exist_ok=True)
        moved = [snapshots.joined(path.name) for path in checkpoint.configuration]
        for path, target in zip(checkpoint.configuration, moved, strict=True):
            shutil.move(host.volumes.place(path), host.volumes.place(target))
        checkpoint.configuration = moved
    for emptied in (old.folder, old.folder.folder.joined("Snapshots")):
        place = host.volumes.place(emptied)
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _swap_disks(host: HypervHost, given: Parameters) -> Document:
    vm = find_vm(host, given.text("vm_id"))
    with vm.operation():
        if vm.state is not VmState.OFF:
            raise ScriptStop("vm-not-off", "Running")
        settings, swapped = vm.settings, 0
        for wanted in given.records("disks"):
            path, expected = wanted.text("path"), wanted.text("expected_path")
            number, location = wanted.number("controller_number"), wanted.number("location")
            try:
                drive = settings.drive(wanted.text("controller"), number, location)
            except NotFoundError as error:
                raise ScriptStop("disk-not-found", expected) from error
            if str(drive.path).lower() != expected.lower():
                raise ScriptStop("disk-changed", str(drive.path))
            target = WindowsPath.parse(path)
            host.volumes.existing(target)
            settings = settings.with_drive_replaced(replace(drive, path=target))
            swapped += 1
        vm.update(settings)
    return {"swapped": swapped}
