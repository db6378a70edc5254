"""What does not come along when a VM of Hyper-V becomes one of vSphere. Pure; see `translation`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.base.reasons import Reason
from appliance.base.units import MIB
from appliance.targets.translation import (
    ALLOCATIONS,
    BOOT_ENTRIES,
    IDENTITY,
    adapters_left_out,
    cut_down,
    drivers_unchanged,
    guest_software,
    listed,
    other_adapters,
    secure_boot,
)
from hyperv import captured_vm as hv
from vmware.captured_vm import CapturedVm

IDE, AHCI = "VirtualIDEController", "VirtualAHCIController"
UNKNOWN_GUEST = "otherGuest64"


def told(old: hv.CapturedVm, vm: CapturedVm) -> Iterator[Reason]:
    """`vm`: what `old` became."""
    if vm.disks:
        yield drivers_unchanged(
            f"VMware's {_controllers_used(vm)}, slower than a paravirtual controller,",
            "Linux needs ahci and ata_piix in its initramfs (kernels made for clouds lack ahci: "
            "hang their disks on a paravirtual controller), Windows storahci, intelide and atapi "
            "started at boot",
        )
    yield _SOFTWARE
    yield IDENTITY
    if vm.guest_id == UNKNOWN_GUEST:
        yield _GUEST_UNKNOWN
    if vm.nics:
        yield other_adapters("e1000e ones")
    left = old.adapters[len(vm.nics) :]
    if left:
        yield adapters_left_out(adapter.name for adapter in left)
    special = [adapter.name for adapter in old.adapters if _is_special(adapter)]
    if special:
        yield _adapter_settings(special)
    if vm.firmware == "efi":
        yield BOOT_ENTRIES
    if old.firmware and old.firmware.secure_boot and not vm.secure_boot:
        yield _SECURE_BOOT_OFF
    if old.memory.dynamic:
        yield _dynamic_memory(vm.memory_mib)
    cut = list(_cut(old, vm))
    if cut:
        yield cut_down(cut)
    if (old.processor.reserve, old.processor.limit, old.processor.weight) != (0, 100, 100):
        yield ALLOCATIONS


def _cut(old: hv.CapturedVm, vm: CapturedVm) -> Iterator[str]:
    if vm.cpus < old.processor.count:
        yield f"{vm.cpus} processors instead of {old.processor.count}"
    if vm.memory_mib * MIB < old.memory.startup_bytes:
        yield f"{vm.memory_mib} MiB of memory instead of {old.memory.startup_bytes // MIB}"


def _is_special(adapter: hv.Adapter) -> bool:
    guarded = adapter.mac_spoofing or adapter.dhcp_guard or adapter.router_guard
    return bool(adapter.vlan_id) or guarded


def _controllers_used(vm: CapturedVm) -> str:
    kinds = {controller.key: controller.kind for controller in vm.controllers}
    used = {kinds[disk.controller_key] for disk in vm.disks}
    return " and ".join(name for kind, name in ((IDE, "IDE"), (AHCI, "AHCI")) if kind in used)


def _dynamic_memory(memory_mib: int) -> Reason:
    return Reason(
        "translation.dynamic-memory",
        f"the VM had dynamic memory; it has {memory_mib} MiB now, with which it used to start",
        "give it what it needs in the vSphere client",
    )


def _adapter_settings(names: Sequence[str]) -> Reason:
    return Reason(
        "translation.adapter-settings",
        f"VLAN, address spoofing and guards of {listed(names)} are not taken over",
        "vSphere has them on port groups: map the adapter to one that fits by --network",
    )


_SOFTWARE = guest_software(
    "Hyper-V's integration services do nothing on vSphere, and VMware Tools may be missing: no "
    "heartbeat, no clean shutdown, no application-consistent backup",
    "install VMware Tools (Linux: open-vm-tools); then a paravirtual controller and vmxnet3 work",
)
_GUEST_UNKNOWN = Reason(
    "translation.guest-unknown",
    f"a Hyper-V point does not say which guest it holds; vSphere is told {UNKNOWN_GUEST}",
    "choose the guest operating system in the vSphere client when the VM is off",
    warning=False,
)
_SECURE_BOOT_OFF = secure_boot(
    "secure boot is off: it went by a template whose keys vSphere does not have",
    "enrol its keys in the VM's firmware, then turn secure boot on",
)
