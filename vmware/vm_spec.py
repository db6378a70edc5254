"""From a captured VM to the `ConfigSpec` of a new one, and to the one that finishes it.

    CapturedVm + choices -> first_spec -> CreateVM_Task or ImportVApp -> … its disks are written …
                         -> last_spec  -> ReconfigVM_Task: it is a VM like any other from then on

The first spec makes the VM under our mark, with an instance uuid of its own, so that a clone or a
conflict of uuids never makes the mark point at another VM; the last takes the mark off and sets
what needs real device keys. What cannot be made again is a finding. Pure.
Source: design notes sections 1, 7 and 8; vSphere API reference, VirtualMachineConfigSpec.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pyVmomi import vim

from vmware.captured_vm import BootKind, CapturedShare, CapturedVm
from vmware.disks import disks_of
from vmware.findings import Finding, Weight
from vmware.kept_settings import kept_settings
from vmware.marker import escape_name
from vmware.network_choice import ChosenNetwork
from vmware.vm_spec_devices import (
    MacPolicy,
    PlannedDisk,
    disk_address,
    nics_that_can_be_made,
    plan_devices,
)

_EXTRA_SHOWN = 10


class UuidPolicy(StrEnum):
    """Whether the new VM is the old one (its uuids, and those of its disks) or another."""

    KEEP = "keep"
    NEW = "new"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecChoices:
    name: str
    home: str  # `[datastore]`: the host makes a folder there; or `[datastore] folder`
    mark: str  # the annotation while it is being made
    instance_uuid: str  # while it is being made
    hardware_most: int  # newest virtual hardware of the place
    disk_keys: frozenset[int]  # captured disks to make
    networks: Mapping[int, ChosenNetwork]  # by the key of the captured adapter
    mac: MacPolicy
    uuid: UuidPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVm:
    spec: Any  # vim.vm.ConfigSpec
    disks: tuple[PlannedDisk, ...]
    findings: tuple[Finding, ...]


def first_spec(vm: CapturedVm, choices: SpecChoices) -> PlannedVm:
    """Raises CannotRebuildError: a disk that is wanted has no place."""
    devices = plan_devices(
        vm,
        disk_keys=choices.disk_keys,
        networks=choices.networks,
        mac=choices.mac,
        keep_disk_uuids=choices.uuid is UuidPolicy.KEEP,
    )
    settings = kept_settings(vm.settings, same_nics=len(devices.nics) == len(vm.nics))
    findings = [*devices.findings, *_losses(vm), *_settings_left(settings.left)]
    spec = vim.vm.ConfigSpec(
        name=escape_name(choices.name),
        annotation=choices.mark,
        instanceUuid=choices.instance_uuid,
        files=vim.vm.FileInfo(vmPathName=choices.home),
        guestId=vm.guest_id or "otherGuest64",
        numCPUs=vm.cpus,
        numCoresPerSocket=vm.cores_per_socket,
        memoryMB=vm.memory_mib,
        cpuHotAddEnabled=vm.cpu_hot_add,
        cpuHotRemoveEnabled=vm.cpu_hot_remove,
        memoryHotAddEnabled=vm.memory_hot_add,
        nestedHVEnabled=vm.nested_virtualisation,
        changeTrackingEnabled=False,
        deviceChange=list(devices.changes),
        extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in settings.kept],
    )
    version = min(vm.hardware_version or choices.hardware_most, choices.hardware_most)
    spec.version = f"vmx-{version:02d}"
    if vm.hardware_version > version:
        findings.append(_older_hardware(vm.hardware_version, version))
    if choices.uuid is UuidPolicy.KEEP and vm.bios_uuid:
        spec.uuid = vm.bios_uuid
    add_optional(spec, vm)
    return PlannedVm(spec=spec, disks=devices.disks, findings=tuple(findings))


def last_spec(
    vm: CapturedVm, choices: SpecChoices, made: Iterable[Any], nvram_name: str | None
) -> Any:
    """The `ConfigSpec` that makes the VM an ordinary one.

    Args:
        made: `config.hardware.device` of the new VM.
        nvram_name: file name of the NVRAM beside its .vmx, where one was put there.
    """
    spec = vim.vm.ConfigSpec(annotation=vm.annotation)
    if choices.uuid is UuidPolicy.KEEP and vm.instance_uuid:
        spec.instanceUuid = vm.instance_uuid
    if nvram_name is not None:
        spec.extraConfig = [vim.option.OptionValue(key="nvram", value=nvram_name)]
    order = _boot_order(vm, list(made))
    if order:
        spec.bootOptions = vim.vm.BootOptions(bootOrder=order)
    return spec


def add_optional(spec: Any, vm: CapturedVm) -> None:
    """What is only said when it was captured: hosts refuse some values where they do not apply."""
    if vm.alternate_guest_name and vm.guest_id.startswith("other"):
        spec.alternateGuestName = vm.alternate_guest_name
    if vm.firmware in ("bios", "efi"):
        spec.firmware = vm.firmware
    if vm.swap_placement in ("inherit", "vmDirectory", "hostLocal"):
        spec.swapPlacement = vm.swap_placement
    if vm.latency_sensitivity in ("low", "normal", "medium", "high"):
        spec.latencySensitivity = vim.LatencySensitivity(level=vm.latency_sensitivity)
    spec.cpuAllocation = _allocation(vm.cpu_share)
    spec.memoryAllocation = _allocation(vm.memory_share)
    boot = vim.vm.BootOptions(
        bootDelay=vm.boot_delay_ms, enterBIOSSetup=vm.enter_setup, bootRetryEnabled=vm.boot_retry
    )
    if vm.firmware == "efi":
        boot.efiSecureBootEnabled = vm.secure_boot
    spec.bootOptions = boot
    flags = vim.vm.FlagInfo(
        diskUuidEnabled=vm.disk_uuid_enabled,
        vbsEnabled=vm.virtualisation_security or None,  # only where it was on: old hosts refuse it
        vvtdEnabled=vm.io_mmu or None,
    )
    spec.flags = flags


def _allocation(share: CapturedShare | None) -> Any:
    if share is None:
        return None
    found = vim.ResourceAllocationInfo(reservation=share.reservation, limit=share.limit)
    if share.level in ("low", "normal", "high", "custom"):
        found.shares = vim.SharesInfo(shares=share.shares, level=share.level)
    return found


def _boot_order(vm: CapturedVm, made: list[Any]) -> list[Any]:
    """In the new VM's own device keys; a device that was not made is passed over."""
    disks = {disk.address: disk.key for disk in disks_of(made)}
    places = {disk.key: disk_address(vm, disk) for disk in vm.disks}
    new = [item.key for item in made if isinstance(item, vim.vm.device.VirtualEthernetCard)]
    nics = dict(zip((nic.key for nic in nics_that_can_be_made(vm.nics)), new, strict=False))
    options = vim.vm.BootOptions
    order: list[Any] = []
    for device in vm.boot_order:
        disk = disks.get(places.get(device.device_key, ""))
        if device.kind is BootKind.DISK and disk is not None:
            order.append(options.BootableDiskDevice(deviceKey=disk))
        elif device.kind is BootKind.NIC and device.device_key in nics:
            order.append(options.BootableEthernetDevice(deviceKey=nics[device.device_key]))
        elif device.kind is BootKind.CDROM:
            order.append(options.BootableCdromDevice())
    return order


def _older_hardware(had: int, gets: int) -> Finding:
    return Finding(
        "rebuild.older-hardware",
        f"the VM had virtual hardware vmx-{had:02d}; this place offers vmx-{gets:02d} at most",
        "restore it to a newer host if the guest needs what is missing",
    )


def _settings_left(keys: tuple[str, ...]) -> list[Finding]:
    if not keys:
        return []
    shown = ", ".join(key[:80] for key in keys[:_EXTRA_SHOWN])
    more = f" and {len(keys) - _EXTRA_SHOWN} more" if len(keys) > _EXTRA_SHOWN else ""
    return [
        Finding(
            "rebuild.settings-left-out",
            f"advanced settings that are not known to be safe were left out: {shown}{more}",
            "set again those that the guest needs",
            Weight.NOTE,
        )
    ]


def _losses(vm: CapturedVm) -> list[Finding]:
    """What of the VM as a whole does not come back."""
    found = []
    if vm.encrypted:
        found.append(
            Finding(
                "rebuild.not-encrypted",
                "the VM was encrypted and is restored unencrypted",
                "encrypt it again with a storage policy",
            )
        )
    if vm.vapp:
        found.append(
            Finding(
                "rebuild.vapp-options",
                "the VM's vApp options (OVF properties) are not restored",
                "set them again if the guest reads them at boot",
            )
        )
    if vm.managed_by:
        found.append(
            Finding(
                "rebuild.managed-by",
                f"the VM was managed by {vm.managed_by[:80]} and is not any more",
                "have that product take it over again",
                Weight.NOTE,
            )
        )
    if vm.nvram is None and vm.firmware == "efi":
        found.append(
            Finding(
                "rebuild.no-nvram",
                "the point holds no NVRAM: EFI boot entries and secure-boot variables are lost",
                "if the guest does not boot, choose its boot file in the firmware's menu once",
            )
        )
    if vm.template:
        found.append(
            Finding(
                "rebuild.was-template",
                "the original was a template; this is a VM",
                "convert it to a template",
                Weight.NOTE,
            )
        )
    return found
