"""Setting a VM back to its captured configuration: processors, memory, boot, networks.

Only what is understood and reversible is changed. Disks are not touched, nor devices that came or
went since: those are findings. The reconfigure carries the configuration version that was looked
at, so that a change by somebody else in between fails it. Pure, but for its input.
Source: design notes section 8; vSphere API reference, VirtualMachineConfigSpec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from vmware.captured_vm import CapturedNic, CapturedVm
from vmware.findings import Finding
from vmware.network_choice import ChosenNetwork
from vmware.vm_spec_devices import backing_of, nics_that_can_be_made

_device = vim.vm.device


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackSpec:
    spec: Any  # vim.vm.ConfigSpec
    findings: tuple[Finding, ...]


def nics_still_there(vm: CapturedVm, present: Sequence[Any]) -> tuple[CapturedNic, ...]:
    """The captured adapters that the VM still has, by device key."""
    keys = {card.key for card in _cards(present)}
    return tuple(nic for nic in nics_that_can_be_made(vm.nics) if nic.key in keys)


def rollback_spec(
    vm: CapturedVm,
    present: Sequence[Any],
    networks: Mapping[int, ChosenNetwork],
    change_version: str,
) -> RollbackSpec:
    """Args:
    present: `config.hardware.device` as it is now.
    networks: for `nics_still_there`.
    change_version: `config.changeVersion` that goes with `present`.
    """
    spec = vim.vm.ConfigSpec(
        numCPUs=vm.cpus,
        numCoresPerSocket=vm.cores_per_socket,
        memoryMB=vm.memory_mib,
        cpuHotAddEnabled=vm.cpu_hot_add,
        memoryHotAddEnabled=vm.memory_hot_add,
        annotation=vm.annotation,
    )
    if change_version:
        spec.changeVersion = change_version
    if vm.firmware in ("bios", "efi"):
        spec.firmware = vm.firmware
    boot = vim.vm.BootOptions(bootDelay=vm.boot_delay_ms, enterBIOSSetup=vm.enter_setup)
    if vm.firmware == "efi":
        boot.efiSecureBootEnabled = vm.secure_boot
    spec.bootOptions = boot
    cards = {card.key: card for card in _cards(present)}
    spec.deviceChange = [
        _device.VirtualDeviceSpec(operation="edit", device=_edited(cards[key], chosen))
        for key, chosen in networks.items()
        if key in cards
    ]
    return RollbackSpec(spec=spec, findings=tuple(_differences(vm, cards)))


def _edited(card: Any, chosen: ChosenNetwork) -> Any:
    edited = type(card)(key=card.key, backing=backing_of(chosen))
    edited.controllerKey, edited.unitNumber = card.controllerKey, card.unitNumber
    edited.addressType, edited.macAddress = card.addressType, card.macAddress
    edited.connectable = _device.VirtualDevice.ConnectInfo(
        startConnected=chosen.start_connected, allowGuestControl=True, connected=False
    )
    return edited


def _differences(vm: CapturedVm, cards: Mapping[int, Any]) -> list[Finding]:
    captured = {nic.key: nic for nic in vm.nics}
    gone = [nic.label for key, nic in captured.items() if key not in cards]
    came = [str(card.key) for key, card in cards.items() if key not in captured]
    found = []
    if gone:
        found.append(
            Finding(
                "rollback.nic-gone",
                f"adapters that the VM had are not added again: {', '.join(gone)}",
                "add them in the vSphere client if the guest needs them",
            )
        )
    if came:
        found.append(
            Finding(
                "rollback.nic-added",
                f"adapters that came since the recovery point stay: {', '.join(came)}",
                "remove them in the vSphere client if they are not wanted",
            )
        )
    return found


def _cards(devices: Sequence[Any]) -> list[Any]:
    return [device for device in devices if isinstance(device, _device.VirtualEthernetCard)]
